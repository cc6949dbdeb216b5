//! ext4 by `mke2fs -d`, or by the kernel in an empty filesystem of mke2fs ([`LoopWriter`]), with exactly the free blocks and
//! inodes that the policy asks for.
//!
//! How many blocks a tree takes is known only afterwards: mke2fs turns blocks of zeros into holes, and both pack directories
//! in their own way. So an image of an estimated size is made and measured. It is then changed to its final size by `resize2fs`
//! if only the end of the last block group moves, and made anew if the number of groups or inodes changes.
//!
//! mke2fs 1.47 copies times as 32 bits: fractions of seconds and times after 2038 are lost. The images are not guaranteed to be
//! reproducible; those of the native writer are.

mod attributes;
mod estimate;
mod loop_mount;
mod materialised;
mod overhead;
mod superblock;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use snug_ext4::identity::{Identity, uuid_text};
use snug_ext4::size::{self, BLOCK_SIZE, Demand, SizeDecision, SizePolicy};
use snug_ext4::{Census, Part};
use snug_formats::{Ext4Options, FilesystemKind};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::adjustments::Adjustments;
use snug_rootfs::tree::{RootTree, image_time};

pub use self::loop_mount::{LoopWriter, VERB as LOOP_VERB, inside_main as loop_main};
pub use self::materialised::MaterialisedTree;

use self::materialised::InNamespace;
use self::overhead::MeasuredOverhead;
use self::superblock::Superblock;
use crate::filesystem::FilesystemWriter;
use crate::report::progress::Stage;

const MKE2FS: HostProgram = HostProgram { name: "mke2fs", package: "e2fsprogs" };
const RESIZE2FS: HostProgram = HostProgram { name: "resize2fs", package: "e2fsprogs" };

/// On-disk features, those of the native writer; all are listed, so that the host's mke2fs.conf has no effect.
const FEATURES: &str = "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,\
                        metadata_csum,metadata_csum_seed,sparse_super,64bit";
/// Bytes of an inode, enough for times in nanoseconds and small xattrs.
const INODE_SIZE: u64 = 256;
/// Blocks of the root and of lost+found (16 KiB) as mke2fs makes them; they count as content.
const OWN_DIRECTORY_BLOCKS: u64 = 5;
/// A filesystem can grow to this many times its size, and at least to [`GROWTH_MIN`], unless the spec says otherwise.
const GROWTH_FACTOR: u64 = 16;
/// 64 GiB in blocks.
const GROWTH_MIN: u64 = 64 << 30 >> 12;
/// The resize inode has 32-bit block numbers.
const GROWTH_MAX: u64 = u32::MAX as u64;
/// Attempts to find a size. One is usual; a second one is needed if the number of block groups changes.
const RUNS_MAX: usize = 8;

/// Writes a tree as ext4 by mke2fs.
#[derive(Debug, Clone)]
pub struct Mke2fsWriter {
    options: Ext4Options,
}

impl Mke2fsWriter {
    /// A writer with these options, if they are valid and this host has the programs.
    pub fn new(options: &Ext4Options) -> Result<Self> {
        check(options, &[MKE2FS, RESIZE2FS, attributes::DEBUGFS])?;
        Ok(Mke2fsWriter { options: options.clone() })
    }

    /// Writes `tree`, which `files` has on disk.
    pub fn write_materialised(
        &self,
        tree: &RootTree,
        files: &dyn MaterialisedTree,
        policy: &SizePolicy,
        output: &Path,
        stage: &Stage,
    ) -> Result<Census> {
        let run = Run { settings: Settings::new(tree, &self.options), tree, content: &Copied(files), output, stage };
        run.search(policy)
    }
}

/// Refuses options that mke2fs does not accept, and a host without the programs.
fn check(options: &Ext4Options, tools: &[HostProgram]) -> Result<()> {
    for tool in tools {
        tool.command()?;
    }
    ensure!(options.reserved_percent <= 50, "reserved-percent {} is more than 50", options.reserved_percent);
    if let Some(label) = &options.label {
        ensure!(label.len() <= 16, "the label `{label}` is longer than the 16 bytes that ext4 has for it");
    }
    Ok(())
}

impl FilesystemWriter for Mke2fsWriter {
    fn kind(&self) -> FilesystemKind {
        FilesystemKind::Ext4
    }

    fn write(&self, tree: &RootTree, policy: &SizePolicy, output: &Path, stage: &Stage) -> Result<Census> {
        stage.detail("materialising the tree");
        let files = InNamespace::new(tree, stage)?;
        self.write_materialised(tree, &files, policy, output, stage)
    }
}

