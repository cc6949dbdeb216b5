//! erofs by `mkfs.erofs` of erofs-utils, which reads the tree as a tar from a pipe: no file of the tree is created on disk, and
//! owners, devices and xattrs need no privileges.
//!
//! Its support of tars is complete from version 1.8 on. If the host has an older one (Debian 12 has 1.5) or none, Debian 13's
//! is unpacked into the cache, with its libraries, and run from there; nothing is installed.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use snug_ext4::size::SizePolicy;
use snug_ext4::{Census, Part, identity};
use snug_formats::{ErofsOptions, FilesystemKind};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::adjustments::Adjustments;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::RootTree;
use snug_rootfs::tree::image_time;

use crate::bases::unpacked::Tools;
use crate::cache::Cache;
use crate::error::Failure;
use crate::filesystem::FilesystemWriter;
use crate::host::erofs_utils::{MKFS, dedupe_damages, host_version, version};
use crate::report::progress::{Progress, Stage, human_bytes};

const DUMP: &str = "dump.erofs";
/// The Debian release whose erofs-utils are used if the host's are too old.
const SUITE: &str = "trixie";

/// Bytes of a physical cluster: the kernel reads the powers of two in this range.
const CLUSTER_SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// Writes a tree as erofs.
#[derive(Debug, Clone)]
pub struct ErofsWriter {
    options: ErofsOptions,
    utils: ErofsUtils,
    workers: Option<usize>,
}

impl ErofsWriter {
    /// A writer with these options, if they are valid.
    pub fn new(options: &ErofsOptions, utils: ErofsUtils) -> Result<Self> {
        let cluster = options.cluster_size;
        ensure!(
            cluster.is_power_of_two() && CLUSTER_SIZES.contains(&cluster),
            "erofs cluster-size {cluster} is not a power of two between 4096 and 1048576"
        );
        ensure!(
            !options.dedupe || options.compression != "none",
            "erofs dedupe works on compressed data only\nhint: choose a compression, or leave dedupe out"
        );
        Ok(ErofsWriter { options: options.clone(), utils, workers: None })
    }

    /// Compresses in this many threads instead of one for each core; the image has the same bytes.
    pub fn workers(self, workers: usize) -> Self {
        ErofsWriter { workers: Some(workers), ..self }
    }

    fn command(&self, tree: &RootTree, output: &Path) -> Result<Command> {
        let ErofsOptions { compression, cluster_size, dedupe } = &self.options;
        let mut uuid = [0; 16];
        let described = format!("{compression} {cluster_size} {dedupe}");
        uuid.copy_from_slice(&identity::seed("snug erofs uuid 1", described.as_bytes(), tree)[..16]);
        // The time of the superblock is also that of inodes that store none.
        let time = image_time(tree).clamp(0, i64::from(u32::MAX));

        let mut command = self.utils.command("mkfs.erofs")?;
        command.args(["--quiet", "--tar=f", "--mkfs-time", &format!("-T{time}")]);
        command.args(["-U", &identity::uuid_text(&identity::own_uuid(uuid))]);
        if compression != "none" {
            let (name, level) = compression.split_once(':').map_or((&**compression, None), |(a, b)| (a, Some(b)));
            let level = level.map(|level| format!(",level={level}")).unwrap_or_default();
            command.args([format!("-z{name}{level}"), format!("-C{cluster_size}")]);
            // The ends of files, shorter than a cluster, are stored beside their inodes. Packed together (`fragments`) they
            // would be smaller, but mkfs.erofs 1.8.6 is not reproducible then.
            command.arg(if *dedupe { "-Ededupe,ztailpacking" } else { "-Eztailpacking" });
        }
        if let Some(workers) = self.workers {
            command.arg(format!("--workers={workers}"));
        }
        // Without a source argument it reads standard input.
        command.arg(output);
        Ok(command)
    }
}

impl FilesystemWriter for ErofsWriter {
    fn kind(&self) -> FilesystemKind {
        FilesystemKind::Erofs
    }

