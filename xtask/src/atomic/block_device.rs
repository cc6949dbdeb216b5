//! A block device that is overwritten with an image.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::sys::stat::{major, minor};
use snug_process::interrupt;
use snug_rootfs::holes::data_ranges;

use crate::error::Failure;
use crate::host::mounts;
use crate::report::progress::{Progress, Stage, human_bytes};
use crate::report::screen;

/// Bytes of one write to the device.
const CHUNK: usize = 1 << 20;

/// A block device that nobody else uses, and that nobody else can mount while this exists.
#[derive(Debug)]
pub(super) struct BlockDevice {
    path: PathBuf,
    file: File,
    /// In bytes.
    size: u64,
}

impl BlockDevice {
    /// Opens the device for itself alone: the kernel refuses `O_EXCL` (open(2)) where the device or a partition of it is
    /// mounted in any namespace, swap, or part of another device (LVM, RAID, dm-crypt).
    pub(super) fn claim(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).custom_flags(OFlag::O_EXCL.bits()).open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => bail!(Failure::Usage(format!(
                "{} is in use: {}\nhint: release it first, or name another device",
                path.display(),
                user_of(path)
            ))),
            Err(error) => bail!(Failure::Usage(format!(
                "{} cannot be written: {error}\nhint: name a device that exists and that you may write to",
                path.display()
            ))),
        };
        let size = file.seek(SeekFrom::End(0)).with_context(|| format!("cannot measure {}", path.display()))?;
        ensure!(
            size > 0,
            Failure::Usage(format!("{} has no space: nothing is behind it\nhint: name another device", path.display()))
        );
        Ok(BlockDevice { path: path.to_path_buf(), file, size })
    }

    /// Overwrites the device with the image, its holes with zeros, and waits until all is on the disk. What lies behind the
    /// image on the device stays as it was. An image that does not fit is refused before the first byte.
    pub(super) fn overwrite(mut self, image: &Path, progress: &Progress) -> Result<()> {
        let mut source = File::open(image).context("cannot read the image")?;
        let length = source.metadata()?.len();
        let place = self.path.display().to_string();
        ensure!(
            length <= self.size,
            Failure::Usage(format!(
                "the image takes {}, and {place} has {}: nothing was written to it\nhint: name a larger device, or \
                 leave less free space with --headroom",
                human_bytes(length),
                human_bytes(self.size)
            ))
        );
        let warning = format!("warning: {place}: the device is written in part only");
        let mut interrupted = interrupt::say_on_interrupt(warning, screen::say);
        let stage = progress.stage(format!("write to {place}"));
        stage.expect_bytes(length);
        let written = self.copy(&mut source, length, &stage).and_then(|()| self.file.sync_all());
        written.with_context(|| format!("cannot write to {place}, which is written in part only"))?;
        interrupted.forget();
        stage.finish(&human_bytes(length));
        Ok(())
    }

    fn copy(&mut self, source: &mut File, length: u64, stage: &Stage) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut position = 0;
        for part in data_ranges(source, length)? {
            self.zero(position, part.start - position, &mut buffer, stage)?;
            source.seek(SeekFrom::Start(part.start))?;
            self.file.seek(SeekFrom::Start(part.start))?;
            let mut left = part.end - part.start;
            while left > 0 {
                let part = &mut buffer[..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
                source.read_exact(part)?;
                self.file.write_all(part)?;
                left -= part.len() as u64;
                stage.advance(part.len() as u64);
            }
            position = part.end;
        }
        self.zero(position, length - position, &mut buffer, stage)
    }

    /// Zeros a range: the kernel has the device do it where the device can (`BLKZEROOUT`), and writes zeros where not.
    fn zero(&mut self, from: u64, length: u64, buffer: &mut [u8], stage: &Stage) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        let range = i64::try_from(from).ok().zip(i64::try_from(length).ok());
        if range.is_some_and(|(from, length)| {
            fallocate(&self.file, FallocateFlags::FALLOC_FL_ZERO_RANGE, from, length).is_ok()
        }) {
            stage.advance(length);
            return Ok(());
        }
        buffer.fill(0);
        self.file.seek(SeekFrom::Start(from))?;
        let mut left = length;
        while left > 0 {
            let part = &buffer[..usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
            self.file.write_all(part)?;
            left -= part.len() as u64;
            stage.advance(part.len() as u64);
        }
        Ok(())
    }
}

/// Who uses a device that cannot be opened, as far as this process can see.
fn user_of(path: &Path) -> String {
    let Ok(device) = fs::metadata(path).map(|about| about.rdev()) else { return "by whom cannot be told".to_owned() };
    let number = format!("{}:{}", major(device), minor(device));
    if let Some(mount) = mounts::mounts().unwrap_or_default().iter().find(|mount| mount.device == number) {
        return format!("it is mounted at {}", mount.point.display());
    }
    let same = |name: &str| fs::metadata(name).is_ok_and(|about| about.rdev() == device);
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    if swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next()).any(same) {
        return "it is swap space".to_owned();
    }
    let holders = fs::read_dir(format!("/sys/dev/block/{number}/holders")).into_iter().flatten().flatten();
    let holders: Vec<String> = holders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    match holders.is_empty() {
        true => "it or a part of it is mounted elsewhere, or another program holds it".to_owned(),
        false => format!("it is part of {}", holders.join(", ")),
    }
}