/// Whether resize2fs changes one size to the other by moving nothing but the end of the last group.
fn within_last_group(from: &SizeDecision, to: &SizeDecision) -> bool {
    from.total_inodes == to.total_inodes && from.overhead == to.overhead
}

/// Whether mke2fs (ext2fs error table, `EXT2_ET_BLOCK_ALLOC_FAIL`, `EXT2_ET_INODE_ALLOC_FAIL`, `EXT2_ET_DIR_NO_SPACE`) or the
/// kernel (`ENOSPC`) reports that the tree does not fit.
fn is_full(error: &anyhow::Error) -> bool {
    let said = format!("{error:#}");
    ["Could not allocate block", "Could not allocate inode", "No free space in", "No space left on device"]
        .iter()
        .any(|text| said.contains(text))
}

/// The settings of an image that do not depend on its size.
#[derive(Debug, Clone)]
struct Settings {
    options: Ext4Options,
    uuid: String,
    hash_seed: String,
    /// Seconds since the epoch.
    time: String,
}

impl Settings {
    fn new(tree: &RootTree, options: &Ext4Options) -> Self {
        let identity = Identity::new(tree, options);
        Settings {
            options: options.clone(),
            uuid: uuid_text(&identity.uuid),
            hash_seed: uuid_text(&identity.hash_seed),
            // libext2fs reads the variable as unsigned, and takes zero for "now".
            time: image_time(tree).clamp(1, u32::MAX.into()).to_string(),
        }
    }

    /// Returns the command that makes a filesystem of this size, without the arguments for content and output.
    fn mke2fs(&self, blocks: u64, inodes: u64) -> Result<Command> {
        let options = &self.options;
        let growth = match options.growth {
            Some(bytes) => bytes.div_ceil(BLOCK_SIZE),
            None => blocks.saturating_mul(GROWTH_FACTOR).max(GROWTH_MIN),
        };
        let growth = growth.min(GROWTH_MAX);
        let mut features = FEATURES.to_owned();
        let mut extended =
            format!("lazy_itable_init=0,lazy_journal_init=1,nodiscard,root_owner=0:0,hash_seed={}", self.hash_seed);
        if options.journal {
            features.push_str(",has_journal");
        }
        if growth > blocks {
            features.push_str(",resize_inode");
            extended.push_str(&format!(",resize={growth}"));
        }
        let mut command = MKE2FS.command()?;
        command.env("MKE2FS_CONFIG", "/dev/null").args(["-q", "-F", "-O", &features, "-E", &extended]);
        command.args(["-b", &BLOCK_SIZE.to_string(), "-I", &INODE_SIZE.to_string(), "-N", &inodes.to_string()]);
        command.args(["-m", &options.reserved_percent.to_string(), "-U", &self.uuid]);
        if let Some(label) = &options.label {
            command.args(["-L", label]);
        }
        self.freeze(&mut command);
        Ok(command)
    }

    /// Has a program of e2fsprogs use the image's time instead of the clock.
    fn freeze(&self, command: &mut Command) {
        command.env("E2FSPROGS_FAKE_TIME", &self.time).env("SOURCE_DATE_EPOCH", &self.time);
    }
}

/// A way to fill a filesystem with a tree.
trait Content {
    /// Makes a filesystem of `blocks` blocks by `mke2fs`, a command without its output, and fills it.
    fn make(&self, run: &Run, mke2fs: Command, blocks: u64) -> Result<()>;
    /// Returns name and version of the program that fills it.
    fn writer(&self) -> Result<String>;
}

/// mke2fs itself copies files.
struct Copied<'a>(&'a dyn MaterialisedTree);

impl Content for Copied<'_> {
    fn make(&self, run: &Run, mut mke2fs: Command, blocks: u64) -> Result<()> {
        run.stage.detail("mke2fs");
        mke2fs.arg("-d").arg(self.0.root()).arg(run.output).arg(blocks.to_string());
        self.0.run(&mut mke2fs)?;
        run.stage.detail("debugfs");
        attributes::complete(run.tree, run.output, &run.settings)
    }

    fn writer(&self) -> Result<String> {
        version()
    }
}

/// The making of one image.
struct Run<'a> {
    settings: Settings,
    tree: &'a RootTree,
    content: &'a dyn Content,
    output: &'a Path,
    stage: &'a Stage,
}

