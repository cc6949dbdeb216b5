//! A file that appears under its name when it is complete: written beside it, locked meanwhile, then renamed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use nix::fcntl::OFlag;
use nix::unistd::{PathconfVar, pathconf};
use sha2::{Digest, Sha256};
use snug_process::interrupt;

use super::place::{Place, folder_of};
use super::sync_ahead::SyncAhead;
use crate::error::Failure;
use crate::host::disk_space;
use crate::report::progress::human_bytes;

/// Ending of files that are not complete yet.
const ENDING: &str = ".partial";
/// Hexadecimal digits of a name that nobody can guess, and so take before it is made.
const RANDOM_DIGITS: usize = 16;
/// Names that are tried before something else is wrong: each is taken by a chance of 1 to 2^64, or by a sweep at the wrong
/// moment.
const NAMES: usize = 100;
/// The ending of the name that a complete file of a [set](super::set) has before its own.
const NEXT: &str = ".next";
/// The longest name in bytes where the filesystem does not say (`NAME_MAX` of limits.h).
const LONGEST_NAME: usize = 255;
/// Hexadecimal digits that tell one long name from another.
const DIGEST_DIGITS: usize = 16;
/// The bits of a mode that a file keeps when it is replaced: those that say who may read, write and execute it.
const PERMISSIONS: u32 = 0o777;
/// The permission to write of a file's owner, without which the file could not be filled.
const OWNER_WRITES: u32 = 0o200;

/// A file that takes its final name when it is [published](Partial::publish), and is removed otherwise. What had that name
/// before is kept until then.
#[derive(Debug)]
pub struct Partial {
    place: PathBuf,
    path: PathBuf,
    /// Locked while the file is written: the next run removes partial files that nobody has locked.
    file: File,
    registered: interrupt::Registered,
    ahead: Option<SyncAhead>,
    /// The file that has the name now, whose permissions and owner the new one keeps.
    replaced: Option<Metadata>,
    /// How the user has it written to another folder.
    other_folder: &'static str,
    published: bool,
}

impl Partial {
    /// Begins the file that will become `place`, in the same folder, which is made where it is missing. Removes partial files
    /// of the same name that killed runs left. Where `place` is a symlink, what it leads to is replaced; what is neither a
    /// regular file nor a new name is refused.
    pub fn begin(place: &Path) -> Result<Self> {
        let folder = folder_of(place);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let what = match Place::find(place)? {
            Place::New(path) => return Self::begin_there(&path, None),
            Place::File(path, about) => return Self::begin_there(&path, Some(about)),
            Place::Special(what) => what,
            Place::BlockDevice(_) => "a block device",
            Place::Open(_) => "an open file of this process",
        };
        bail!(Failure::Usage(format!(
            "{} is {what}, not a file\nhint: remove it, or choose another folder",
            place.display()
        )))
    }

    /// As [`Self::begin`], where `place` is no link: it is `replaced` or new.
    pub(super) fn begin_there(place: &Path, replaced: Option<Metadata>) -> Result<Self> {
        let folder = folder_of(place);
        let name = place.file_name().with_context(|| format!("{} names no file", place.display()))?;
        let prefix = prefix(name, longest_name(&folder).saturating_sub(RANDOM_DIGITS + ENDING.len()));
        Self::sweep_names(&folder, &prefix)?;
        let (path, file) = Self::create(&folder, &prefix)?;
        let registered = interrupt::remove_on_interrupt(&path, |path| Ok(fs::remove_file(path)?));
        if let Some(replaced) = &replaced {
            // Before there is anything in it that only some may read.
            file.set_permissions(Permissions::from_mode(replaced.mode() & PERMISSIONS | OWNER_WRITES))?;
        }
        Ok(Partial {
            place: place.to_path_buf(),
            path,
            file,
            registered,
            ahead: None,
            replaced,
            other_folder: "choose another folder with --output",
            published: false,
        })
    }

    /// Has a full disk explained with how the user chooses another folder, where that is not by `--output`.
    pub(super) fn chosen_by(mut self, other_folder: &'static str) -> Self {
        self.other_folder = other_folder;
        self
    }

