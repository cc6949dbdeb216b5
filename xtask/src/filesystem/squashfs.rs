//! squashfs by `tar2sqfs` of squashfs-tools-ng, or by `mksquashfs -tar`. Both read the tree as a tar from a pipe: no file of the
//! tree is created on disk, and owners, devices and xattrs need no privileges.

mod compression;
mod tables;

use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snug_ext4::Census;
use snug_ext4::size::SizePolicy;
use snug_formats::{FilesystemKind, SquashfsOptions};
use snug_process::child;
use snug_process::program::{HostProgram, install_command};
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::image_time;
use snug_rootfs::tree::{RootTree, TreePath};

pub use self::compression::{Algorithm, Compression, CompressionError};
use self::tables::census;
use crate::error::Failure;
use crate::filesystem::FilesystemWriter;
use crate::report::progress::Stage;

const TAR2SQFS: HostProgram = HostProgram { name: "tar2sqfs", package: "squashfs-tools-ng" };
const MKSQUASHFS: HostProgram = HostProgram { name: "mksquashfs", package: "squashfs-tools" };

/// Bytes of a data block: the kernel reads the powers of two in this range.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// Writes a tree as squashfs.
#[derive(Debug, Clone)]
pub struct SquashfsWriter {
    compression: Compression,
    block_size: u32,
    program: Program,
    jobs: Option<usize>,
}

/// The first version of mksquashfs with `-tar`.
const READS_TAR: (u32, u32) = (4, 5);

/// Which program writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Keeps every xattr, hard link and device, and the attributes of the root.
    Tar2sqfs,
    /// From version 4.5 on, which reads tar streams. Loses xattrs and mtime of the root directory.
    Mksquashfs,
}

impl Program {
    /// Fails if the program is missing or too old to read tar streams.
    pub fn probe(self) -> Result<()> {
        let tool = match self {
            Program::Tar2sqfs => TAR2SQFS,
            Program::Mksquashfs => MKSQUASHFS,
        };
        if tool.find().is_none() {
            return Err(tool.missing().into());
        }
        if self == Program::Mksquashfs {
            let said = child::run(MKSQUASHFS.command()?.arg("-version"), &[1])?;
            let version = mksquashfs_version(&String::from_utf8_lossy(&said));
            let (major, minor) = version.context("mksquashfs does not state its version")?;
            ensure!(
                (major, minor) >= READS_TAR,
                Failure::Unsupported(format!(
                    "mksquashfs {major}.{minor} cannot read tar streams; {}.{} is the first version that can\nhint: {}",
                    READS_TAR.0,
                    READS_TAR.1,
                    install_command(&TAR2SQFS.missing().lacked)
                ))
            );
        }
        Ok(())
    }
}

impl SquashfsWriter {
    /// A writer with these options, if they are valid, and with a program that this host has.
    pub fn new(options: &SquashfsOptions) -> Result<Self> {
        let program = match (Program::Tar2sqfs.probe(), Program::Mksquashfs.probe()) {
            (Ok(()), _) => Program::Tar2sqfs,
            (_, Ok(())) => Program::Mksquashfs,
            (Err(missing), _) => return Err(missing),
        };
        Self::with_program(options, program)
    }

    /// As [`Self::new`], with this program.
    pub fn with_program(options: &SquashfsOptions, program: Program) -> Result<Self> {
        let block_size = options.block_size;
        ensure!(
            block_size.is_power_of_two() && BLOCK_SIZES.contains(&block_size),
            "squashfs block-size {block_size} is not a power of two between 4096 and 1048576"
        );
        Ok(SquashfsWriter { compression: options.compression.parse()?, block_size, program, jobs: None })
    }

    /// Compresses in this many threads instead of one for each core; the image has the same bytes.
    pub fn jobs(self, jobs: usize) -> Self {
        SquashfsWriter { jobs: Some(jobs), ..self }
    }