    /// The policy is ignored: a read-only image is as large as its compressed content.
    fn write(&self, tree: &RootTree, _policy: &SizePolicy, output: &Path, stage: &Stage) -> Result<Census> {
        let mut command = self.command(tree, output)?;
        stage.detail("compressing");
        let mut said = 0;
        let feed = |input: &mut dyn Write| {
            tar::write(tree, input, TarOptions::PLAIN, &mut |written| {
                stage.advance(written - said);
                said = written;
            })?;
            Ok(())
        };
        child::feed(&mut command, &[], feed)?;
        self.refuse_damaged(fs::metadata(output)?.len())?;
        self.census(output)
    }
}

impl ErofsWriter {
    /// Refuses what this version of mkfs.erofs damages without a word. How large an image is, is known once it is compressed.
    fn refuse_damaged(&self, image_bytes: u64) -> Result<()> {
        ensure!(
            !(self.options.dedupe && dedupe_damages(&self.utils.version, image_bytes)),
            Failure::Unsupported(format!(
                "erofs dedupe of mkfs.erofs {} damages images over 4 GiB, and this one takes {}: 1.8.10 is the first that \
                 does not\nhint: leave dedupe out, or install erofs-utils 1.8.10 or newer",
                self.utils.version,
                human_bytes(image_bytes)
            ))
        );
        Ok(())
    }

    fn census(&self, image: &Path) -> Result<Census> {
        let size = fs::metadata(image)?.len();
        let said = child::run(self.utils.command(DUMP)?.arg("-S").arg(image), &[])?;
        let said = String::from_utf8_lossy(&said);
        let data = compressed_bytes(&said).with_context(|| format!("{DUMP} does not state a file size:\n{said}"))?;
        // dump.erofs counts deduplicated data once for every file.
        let data = data.min(size);
        let parts = [("file data", data), ("inodes, directories, xattrs and padding", size - data)]
            .map(|(name, bytes)| Part { name: name.into(), bytes });
        let writer = format!("mkfs.erofs {}", self.utils.version);
        Ok(Census { size, writer, parts: parts.into(), decision: None, adjustments: Adjustments::default() })
    }
}

