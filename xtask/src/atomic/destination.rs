//! Where the user wants a result to go. It is decided before any work begins what the name leads to, and whether it may be
//! written: a regular file appears complete or not at all, a symlink is followed, a block device is written through, and all
//! else is refused.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Write, stdout};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};

use super::block_device::BlockDevice;
use super::partial::Partial;
use super::place::{Place, folder_of};
use super::scratch::Scratch;
use crate::error::Failure;
use crate::host::mounts;
use crate::report::progress::Progress;
use crate::report::shell;
use crate::report::streams::OpenFile;

/// The name of standard output.
const STANDARD_OUTPUT: &str = "-";

/// Bytes that are written at a time to a file or a stream.
const BUFFER: usize = 1 << 17;

/// What a result can be written to, beside a regular file and a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// Standard output and other open files; else what cannot be written to them, as in "an image".
    pub stream: Result<(), &'static str>,
    /// A block device, and whether the user said so with `--force`; `None` where the result is no image.
    pub device: Option<bool>,
}

impl Accepts {
    /// Regular files and new names only, for what a stream cannot take: `what`, as in "an image".
    pub fn files(what: &'static str) -> Self {
        Accepts { stream: Err(what), device: None }
    }

    /// What is written from front to back.
    pub const STREAMS: Self = Accepts { stream: Ok(()), device: None };
}

/// A place for one result.
#[derive(Debug)]
pub struct Destination {
    /// As the user named it.
    named: PathBuf,
    target: Target,
}

#[derive(Debug)]
enum Target {
    File { path: PathBuf, replaced: Option<Metadata> },
    Device { device: BlockDevice, identity: Identity, scratch: Scratch },
    Stream(File),
}

/// A file or a device, whatever the names for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, u64);

impl Identity {
    /// Of what the path leads to; `None` where nothing can be overwritten there: a pipe, a terminal, no file at all.
    pub fn of(path: &Path) -> Option<Self> {
        if path.as_os_str() == STANDARD_OUTPUT {
            Self::of_open(io::stdin())
        } else {
            Self::new(&fs::metadata(path).ok()?)
        }
    }

    fn of_open(file: impl AsFd) -> Option<Self> {
        Self::new(&File::from(file.as_fd().try_clone_to_owned().ok()?).metadata().ok()?)
    }

    fn new(about: &Metadata) -> Option<Self> {
        let kind = about.file_type();
        match (kind.is_file(), kind.is_block_device()) {
            (true, _) => Some(Identity(about.dev(), about.ino())),
            // Every node of the device; no inode has this number.
            (_, true) => Some(Identity(about.rdev(), 0)),
            _ => None,
        }
    }
}

impl Destination {
    /// Decides where a result goes that is to be written to `named`.
    pub fn new(named: &Path, accepts: Accepts) -> Result<Self> {
        let target = match named.as_os_str() == STANDARD_OUTPUT {
            true => Target::stream(stdout().as_fd(), named, accepts)?,
            false => Target::find(named, accepts)?,
        };
        Ok(Destination { named: named.to_path_buf(), target })
    }

    /// Returns the name that the user gave.
    pub fn named(&self) -> &Path {
        &self.named
    }

    /// Refuses to overwrite an input; `what` it is, as in "the tar that is packed".
    pub fn refuse_input(&self, input: Option<Identity>, what: &str) -> Result<()> {
        let own = self.identity();
        ensure!(
            own.is_none() || own != input,
            Failure::Usage(format!("{} is {what}\nhint: choose another name", self.shown()))
        );
        Ok(())
    }

    /// Refuses to write two results to one place.
    pub fn refuse_both(&self, other: &Destination) -> Result<()> {
        let same = match (&self.target, &other.target) {
            (Target::File { path: own, .. }, Target::File { path: others, .. }) => {
                let canonical =
                    |path: &Path| Some((folder_of(path).canonicalize().ok()?, path.file_name()?.to_owned()));
                canonical(own) == canonical(others)
            }
            _ => false,
        };
        ensure!(
            !same,
            Failure::Usage(format!(
                "{} and {} are the same file\nhint: name two",
                self.named.display(),
                other.named.display()
            ))
        );
        other.refuse_input(self.identity(), "the other output, too")
    }