    fn command(&self, tree: &RootTree, output: &Path, time: u32) -> Result<Command> {
        let Compression { algorithm, level } = self.compression;
        let jobs = self.jobs.map(|jobs| jobs.to_string());
        let block_size = self.block_size.to_string();
        match self.program {
            Program::Tar2sqfs => {
                let mut command = TAR2SQFS.command()?;
                command.args(["--quiet", "--force", "--no-skip", "--compressor", algorithm.as_str()]);
                command.args(["--block-size", &block_size]).env("SOURCE_DATE_EPOCH", time.to_string());
                match level {
                    Some(level) => drop(command.args(["--comp-extra", &format!("level={level}")])),
                    None if algorithm == Algorithm::Lz4 => drop(command.args(["--comp-extra", "hc"])),
                    None => {}
                }
                if let Some(jobs) = &jobs {
                    command.args(["--num-jobs", jobs]);
                }
                command.arg(output);
                Ok(command)
            }
            Program::Mksquashfs => {
                let root = tree.get(&TreePath::root()).context("the tree has no root")?;
                let mut command = MKSQUASHFS.command()?;
                // SOURCE_DATE_EPOCH, which is not in the command's environment, together with -mkfs-time would be an error.
                command.arg("-").arg(output).args(["-tar", "-noappend", "-quiet", "-no-progress"]);
                command.args(["-comp", algorithm.as_str(), "-b", &block_size, "-mkfs-time", &time.to_string()]);
                // The entry `./` of the stream is ignored.
                command.args(["-root-mode", &format!("{:o}", root.mode)]);
                command.args(["-root-uid", &root.uid.to_string(), "-root-gid", &root.gid.to_string()]);
                match level {
                    Some(level) => drop(command.args(["-Xcompression-level", &level.to_string()])),
                    None if algorithm == Algorithm::Lz4 => drop(command.arg("-Xhc")),
                    None => {}
                }
                if let Some(jobs) = &jobs {
                    command.args(["-processors", jobs]);
                }
                Ok(command)
            }
        }
    }
}

impl FilesystemWriter for SquashfsWriter {
    fn kind(&self) -> FilesystemKind {
        FilesystemKind::Squashfs
    }

    /// The policy is ignored: a read-only image is as large as its compressed content.
    fn write(&self, tree: &RootTree, _policy: &SizePolicy, output: &Path, stage: &Stage) -> Result<Census> {
        let time = u32::try_from(image_time(tree).clamp(0, i64::from(u32::MAX))).expect("was clamped");
        let mut command = self.command(tree, output, time)?;
        stage.detail("compressing");
        child::feed(&mut command, &[], |input| feed_tar(tree, input, stage))?;
        census(output, &self.writer_name()?)
    }
}

impl SquashfsWriter {
    fn writer_name(&self) -> Result<String> {
        let (tool, flag) = match self.program {
            Program::Tar2sqfs => (TAR2SQFS, "--version"),
            Program::Mksquashfs => (MKSQUASHFS, "-version"),
        };
        // mksquashfs 4.5 exits with status 0 or 1, depending on its patch level.
        let said = child::run(tool.command()?.arg(flag), &[1])?;
        let first = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
        Ok(first.replace(" version ", " ").split(" (20").next().unwrap_or_default().to_owned())
    }
}