fn compressed_bytes(said: &str) -> Option<u64> {
    let line = said.lines().find_map(|line| line.strip_prefix("Filesystem total file size:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// erofs-utils that are new enough: the host's, or unpacked ones.
#[derive(Debug, Clone)]
pub struct ErofsUtils {
    /// `None`: on the host's PATH.
    tools: Option<Tools>,
    version: String,
}

impl ErofsUtils {
    /// Returns the host's if they are new enough, otherwise those in the cache, which are downloaded if it has none.
    pub fn find(progress: &Progress) -> Result<Self> {
        if let Some(version) = host_version() {
            return Ok(ErofsUtils { tools: None, version });
        }
        let tools = Tools::fetch(&Cache::open()?, SUITE, &[MKFS.package], progress)
            .context("erofs needs mkfs.erofs 1.8 or newer, which this host does not have")?;
        let said = child::run(tools.command(MKFS.name)?.arg("--version"), &[])?;
        let version = version(&String::from_utf8_lossy(&said)).context("mkfs.erofs does not state its version")?;
        Ok(ErofsUtils { tools: Some(tools), version })
    }

    /// Whether [`Self::find`] would have to download them.
    pub fn must_be_fetched() -> bool {
        let cached = || Some(Tools::cached(&Cache::open().ok()?, SUITE, &[MKFS.package]).is_some());
        host_version().is_none() && !cached().unwrap_or(false)
    }

    /// Returns the version of mkfs.erofs: `1.8.6`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns a command that runs one of the programs.
    pub fn command(&self, program: &'static str) -> Result<Command> {
        match &self.tools {
            None => Ok(HostProgram { name: program, ..MKFS }.command()?),
            Some(tools) => {
                let mut command = tools.command(program)?;
                command.env("LC_ALL", "C").env_remove("SOURCE_DATE_EPOCH");
                Ok(command)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use snug_tests::trees::{Lost, Mounted, compare, sample_tree};
    use snug_tests::{have, is_root, skip};

    fn writer(options: &ErofsOptions) -> Option<ErofsWriter> {
        // Downloading needs the tool's hidden verb, which this test program does not have: `test --setup` downloads.
        if ErofsUtils::must_be_fetched() && !skip("needs mkfs.erofs 1.8 or newer, or an unpacked one in the cache") {
            return None;
        }
        let utils = ErofsUtils::find(&Progress::hidden()).expect("erofs-utils");
        Some(ErofsWriter::new(options, utils).expect("valid"))
    }

    fn write(writer: &ErofsWriter, output: &Path) -> Census {
        let stage = Progress::hidden().stage("test");
        writer.write(&sample_tree(), &SizePolicy::default(), output, &stage).unwrap()
    }

    #[test]
    fn the_same_image_from_any_number_of_threads() {
        let folder = tempfile::tempdir().unwrap();
        for options in [
            ErofsOptions { compression: "lz4hc:3".into(), ..ErofsOptions::default() },
            ErofsOptions { compression: "zstd:3".into(), cluster_size: 1 << 20, dedupe: false },
            ErofsOptions { compression: "lz4".into(), cluster_size: 4096, dedupe: true },
        ] {
            let Some(writer) = writer(&options) else { return };
            let images = [1, 2, 5].map(|workers| {
                let image = folder.path().join(format!("{}-{workers}", options.compression));
                write(&writer.clone().workers(workers), &image);
                fs::read(image).unwrap()
            });
            assert!(images[0] == images[1] && images[1] == images[2], "{options:?}");
        }
    }

    /// All that the format can store, judged by fsck.erofs and the kernel.
    #[test]
    fn the_kernel_reads_the_same_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (image, place) = (folder.path().join("image"), folder.path().join("mounted"));
        fs::create_dir(&place).unwrap();
        for options in [
            ErofsOptions::default(),
            ErofsOptions { compression: "none".into(), ..ErofsOptions::default() },
            ErofsOptions { dedupe: true, ..ErofsOptions::default() },
        ] {
            let Some(writer) = writer(&options) else { return };
            let _ = fs::remove_file(&image);
            let census = write(&writer, &image);
            assert_eq!(census.size, fs::metadata(&image).unwrap().len());
            assert_eq!(census.parts.iter().map(|part| part.bytes).sum::<u64>(), census.size);
            child::run(writer.utils.command("fsck.erofs").unwrap().arg("--extract").arg(&image), &[]).unwrap();
            if !have(&["mount"]) || !is_root() || !kernel_reads_erofs() {
                return;
            }
            let mounted = Mounted::new(&image, "erofs", &place);
            compare(&sample_tree(), &place, Lost::default());
            drop(mounted);
        }
    }

    #[test]
    fn an_image_that_deduplication_damages_is_refused() {
        let said = |version: &str, dedupe: bool, bytes: u64| {
            let utils = ErofsUtils { tools: None, version: version.to_owned() };
            let writer = ErofsWriter::new(&ErofsOptions { dedupe, ..ErofsOptions::default() }, utils).unwrap();
            writer.refuse_damaged(bytes).err().map(|error| error.to_string())
        };
        insta::assert_snapshot!(said("1.8.6", true, 5 << 30).unwrap(), @r"
        erofs dedupe of mkfs.erofs 1.8.6 damages images over 4 GiB, and this one takes 5.00 GiB: 1.8.10 is the first that does not
        hint: leave dedupe out, or install erofs-utils 1.8.10 or newer
        ");
        assert_eq!(said("1.8.6", true, 4 << 30), None);
        assert_eq!(said("1.8.6", false, 5 << 30), None);
        assert_eq!(said("1.8.10", true, 5 << 30), None);
    }

    fn kernel_reads_erofs() -> bool {
        let known = || fs::read_to_string("/proc/filesystems").unwrap().contains("erofs");
        let _ = known() || Command::new("modprobe").arg("erofs").status().is_ok();
        known() || skip("needs a kernel that reads erofs")
    }
}