    /// Whether it is standard output, by whatever name.
    pub fn is_stdout(&self) -> bool {
        let same = |stream: &File| -> Option<bool> {
            let stdout = File::from(stdout().as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
            let own = stream.metadata().ok()?;
            Some((own.dev(), own.ino()) == (stdout.dev(), stdout.ino()))
        };
        matches!(&self.target, Target::Stream(stream) if same(stream).unwrap_or(false))
    }

    /// Whether it is a terminal.
    pub fn is_terminal(&self) -> bool {
        matches!(&self.target, Target::Stream(stream) if io::IsTerminal::is_terminal(stream))
    }

    /// Returns the folder of the file; a device or a stream has none.
    pub fn folder(&self) -> Option<PathBuf> {
        match &self.target {
            Target::File { path, .. } => Some(folder_of(path)),
            Target::Device { .. } | Target::Stream(_) => None,
        }
    }

    /// Begins the file, which [`Self::finish`] puts in place. What a device is to hold is begun in a temporary folder
    /// (`TMPDIR`). A stream has no file.
    pub fn begin(&self) -> Result<Partial> {
        match &self.target {
            Target::File { path, replaced } => Partial::begin_there(path, replaced.clone()),
            Target::Device { scratch, .. } => Ok(Partial::begin_there(&scratch.path().join("image"), None)?
                .chosen_by("name a folder on another disk with TMPDIR")),
            Target::Stream(_) => bail!("{} takes a stream, not a file", self.shown()),
        }
    }

    /// Puts the complete file in place. Without `synced` it does not wait until a file is on the disk; for a device it does.
    pub fn finish(self, partial: Partial, synced: bool, progress: &Progress) -> Result<()> {
        match self.target {
            Target::Device { device, .. } => device.overwrite(partial.path(), progress)?,
            _ if synced => drop(partial.publish()?),
            _ => drop(partial.publish_unsynced()?),
        }
        Ok(())
    }

    /// Fails where [`Self::begin`] would, so that it is known before the work is done.
    pub fn probe(&self) -> Result<()> {
        match &self.target {
            Target::Stream(_) => Ok(()),
            Target::File { .. } | Target::Device { .. } => self.begin().map(drop),
        }
    }

    /// Writes the result from front to back by `write`, and puts it in place.
    pub fn write(self, progress: &Progress, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        self.write_behind(progress, || Ok(()), write)
    }

    /// As [`Self::write`], for what describes another result: once `first` has put that in place, a file takes its name, and a
    /// stream is written to.
    pub fn write_behind(
        self,
        progress: &Progress,
        first: impl FnOnce() -> Result<()>,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        self.write_file(progress, first, |file| {
            let mut buffer = BufWriter::with_capacity(BUFFER, OpenFile(file));
            write(&mut buffer)?;
            Ok(buffer.flush()?)
        })
    }

    /// As [`Self::write`], where another program writes to the file.
    pub fn write_by(self, progress: &Progress, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
        self.write_file(progress, || Ok(()), write)
    }

    fn write_file(
        self,
        progress: &Progress,
        first: impl FnOnce() -> Result<()>,
        write: impl FnOnce(&File) -> Result<()>,
    ) -> Result<()> {
        let cannot = format!("cannot write to {}", self.shown());
        if let Target::Stream(stream) = &self.target {
            first()?;
            return write(stream).context(cannot);
        }
        let partial = self.begin()?;
        let file = partial.file().context("cannot write a partial file")?;
        write(&file).map_err(|error| partial.explain(error)).context(cannot)?;
        first()?;
        self.finish(partial, true, progress)
    }

    /// Whether it is an open file of this process, standard output for one.
    pub fn is_stream(&self) -> bool {
        matches!(self.target, Target::Stream(_))
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        matches!(self.target, Target::Device { .. })
    }

    fn shown(&self) -> String {
        shown(&self.named)
    }

    /// What is there now and would be overwritten.
    fn identity(&self) -> Option<Identity> {
        match &self.target {
            Target::File { replaced, .. } => replaced.as_ref().and_then(Identity::new),
            Target::Device { identity, .. } => Some(*identity),
            Target::Stream(stream) => Identity::of_open(stream),
        }
    }
}

impl Target {
    fn find(named: &Path, accepts: Accepts) -> Result<Self> {
        match Place::find(named)? {
            Place::New(path) => Ok(Target::File { path, replaced: None }),
            Place::File(path, about) => {
                check_replaceable(&path)?;
                Ok(Target::File { path, replaced: Some(about) })
            }
            Place::BlockDevice(path) => Target::device(&path, named, accepts),
            Place::Open(number) => Target::open(number, named, accepts),
            Place::Special(what) => {
                let hint = match accepts.stream {
                    Ok(()) if what != "a folder" => format!("name a file, or `-` and > {}", shell::path(named)),
                    _ => "name a file".to_owned(),
                };
                bail!(Failure::Usage(format!("{} is {what}, not a file\nhint: {hint}", named.display())))
            }
        }
    }

    fn device(path: &Path, named: &Path, accepts: Accepts) -> Result<Self> {
        let name = named.display();
        match accepts.device {
            None => bail!(Failure::Usage(format!("{name} is a block device, and this is no image\nhint: name a file"))),
            Some(false) => bail!(Failure::Usage(format!(
                "{name} is a block device: what is on it would be lost\n\
                 hint: name a file, or give --force to overwrite the device"
            ))),
            Some(true) => {}
        }
        let about = fs::metadata(path).with_context(|| format!("cannot look at {name}"))?;
        let identity = Identity::new(&about).with_context(|| format!("{name} is no block device any more"))?;
        Ok(Target::Device {
            device: BlockDevice::claim(path)?,
            identity,
            scratch: Scratch::new().context("cannot make a temporary folder")?,
        })
    }