impl Run<'_> {
    /// Makes the filesystem again until its size is the one that its measured content asks for.
    fn search(&self, policy: &SizePolicy) -> Result<Census> {
        let model = MeasuredOverhead::new(&self.settings)?;
        let decide = |data_blocks, policy: &SizePolicy| {
            let decision = size::decide(Demand::ext4(self.tree, data_blocks), policy, &model);
            decision.map_err(|error| size::explain(error, self.tree))
        };

        self.stage.detail("counting blocks");
        // A lower bound: where it exceeds max-size, that is reported before anything is written.
        let least = estimate::data_blocks(self.tree)?;
        decide(least, policy)?;
        let mut guess = least + estimate::margin(least);
        let without_max = SizePolicy { max_size: None, ..policy.clone() };
        for _ in 0..RUNS_MAX {
            let tried = decide(guess, &without_max)?;
            if let Err(error) = self.make(&tried) {
                if !is_full(&error) {
                    return Err(error);
                }
                guess += estimate::margin(guess);
                continue;
            }
            let data = self.measure(&model)?;
            let wanted = decide(data, policy)?;
            if wanted.total_blocks == tried.total_blocks && wanted.total_inodes == tried.total_inodes {
                return self.census(wanted);
            }
            if self.settings.options.reserved_percent == 0 && within_last_group(&tried, &wanted) {
                // With few blocks and many inodes, mke2fs makes smaller groups, and resize2fs fails or drops the last one:
                // then the image is made anew.
                let moved = self.resize(&wanted).is_ok() && self.is_as_large_as(&wanted)?;
                if moved && self.measure(&model)? == data {
                    return self.census(wanted);
                }
            }
            guess = data;
        }
        bail!("{} found no stable size in {RUNS_MAX} runs", self.content.writer()?)
    }

    /// Makes the filesystem of this size from the tree.
    fn make(&self, decision: &SizeDecision) -> Result<()> {
        // mke2fs would keep the length and the content of a longer file. It is emptied and not replaced: the caller has it
        // locked, and has given it a mode.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        options.open(self.output).with_context(|| format!("cannot replace {}", self.output.display()))?;
        let command = self.settings.mke2fs(decision.total_blocks, decision.total_inodes)?;
        self.content.make(self, command, decision.total_blocks)
    }

    /// Returns the blocks that the content takes in the image.
    fn measure(&self, model: &MeasuredOverhead) -> Result<u64> {
        let superblock = Superblock::read(self.output)?;
        let taken = superblock.blocks - superblock.free_blocks;
        let own = model.metadata_blocks(superblock.blocks, superblock.inodes)?;
        taken.checked_sub(own).context("the image has less metadata than an empty filesystem")
    }

    fn resize(&self, decision: &SizeDecision) -> Result<()> {
        self.stage.detail("resize2fs");
        let mut command = RESIZE2FS.command()?;
        self.settings.freeze(&mut command);
        command.arg("-f").arg(self.output).arg(decision.total_blocks.to_string());
        child::run(&mut command, &[])?;
        let file = OpenOptions::new().write(true).open(self.output)?;
        Ok(file.set_len(decision.bytes)?)
    }

    fn is_as_large_as(&self, decision: &SizeDecision) -> Result<bool> {
        let superblock = Superblock::read(self.output)?;
        Ok(superblock.blocks == decision.total_blocks && superblock.inodes == decision.total_inodes)
    }

    /// Checks that the image is as decided, and accounts for its blocks.
    fn census(&self, decision: SizeDecision) -> Result<Census> {
        let superblock = Superblock::read(self.output)?;
        let free = superblock.free_blocks.saturating_sub(superblock.reserved_blocks);
        ensure!(
            self.is_as_large_as(&decision)?
                && free >= decision.free_blocks
                && u64::from(superblock.free_inodes) >= decision.free_inodes,
            "mke2fs made a filesystem that is not the decided one: {superblock:?}, {decision:?}"
        );
        let size = fs::metadata(self.output)?.len();
        ensure!(size == decision.bytes, "the image is {size} bytes long instead of {}", decision.bytes);
        let part = |name: &str, blocks: u64| Part { name: name.into(), bytes: blocks * BLOCK_SIZE };
        let mut parts = vec![part("content", decision.data_blocks)];
        parts.extend(decision.overhead.iter().map(|structure| part(&structure.name, structure.blocks)));
        parts.push(part("free", free));
        parts.retain(|part| part.bytes > 0);
        Ok(Census {
            size,
            writer: self.content.writer()?,
            parts,
            decision: Some(decision),
            adjustments: Adjustments::default(),
        })
    }
}

/// Returns `mke2fs 1.47.0`.
fn version() -> Result<String> {
    let said = child::output(MKE2FS.command()?.arg("-V"))?.stderr;
    let said = String::from_utf8_lossy(&said);
    Ok(said.split(" (").next().unwrap_or("mke2fs").trim().to_owned())
}

#[cfg(test)]
mod tests;
