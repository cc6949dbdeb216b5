//! What is measured: `cp` as the baseline, this tool's writer, and other programs where they are installed.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use snug_process::program::HostProgram;

use crate::filesystem::erofs::ErofsUtils;
use crate::report::progress::Progress;

/// Size of the filesystems that mke2fs makes, relative to our image: mke2fs does not compute the size that a tree needs.
const SIZE_RATIO: f64 = 1.3;
/// The unit of mke2fs's sizes, in bytes.
const MEBIBYTE: u64 = 1 << 20;

const CP: HostProgram = HostProgram { name: "cp", package: "coreutils" };
const TAR: HostProgram = HostProgram { name: "tar", package: "tar" };
const MKE2FS: HostProgram = HostProgram { name: "mke2fs", package: "e2fsprogs" };
const MKSQUASHFS: HostProgram = HostProgram { name: "mksquashfs", package: "squashfs-tools" };
const TAR2SQFS: HostProgram = HostProgram { name: "tar2sqfs", package: "squashfs-tools-ng" };
const UNSHARE: HostProgram = HostProgram { name: "unshare", package: "util-linux" };

/// One program, or way of running it, to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate {
    Copy,
    File,
    FileDigest,
    FileDigests,
    FileOnDisk,
    Pipe,
    Extract,
    Mke2fs,
    Loop,
    Tar2sqfs,
    Mksquashfs,
    Erofs,
}

/// The files of a benchmark, and their sizes.
#[derive(Debug)]
pub struct Bench {
    pub tar: PathBuf,
    /// The folder for outputs, all on one filesystem.
    pub scratch: PathBuf,
    /// This program's executable.
    pub xtask: PathBuf,
    /// Size of our image without headroom, in bytes.
    pub image_bytes: u64,
    pub inodes: u64,
}

impl Candidate {
    pub const ALL: [Candidate; 12] = [
        Candidate::Copy,
        Candidate::File,
        Candidate::FileDigest,
        Candidate::FileDigests,
        Candidate::FileOnDisk,
        Candidate::Pipe,
        Candidate::Extract,
        Candidate::Mke2fs,
        Candidate::Loop,
        Candidate::Tar2sqfs,
        Candidate::Mksquashfs,
        Candidate::Erofs,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Candidate::Copy => "cp",
            Candidate::File => "snug",
            Candidate::FileDigest => "snug-digest",
            Candidate::FileDigests => "snug-digests",
            Candidate::FileOnDisk => "snug-on-disk",
            Candidate::Pipe => "snug-pipe",
            Candidate::Extract => "tar-extract",
            Candidate::Mke2fs => "mke2fs",
            Candidate::Loop => "loop",
            Candidate::Tar2sqfs => "tar2sqfs",
            Candidate::Mksquashfs => "mksquashfs",
            Candidate::Erofs => "mkfs.erofs",
        }
    }

    /// Returns the heading of its row in the table.
    pub fn title(self) -> &'static str {
        match self {
            Candidate::Copy => "cp --reflink=never",
            Candidate::File => "snug, from a file",
            Candidate::FileDigest => "snug, and the image's SHA-256",
            Candidate::FileDigests => "snug, and that of every file",
            Candidate::FileOnDisk => "snug, the same, syncing ahead",
            Candidate::Pipe => "snug, from a pipe",
            Candidate::Extract => "tar -x, for mke2fs",
            Candidate::Mke2fs => "mke2fs -d, after tar -x",
            Candidate::Loop => "mkfs.ext4, loop mount, tar -x",
            Candidate::Tar2sqfs => "tar2sqfs, zstd 15",
            Candidate::Mksquashfs => "mksquashfs -tar, zstd 15",
            Candidate::Erofs => "mkfs.erofs --tar=f, lz4hc 12",
        }
    }

    /// Returns why it cannot be measured on this host; `None` if it can.
    pub fn obstacle(self) -> Option<String> {
        let missing = |tools: &[HostProgram]| {
            let tool = tools.iter().find(|tool| tool.find().is_none())?;
            Some(tool.missing().in_a_line())
        };
        match self {
            Candidate::Copy
            | Candidate::File
            | Candidate::FileDigest
            | Candidate::FileDigests
            | Candidate::FileOnDisk
            | Candidate::Pipe => None,
            Candidate::Extract => missing(&[TAR]),
            Candidate::Mke2fs => missing(&[TAR, MKE2FS]),
            Candidate::Loop if !nix::unistd::geteuid().is_root() => Some("mounting needs root".into()),
            Candidate::Loop => missing(&[UNSHARE, MKE2FS, TAR]),
            Candidate::Tar2sqfs => missing(&[TAR2SQFS]),
            Candidate::Mksquashfs => missing(&[MKSQUASHFS]),
            Candidate::Erofs => ErofsUtils::must_be_fetched()
                .then(|| "this host has no mkfs.erofs 1.8 or newer, and no erofs image has fetched one".to_owned()),
        }
    }

    /// Returns how many of the `wanted` rounds to run: compressing takes minutes, and hardly varies.
    pub fn rounds(self, wanted: usize) -> usize {
        match self {
            Candidate::Tar2sqfs | Candidate::Mksquashfs | Candidate::Erofs => wanted.min(1),
            _ => wanted,
        }
    }

    /// Returns whether the tar comes through a pipe.
    fn is_fed(self) -> bool {
        matches!(self, Candidate::Pipe | Candidate::Tar2sqfs | Candidate::Mksquashfs | Candidate::Erofs)
    }
}