    /// An open file of this process, if it was handed over by whoever started this and can be written to.
    fn open(number: RawFd, named: &Path, accepts: Accepts) -> Result<Self> {
        let refuse = || {
            Failure::Usage(format!(
                "{} is not open for writing\nhint: name a file, or redirect it to one",
                named.display()
            ))
        };
        // SAFETY: the number is used for these two questions only, and a number that is not open is an error of theirs.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let flags = fcntl(file, FcntlArg::F_GETFD).map(FdFlag::from_bits_truncate);
        let mode = fcntl(file, FcntlArg::F_GETFL).map(OFlag::from_bits_truncate);
        // What this process has opened itself is closed on exec, as is all that the standard library opens.
        let inherited = flags.is_ok_and(|flags| number <= 2 || !flags.contains(FdFlag::FD_CLOEXEC));
        let writable = mode.is_ok_and(|mode| !matches!(mode & OFlag::O_ACCMODE, OFlag::O_RDONLY));
        ensure!(inherited && writable, refuse());
        Target::stream(file, named, accepts)
    }

    fn stream(file: BorrowedFd<'_>, named: &Path, accepts: Accepts) -> Result<Self> {
        if let Err(what) = accepts.stream {
            bail!(Failure::Usage(format!(
                "{} is a stream, and {what} is written here and there, not from front to back\nhint: name a file",
                shown(named)
            )));
        }
        Ok(Target::Stream(File::from(file.try_clone_to_owned().context("cannot use standard output")?)))
    }
}

fn shown(named: &Path) -> String {
    if named.as_os_str() == STANDARD_OUTPUT { "standard output".to_owned() } else { named.display().to_string() }
}

/// Refuses a file that its name cannot be taken from: as `cp` would, and what rename(2) would refuse at the end.
fn check_replaceable(path: &Path) -> Result<()> {
    let refuse = |why: String, hint: &str| {
        Err(anyhow::Error::new(Failure::Usage(format!("{} {why}\nhint: {hint}", path.display()))))
    };
    // Opening changes nothing, and fails where the file is read-only, immutable, in use as swap space, or on a read-only
    // filesystem.
    if let Err(error) = OpenOptions::new().write(true).open(path) {
        return refuse(format!("cannot be replaced: {error}"), "make it writable (chmod u+w), or choose another name");
    }
    if is_mount_point(path) {
        return refuse(
            "is a mount point, whose file cannot be replaced".to_owned(),
            "mount the folder that it is in, or choose another name",
        );
    }
    Ok(())
}

/// Whether a file is mounted at the path itself, as container engines mount single files.
fn is_mount_point(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    mounts::mounts().unwrap_or_default().iter().any(|mount| mount.point == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(named: &Path, accepts: Accepts) -> String {
        Destination::new(named, accepts).unwrap_err().to_string()
    }

    #[test]
    fn only_files_and_what_is_asked_for_are_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let image = Accepts::files("an image");
        assert!(refused("-".as_ref(), image).contains("standard output is a stream, and an image"));
        assert!(refused("/dev/stderr".as_ref(), image).contains("/dev/stderr is a stream"));
        assert!(refused("/dev/fd/7654".as_ref(), Accepts::STREAMS).contains("is not open for writing"));
        assert!(
            refused("/dev/null".as_ref(), image).contains("/dev/null is a character device, not a file\nhint: name a")
        );
        assert!(refused("/dev/null".as_ref(), Accepts::STREAMS).contains("or `-` and > /dev/null"));
        assert!(refused(&at("new/file"), image).contains("hint: mkdir -p "));
        assert!(!at("new").exists());
        let stream = Destination::new("/dev/stderr".as_ref(), Accepts::STREAMS).unwrap();
        assert!(stream.begin().is_err() && stream.probe().is_ok());
        let own = File::create(at("own")).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&own);
        assert!(refused(format!("/proc/self/fd/{number}").as_ref(), Accepts::STREAMS).contains("is not open"));
    }

    #[test]
    fn no_input_and_no_other_output_is_overwritten_whatever_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("tar"), "").unwrap();
        fs::hard_link(at("tar"), at("again")).unwrap();
        std::os::unix::fs::symlink("tar", at("link")).unwrap();
        let to = |name: &str| Destination::new(&at(name), Accepts::STREAMS).unwrap();
        let tar = Identity::of(&at("tar"));
        for name in ["tar", "again", "link"] {
            let error = to(name).refuse_input(tar, "the tar").unwrap_err().to_string();
            assert!(error.ends_with("is the tar\nhint: choose another name"), "{error}");
            assert!(to("tar").refuse_both(&to(name)).is_err(), "{name}");
        }
        to("new").refuse_input(tar, "the tar").unwrap();
        to("new").refuse_input(None, "the tar").unwrap();
        std::os::unix::fs::symlink(at("new"), at("to-new")).unwrap();
        assert!(to("new").refuse_both(&to("to-new")).is_err());
        to("new").refuse_both(&to("newer")).unwrap();
        to("new").refuse_both(&to("tar")).unwrap();
    }
}