fn mksquashfs_version(said: &str) -> Option<(u32, u32)> {
    let mut numbers = said.split_once("version ")?.1.split(|ch: char| !ch.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Writes the tree as a tar without extensions that the programs do not read, and reports progress.
fn feed_tar(tree: &RootTree, input: &mut dyn Write, stage: &Stage) -> Result<()> {
    let mut said = 0;
    tar::write(tree, input, TarOptions::PLAIN, &mut |written| {
        stage.advance(written - said);
        said = written;
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::report::progress::Progress;
    use snug_tests::trees::{Lost, Mounted, compare, sample_tree};
    use snug_tests::{have, is_root};

    fn write(tree: &RootTree, writer: &SquashfsWriter, output: &Path) -> Result<Census> {
        writer.write(tree, &SizePolicy::default(), output, &Progress::hidden().stage("test"))
    }

    fn options() -> SquashfsOptions {
        SquashfsOptions { compression: "zstd:3".into(), ..SquashfsOptions::default() }
    }

    #[test]
    fn the_same_image_from_any_number_of_threads() {
        if !have(&["tar2sqfs"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let writer = SquashfsWriter::with_program(&options(), Program::Tar2sqfs).unwrap();
        let images = [1, 2, 5].map(|jobs| {
            let image = folder.path().join(jobs.to_string());
            write(&sample_tree(), &writer.clone().jobs(jobs), &image).unwrap();
            fs::read(image).unwrap()
        });
        assert!(images[0] == images[1] && images[1] == images[2]);
    }

    #[test]
    fn the_census_accounts_for_every_byte() {
        if !have(&["tar2sqfs", "mksquashfs"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for program in [Program::Tar2sqfs, Program::Mksquashfs] {
            let image = folder.path().join("image");
            // The caller has it locked: it is filled, and not replaced.
            fs::write(&image, [0; 1 << 20]).unwrap();
            let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&image).unwrap());
            let before = inode();
            let census =
                write(&sample_tree(), &SquashfsWriter::with_program(&options(), program).unwrap(), &image).unwrap();
            assert_eq!(census.size, fs::metadata(&image).unwrap().len());
            assert_eq!(inode(), before);
            let mkfs_time = fs::read(&image).unwrap()[8..12].to_vec();
            assert_eq!(mkfs_time, 1_700_000_001_u32.to_le_bytes(), "{program:?}");
            assert_eq!(census.parts.iter().map(|part| part.bytes).sum::<u64>(), census.size);
            let names: Vec<&str> = census.parts.iter().map(|part| part.name.as_str()).collect();
            for name in ["superblock", "file data", "inodes", "directories", "id table", "xattrs"] {
                assert!(names.contains(&name), "{names:?}");
            }
        }
    }

    /// All that the format can store, judged by the kernel.
    #[test]
    fn the_kernel_reads_the_same_tree() {
        if !have(&["tar2sqfs", "mksquashfs", "mount"]) || !is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for program in [Program::Tar2sqfs, Program::Mksquashfs] {
            let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
            let _ = fs::remove_file(&image);
            fs::create_dir_all(&place).unwrap();
            let tree = sample_tree();
            write(&tree, &SquashfsWriter::with_program(&options(), program).unwrap(), &image).unwrap();
            let mounted = Mounted::new(&image, "squashfs", &place);
            // mksquashfs 4.5 does not keep the root's mtime and xattrs.
            compare(&tree, &place, Lost { root: program == Program::Mksquashfs, directory_links: true });
            drop(mounted);
        }
    }

    #[test]
    fn a_program_that_cannot_write_is_quoted() {
        if !have(&["tar2sqfs"]) {
            return;
        }
        let writer = SquashfsWriter::with_program(&options(), Program::Tar2sqfs).unwrap();
        let error = write(&sample_tree(), &writer, Path::new("/proc/no/such/folder/image")).unwrap_err();
        insta::assert_snapshot!(error, @r"
        tar2sqfs failed with exit status 1
          /proc/no/such/folder/image: No such file or directory
        ");
    }

    #[test]
    fn a_block_size_that_the_kernel_cannot_read_is_refused() {
        let odd = SquashfsOptions { block_size: 5000, ..options() };
        assert!(SquashfsWriter::with_program(&odd, Program::Tar2sqfs).is_err());
    }

    #[test]
    fn versions_of_mksquashfs_are_parsed() {
        assert_eq!(mksquashfs_version("mksquashfs version 4.5.1 (2022/03/17)\n"), Some((4, 5)));
        assert_eq!(mksquashfs_version("mksquashfs version 4.6 (2023)\n"), Some((4, 6)));
        assert_eq!(mksquashfs_version("something else"), None);
    }
}