impl Bench {
    /// Returns the file or folder that a candidate writes.
    pub fn output(&self, candidate: Candidate) -> PathBuf {
        let name = match candidate {
            Candidate::Copy => "copy.tar",
            Candidate::Extract => "extracted",
            Candidate::Tar2sqfs | Candidate::Mksquashfs => "image.squashfs",
            Candidate::Erofs => "image.erofs",
            _ => "image.ext4",
        };
        self.scratch.join(name)
    }

    pub fn command(&self, candidate: Candidate) -> Result<Command> {
        let output = self.output(candidate);
        match candidate {
            Candidate::Copy => {
                let mut command = CP.command()?;
                command.arg("--reflink=never").arg(&self.tar).arg(&output);
                Ok(command)
            }
            // Like `cp`, without syncing.
            Candidate::File => Ok(self.pack(&self.tar, &output, &["--no-digest", "--no-sync"])),
            Candidate::Pipe => Ok(self.pack(Path::new("-"), &output, &["--no-digest", "--no-sync"])),
            Candidate::FileDigest => Ok(self.pack(&self.tar, &output, &["--no-sync"])),
            Candidate::FileDigests => {
                let mut command = self.command(Candidate::FileOnDisk)?;
                command.arg("--no-sync");
                Ok(command)
            }
            // As a build writes an image.
            Candidate::FileOnDisk => {
                let mut command = self.pack(&self.tar, &output, &[]);
                command.arg("--contents").arg(self.scratch.join("contents.mtree"));
                Ok(command)
            }
            Candidate::Extract => {
                std::fs::create_dir_all(&output)?;
                let mut command = TAR.command()?;
                command.arg("-xpf").arg(&self.tar).args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]);
                command.arg("-C").arg(&output);
                Ok(command)
            }
            Candidate::Mke2fs => {
                let mut command = MKE2FS.command()?;
                command.env("MKE2FS_CONFIG", "/dev/null").args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"]);
                command.args(["-I", "256", "-N", &self.mke2fs_inodes().to_string(), "-d"]);
                command.arg(self.output(Candidate::Extract)).arg(&output).arg(self.mke2fs_size());
                Ok(command)
            }
            Candidate::Loop => {
                // The mount is in a namespace of its own, and is gone with its last process, however that ends.
                let mut command = UNSHARE.command()?;
                command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-ec"]);
                command.arg(
                    r#"mke2fs -q -F -t ext4 -b 4096 -m 0 -I 256 -N "$3" "$1" "$4"
                    mkdir -p "$1.mounted"
                    mount -o loop "$1" "$1.mounted"
                    tar -xpf "$2" --numeric-owner --xattrs '--xattrs-include=*' -C "$1.mounted"
                    umount "$1.mounted"
                    rmdir "$1.mounted""#,
                );
                command.arg("sh").arg(&output).arg(&self.tar);
                command.arg(self.mke2fs_inodes().to_string()).arg(self.mke2fs_size());
                Ok(command)
            }
            Candidate::Tar2sqfs => {
                let mut command = TAR2SQFS.command()?;
                command.args(["--quiet", "--force", "--compressor", "zstd", "--comp-extra", "level=15"]);
                command.args(["--block-size", "1048576"]).arg(&output);
                Ok(command)
            }
            Candidate::Mksquashfs => {
                let mut command = MKSQUASHFS.command()?;
                command.arg("-").arg(&output).args(["-tar", "-noappend", "-quiet", "-no-progress", "-b", "1048576"]);
                command.args(["-comp", "zstd", "-Xcompression-level", "15"]);
                Ok(command)
            }
            Candidate::Erofs => {
                let mut command = ErofsUtils::find(&Progress::hidden())?.command("mkfs.erofs")?;
                command.args(["--quiet", "--tar=f", "-zlz4hc,level=12", "-C65536", "-Eztailpacking"]).arg(&output);
                Ok(command)
            }
        }
    }

    /// Returns the command that packs `tar` without headroom and journal, so that digests compare content.
    pub fn pack(&self, tar: &Path, output: &Path, more: &[&str]) -> Command {
        let mut command = Command::new(&self.xtask);
        command.arg("pack").arg(tar).arg("-o").arg(output);
        command.args(["--filesystem", "ext4", "--headroom", "1.0", "--no-journal"]).args(more);
        command
    }

    /// Opens the tar, for a candidate that reads it from a pipe.
    pub fn feed(&self, candidate: Candidate) -> Result<Option<File>> {
        if !candidate.is_fed() {
            return Ok(None);
        }
        Ok(Some(File::open(&self.tar).with_context(|| format!("cannot open {}", self.tar.display()))?))
    }

    fn mke2fs_size(&self) -> String {
        let mebibytes = (self.image_bytes as f64 * SIZE_RATIO) as u64 / MEBIBYTE + 64;
        format!("{mebibytes}M")
    }

    fn mke2fs_inodes(&self) -> u64 {
        self.inodes + self.inodes / 4
    }

    /// Returns the bytes that must be free: the largest outputs that exist at once are an extracted tree and an image.
    pub fn space_needed(tar_bytes: u64) -> u64 {
        (tar_bytes as f64 * (1.3 + 1.3 * SIZE_RATIO)) as u64
    }
}
