//! Whether the image and the list beside a manifest are still those that it describes.
//!
//! A machine that was started from an image, a mount or an editor may have written to it since. To notice that without
//! reading every image, a build gives `manifest.json` the latest change time (ctime) of the two files as its own
//! modification time: no write to them leaves their change time as it was, and no program can set it. Where the times differ,
//! since something wrote to the files or only touched or copied them, the digests decide. If they match, the manifest gets the
//! new time, so that the files are read once.

use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::Manifest;
use crate::plan::hash_file;
use crate::report::progress::Progress;

/// A time of a file: seconds and nanoseconds since 1970.
type Time = (i64, i64);

impl Manifest {
    /// Returns what was changed beside the manifest at `place` since it was written; `None` if nothing was. Reads the files
    /// only where their times do not settle it.
    pub fn changes(&self, place: &Path, progress: &Progress) -> Option<String> {
        let (image, list) = (place.with_file_name(&self.file), place.with_file_name(&self.contents.file));
        let about_image = match regular(&image, "the image file") {
            Ok(about) if about.len() == self.census.size => about,
            Ok(_) => return Some(changed("the image file")),
            Err(why) => return Some(why),
        };
        let about_list = match regular(&list, "the list of its contents") {
            Ok(about) => about,
            Err(why) => return Some(why),
        };
        let latest = change_time(&about_image).max(change_time(&about_list));
        let stamp = fs::metadata(place).map(|about| (about.mtime(), about.mtime_nsec()));
        if stamp.is_ok_and(|stamp| stamp == latest) {
            return None;
        }
        let stage = progress.stage("compare the image with its digest");
        stage.expect_bytes(about_image.len());
        let parts =
            [(&image, &self.sha256, "the image file"), (&list, &self.contents.sha256, "the list of its contents")];
        for (path, sha256, what) in parts {
            match hash_file(path, &mut |bytes| stage.advance(bytes)) {
                Ok(found) if found == *sha256 => {}
                Ok(_) => {
                    stage.finish("changed");
                    return Some(changed(what));
                }
                Err(error) => {
                    stage.finish("unreadable");
                    return Some(format!("{what} cannot be read ({})", error.root_cause()));
                }
            }
        }
        stage.finish("the same");
        // Of the time before the files were read: what is written to them meanwhile is noticed by the next look. Where the
        // manifest is another user's, the files are read again then.
        let _ = set_time(place, latest);
        None
    }
}

/// Gives the manifest at `place` the time by which [`Manifest::changes`] tells that the files beside it are as they were
/// built.
pub fn stamp(manifest: &Manifest, place: &Path) -> Result<()> {
    let files = [&manifest.file, &manifest.contents.file].map(|name| place.with_file_name(name));
    let mut latest = Time::default();
    for file in files {
        let about = fs::metadata(&file).with_context(|| format!("cannot look at {}", file.display()))?;
        latest = latest.max(change_time(&about));
    }
    set_time(place, latest).with_context(|| format!("cannot set the time of {}", place.display()))
}

fn changed(what: &str) -> String {
    format!("{what} was changed since it was built")
}

/// Looks at a file that has to be a regular one, or a symlink to one.
fn regular(path: &Path, what: &str) -> Result<Metadata, String> {
    match fs::metadata(path) {
        Ok(about) if about.is_file() => Ok(about),
        Ok(_) => Err(format!("{what} was replaced by something that is no regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!("{what} is gone")),
        Err(error) => Err(format!("{what} cannot be read ({error})")),
    }
}

fn change_time(about: &Metadata) -> Time {
    (about.ctime(), about.ctime_nsec())
}

fn set_time(place: &Path, (seconds, nanoseconds): Time) -> io::Result<()> {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second: SystemTime = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    let time = second + Duration::from_nanos(nanoseconds.unsigned_abs());
    File::open(place)?.set_times(FileTimes::new().set_modified(time))
}