    /// Makes a file that nobody else has, and locks it.
    fn create(folder: &Path, prefix: &OsStr) -> Result<(PathBuf, File)> {
        let cannot = || format!("cannot write in {}\nhint: choose a folder that can be written to", folder.display());
        for _ in 0..NAMES {
            let mut name = prefix.to_owned();
            name.push(format!("{:0RANDOM_DIGITS$x}{ENDING}", random()));
            let path = folder.join(name);
            // With O_EXCL, which follows no symlink either (open(2)).
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file.with_context(cannot)?,
            };
            match file.try_lock() {
                Ok(()) if is_at(&file, &path).with_context(cannot)? => return Ok((path, file)),
                // Another run's sweep took it for abandoned before it was locked, and removes it.
                Ok(()) | Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    let _ = fs::remove_file(&path);
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        bail!("{NAMES} files {}*{ENDING} are in the way\nhint: remove them", folder.join(prefix).display());
    }

    /// Syncs the file to the disk while it is written, so that [publishing](Self::publish) waits less.
    pub fn sync_ahead(mut self) -> Result<Self> {
        self.ahead = Some(SyncAhead::start(&self.path).context("cannot start a thread")?);
        Ok(self)
    }

    /// Starts to sync the rest, where the file is synced ahead: nothing more will be written to it.
    pub fn send_rest(&mut self) {
        self.ahead.iter_mut().for_each(SyncAhead::send_rest);
    }

    /// Returns the partial files in `folder` whose names begin with `prefix` and whose runs have ended.
    pub fn abandoned(folder: &Path, prefix: &str) -> Result<Vec<PathBuf>> {
        Ok(Self::take_over(folder, prefix.as_ref())?.into_iter().map(|(path, _)| path).collect())
    }

    /// Locks the abandoned files and returns them: while a lock is held, nobody else begins or removes a file of that name.
    fn take_over(folder: &Path, prefix: &OsStr) -> Result<Vec<(PathBuf, File)>> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
        };
        let mut taken = Vec::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let (name, prefix) = (name.as_bytes(), prefix.as_bytes());
            if !(name.starts_with(b".") && name.starts_with(prefix) && name.ends_with(ENDING.as_bytes())) {
                continue;
            }
            let path = entry.path();
            // Neither a symlink nor a FIFO that others put there is followed or waited for.
            let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
            let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(&path) else { continue };
            // Another sweep may have removed it since it was opened.
            if file.metadata()?.is_file() && file.try_lock().is_ok() && is_at(&file, &path)? {
                taken.push((path, file));
            }
        }
        Ok(taken)
    }

    /// Removes the [abandoned](Self::abandoned) files.
    pub fn sweep(folder: &Path, prefix: &str) -> Result<()> {
        Self::sweep_names(folder, prefix.as_ref())
    }

    fn sweep_names(folder: &Path, prefix: &OsStr) -> Result<()> {
        for (path, _lock) in Self::take_over(folder, prefix)? {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Returns the path to write to until the file is published, for other programs. None may put another file there: the
    /// next run would take that for abandoned.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the file, to write to it from the start. All that are returned have one position.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Returns the place that the file will have.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Waits until the content is on the disk.
    pub(super) fn sync(&mut self) -> Result<()> {
        let ahead = self.ahead.take().map_or(Ok(()), SyncAhead::finish);
        ahead
            .and_then(|()| self.file.sync_all())
            .map_err(|error| self.explain(error.into()))
            .with_context(|| format!("cannot write {} to disk", self.place.display()))
    }

    /// Gives the complete file the permissions and the owner that it is to have.
    fn dress(&self) -> Result<()> {
        match &self.replaced {
            Some(replaced) => {
                keep_permissions(&self.file, replaced).with_context(|| format!("cannot write {}", self.place.display()))
            }
            None => Ok(()),
        }
    }

    /// Gives the complete file its [next name](next). From here on no signal removes it.
    pub(super) fn rename_to_next(&mut self) -> Result<()> {
        self.dress()?;
        self.registered.forget();
        // Where a signal has come, the file is being removed.
        interrupt::hold_if_interrupted();
        let next = next(&self.place)?;
        fs::rename(&self.path, &next).with_context(|| format!("cannot name {}", next.display()))?;
        self.path = next;
        Ok(())
    }

    /// Leaves the file under the name that it has now.
    pub(super) fn keep(mut self) {
        self.published = true;
    }

    /// As [`Self::publish`], with another name in the same folder: one that says what is in it.
    pub fn publish_as(mut self, name: &str) -> Result<PathBuf> {
        self.place.set_file_name(name);
        self.publish()
    }

    /// Syncs the file and its folder, and gives the file its name, in place of what had it.
    pub fn publish(mut self) -> Result<PathBuf> {
        self.sync()?;
        let place = self.publish_unsynced()?;
        // The new name is durable once its folder is synced.
        sync_folder(&place)?;
        Ok(place)
    }

    /// Gives the file its name without syncing it: after a power failure it may be there and not be complete.
    pub fn publish_unsynced(mut self) -> Result<PathBuf> {
        self.dress()?;
        fs::rename(&self.path, &self.place).with_context(|| format!("cannot name {}", self.place.display()))?;
        self.published = true;
        Ok(self.place.clone())
    }

    /// Adds to an error that the disk is full, where it is, with what is free and what to do.
    pub fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let folder = folder_of(&self.place);
        if !disk_space::is_used_up(&error) {
            return error;
        }
        let size = fs::metadata(&self.path).map(|about| about.len()).unwrap_or(0);
        error.context(format!(
            "the disk of {} is full: the image takes up to {}, and {} are free beside what was written of it\n\
             hint: free some space, or {}",
            folder.display(),
            human_bytes(size),
            human_bytes(disk_space::free(&folder)),
            self.other_folder
        ))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.published {
            // The next run removes what cannot be removed now.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether the open file is still the one at `path`.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((ours.dev(), ours.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits until the names in the folder of `place` are on the disk.
pub(super) fn sync_folder(place: &Path) -> Result<()> {
    File::open(folder_of(place)).and_then(|folder| folder.sync_all()).context("cannot sync the folder")
}

/// Returns the path at which a complete file waits for the others of its [set](super::set), beside the place that it will have:
/// `.NAME.next`. It is the same for every run.
pub(super) fn next(place: &Path) -> Result<PathBuf> {
    let folder = folder_of(place);
    let name = place.file_name().with_context(|| format!("{} names no file", place.display()))?;
    // The prefix ends with a dot.
    let mut next = prefix(name, longest_name(&folder).saturating_sub(NEXT.len()));
    next.push(&NEXT[1..]);
    Ok(folder.join(next))
}

/// Returns a number that no other process can guess: `RandomState` has its keys from the kernel.
fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

/// Gives a file the permissions and the owner of the one that it replaces, as `cp` leaves them. Only root can give a file to
/// somebody else; what others write is theirs.
fn keep_permissions(file: &File, replaced: &Metadata) -> io::Result<()> {
    let own = file.metadata()?;
    if (own.uid(), own.gid()) != (replaced.uid(), replaced.gid()) {
        let _ = fchown(file, Some(replaced.uid()), Some(replaced.gid()));
    }
    file.set_permissions(Permissions::from_mode(replaced.mode() & PERMISSIONS))
}

/// Returns the longest name in bytes that a file in `folder` can have.
fn longest_name(folder: &Path) -> usize {
    let stated = pathconf(folder, PathconfVar::NAME_MAX).ok().flatten();
    stated.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(LONGEST_NAME)
}

/// Returns how the names of all partial files of `name` begin, in at most `longest` bytes. A name that is too long for that
/// loses its end, in whose place stands a digest of all of it.
fn prefix(name: &OsStr, longest: usize) -> OsString {
    let mut prefix = [b".", name.as_bytes(), b"."].concat();
    if prefix.len() > longest {
        let digest = format!("~{}.", &hex(&Sha256::digest(name.as_bytes()))[..DIGEST_DIGITS]);
        prefix.truncate(longest.saturating_sub(digest.len()));
        prefix.extend_from_slice(digest.as_bytes());
    }
    OsString::from_vec(prefix)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("rootfs.ext4");
        fs::write(&place, "good").unwrap();
        let failed = Partial::begin(&place).unwrap();
        fs::write(failed.path(), "half").unwrap();
        drop(failed);
        assert_eq!(fs::read_to_string(&place).unwrap(), "good");
        assert_eq!(names(folder.path()), ["rootfs.ext4"]);
        let done = Partial::begin(&place).unwrap();
        fs::write(done.path(), "better").unwrap();
        done.publish().unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "better");
        assert_eq!(names(folder.path()), ["rootfs.ext4"]);
    }

    #[test]
    fn any_name_that_a_file_can_have_is_written_and_swept() {
        let folder = tempfile::tempdir().unwrap();
        let long = |last: &str| folder.path().join("x".repeat(LONGEST_NAME - 1) + last);
        let odd = folder.path().join(OsStr::from_bytes(&[b'\xff'; LONGEST_NAME]));
        for place in [long("a"), long("b"), odd] {
            let begun = Partial::begin(&place).unwrap();
            let own = begun.path().file_name().unwrap().len();
            fs::write(begun.path(), "whole").unwrap();
            begun.publish().unwrap();
            assert_eq!(fs::read_to_string(&place).unwrap(), "whole");
            assert!(own <= LONGEST_NAME && next(&place).unwrap().file_name().unwrap().len() <= LONGEST_NAME);
            drop(Partial::begin(&place).unwrap());
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        assert_ne!(prefix("aaaaaaaab".as_ref(), 8), prefix("aaaaaaaac".as_ref(), 8));
    }

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_replaced_with_its_permissions() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("elsewhere")).unwrap();
        fs::write(at("elsewhere/file"), "old").unwrap();
        fs::set_permissions(at("elsewhere/file"), Permissions::from_mode(0o440)).unwrap();
        std::os::unix::fs::symlink("elsewhere/file", at("link")).unwrap();
        let begun = Partial::begin(&at("link")).unwrap();
        assert_eq!(fs::metadata(begun.path()).unwrap().mode() & 0o7777, 0o640);
        fs::write(begun.path(), "new").unwrap();
        begun.publish().unwrap();
        assert!(at("link").is_symlink());
        assert_eq!(fs::read_to_string(at("elsewhere/file")).unwrap(), "new");
        assert_eq!(fs::metadata(at("elsewhere/file")).unwrap().mode() & 0o7777, 0o440);
        let error = Partial::begin(&at("elsewhere")).unwrap_err().to_string();
        assert!(error.contains("elsewhere is a folder, not a file"), "{error}");
    }

    #[test]
    fn what_a_killed_run_left_goes_and_what_a_running_one_holds_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".image.77.partial"), "killed").unwrap();
        fs::write(folder.path().join(".other.77.partial"), "not ours").unwrap();
        let held = File::create(folder.path().join(".image.1.partial")).unwrap();
        held.lock().unwrap();
        let begun = Partial::begin(&folder.path().join("image")).unwrap();
        let own = begun.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut expected = [".image.1.partial", ".other.77.partial", &own].map(str::to_owned).to_vec();
        expected.sort();
        assert_eq!(names(folder.path()), expected);
        drop(begun);
    }

    #[test]
    fn runs_at_once_write_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("image");
        let [one, two] = [(); 2].map(|()| Partial::begin(&place).unwrap());
        fs::write(one.path(), "one").unwrap();
        fs::write(two.path(), "two").unwrap();
        one.publish().unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "one");
        two.publish().unwrap();
        assert_eq!(fs::read_to_string(&place).unwrap(), "two");
    }

    #[test]
    fn what_others_put_beside_it_is_neither_written_to_nor_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("victim"), "theirs").unwrap();
        let planted = [at(".image.x.partial"), at(".image.y.partial")];
        std::os::unix::fs::symlink("victim", &planted[0]).unwrap();
        nix::unistd::mkfifo(&planted[1], nix::sys::stat::Mode::S_IRWXU).unwrap();
        let [begun, other] = [(); 2].map(|()| Partial::begin(&at("image")).unwrap());
        // Nothing can be planted where a run will write.
        assert_ne!(begun.path(), other.path());
        assert!(!begun.path().to_str().unwrap().contains(&std::process::id().to_string()));
        fs::write(begun.path(), "ours").unwrap();
        begun.publish().unwrap();
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "theirs");
        assert!(planted.iter().all(|path| path.symlink_metadata().is_ok()));
    }

    #[test]
    fn a_sweep_beside_it_takes_no_file_that_begins() {
        let folder = tempfile::tempdir().unwrap();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let sweeping = || {
                while !over.load(Ordering::Relaxed) {
                    Partial::sweep(folder.path(), "").unwrap();
                }
            };
            let sweeps = [scope.spawn(sweeping), scope.spawn(sweeping)];
            let gone = (0..3000).filter(|_| {
                let begun = Partial::begin(&folder.path().join("image")).unwrap();
                let gone = !begun.path().exists();
                drop(begun);
                gone
            });
            let gone = gone.count();
            over.store(true, Ordering::Relaxed);
            for sweep in sweeps {
                sweep.join().unwrap();
            }
            assert_eq!(gone, 0);
        });
    }
}
