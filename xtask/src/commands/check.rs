//! `check`: is an image what it should be?

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::load_images;
use crate::artifact::{MANIFEST_FILE, Manifest, read_contents};
use crate::binaries::Binaries;
use crate::cache::Cache;
use crate::check::boot::{self, Accelerator, Booted, Exam, Kernel, Mapper, Wanted, mapper};
use crate::check::contents::Contents;
use crate::check::{Check, CheckReport, Depth, Reader, Subject, prove};
use crate::filesystem::FilesystemKind;
use crate::image::{NamedType, Order, Suppliers, Target};
use crate::needs::{self, Work};
use crate::oci::Resolver;
use crate::plan::{PlanError, hash_file};
use crate::report::failure;
use crate::report::progress::Progress;
use crate::spec::ImageSet;
use crate::spec::model::{Boot, Platform};
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Images to check, as they were built last
    #[arg(required_unless_present = "all", value_name = "NAME")]
    names: Vec<String>,
    /// Check every image that has been built
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Leave the content of files and the image's digest out
    #[arg(long)]
    quick: bool,
    /// Start the image in QEMU and try it, too
    #[arg(long)]
    boot: bool,
    /// What runs the machine: kvm, tcg (emulation), or auto
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", requires = "boot")]
    accel: Wanted,
    /// Kernel that starts the image without an initramfs [default: Debian's, with one]
    #[arg(long, value_name = "FILE", requires = "boot")]
    kernel: Option<PathBuf>,
    /// Who reads the image back: kernel (its own driver; needs root), tools, or auto
    #[arg(long, value_name = "READER", default_value = "auto")]
    reader: Reader,
    /// Platform of the image [default: the spec's first, else this machine's]
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Folder of results [default: target/images]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Folder of image specs [default: the workspace's images/]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Checks one image after the other; all of them, whatever becomes of the first.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let set = load_images(&workspace, arguments.images.as_ref())?;
    let output = arguments.output.clone().unwrap_or_else(|| workspace.output());
    let names = match arguments.all {
        true => built(&set, &output, arguments.platform),
        false => arguments.names.clone(),
    };
    let cache = Cache::open()?;
    let progress = Progress::on_stderr();
    let depth = if arguments.quick { Depth::Quick } else { Depth::Full };
    let mut reports = Vec::new();
    for name in &names {
        let built = Built::find(&set, name, &output, arguments.platform)?;
        let progress = progress.for_image(name);
        if let Some(note) = built.staleness(&set, &workspace) {
            progress.note(format!("{name}: {note}"));
        }
        let (mut checks, found) = prove(built.subject(&set)?, depth, arguments.reader, &progress);
        let mut booted = None;
        if arguments.boot {
            let (more, how) = built.boot(&set, &cache, found.as_ref(), &arguments, &progress)?;
            checks.extend(more);
            booted = how;
        }
        let report = CheckReport::new(name, built.image, built.manifest.filesystem.kind(), checks);
        reports.push(CheckReport { boot: booted, ..report });
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&reports)?);
    } else {
        for report in &reports {
            println!("{}: {} {}", report.name, report.image.display(), if report.passed { "passes" } else { "FAILS" });
            print!("{}", report.as_text());
        }
    }
    let passed = reports.iter().all(|report| report.passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(failure::CHECK_FAILED) })
}

/// The images with a manifest in the folder of results.
fn built(set: &ImageSet, output: &Path, platform: Option<Platform>) -> Vec<String> {
    let is_built = |name: &&str| {
        target(set, name, platform).is_ok_and(|target| target.folder(output, name).join(MANIFEST_FILE).is_file())
    };
    set.names().filter(is_built).map(ToOwned::to_owned).collect()
}

/// What was built: for the platform that is named, else the first of the spec.
fn target(set: &ImageSet, name: &str, platform: Option<Platform>) -> Result<Target> {
    Ok(Target::all(set.get(name)?, platform.as_slice())?[0])
}

/// Where an image's own init may stand, with `/sbin` and `/bin` as they are after Debian's usrmerge, too.
const OWN_INITS: [&str; 6] =
    ["usr/lib/snug/init", "sbin/init", "usr/sbin/init", "etc/init", "bin/init", "usr/bin/init"];

/// An image in the folder of results.
pub struct Built {
    pub name: String,
    pub target: Target,
    pub image: PathBuf,
    pub manifest: Manifest,
}

impl Built {
    /// The image that was built last under this name.
    pub fn find(set: &ImageSet, name: &str, output: &Path, platform: Option<Platform>) -> Result<Self> {
        let target = target(set, name, platform)?;
        let folder = target.folder(output, name);
        let Some(manifest) = Manifest::read(&folder.join(MANIFEST_FILE)) else {
            bail!(PlanError(format!(
                "{name} has not been built in {}\nhint: cargo xtask image {name}",
                output.display()
            )));
        };
        let image = folder.join(&manifest.file);
        if !image.is_file() {
            bail!(PlanError(format!("{} is gone\nhint: cargo xtask image {name}", image.display())));
        }
        Ok(Built { name: name.to_owned(), target, image, manifest })
    }

    /// Is its root read-only whatever it is mounted with?
    pub fn is_read_only(&self) -> bool {
        self.manifest.filesystem.kind() != FilesystemKind::Ext4 || self.manifest.verity.is_some()
    }

    /// What the kernel's command line must say for the root to be found, where that is not the disk itself.
    pub fn root_arguments(&self) -> Vec<String> {
        self.manifest.verity.as_ref().map(|verity| mapper::arguments(verity).into()).unwrap_or_default()
    }

    /// What to tell where the spec has moved on since the image was built.
    fn staleness(&self, set: &ImageSet, workspace: &Workspace) -> Option<String> {
        let named = NamedType { kind: self.manifest.filesystem.kind(), verity: self.manifest.verity.is_some() };
        let suppliers = Suppliers { resolver: &Resolver::from_cache(), binaries: Binaries::AsBuilt(workspace) };
        let order = Order::new(set, &self.name, self.target, Some(named), &suppliers).ok()?;
        let fingerprint = order.fingerprint().ok()?;
        (fingerprint != self.manifest.fingerprint).then(|| "its inputs have changed since it was built".to_owned())
    }

    /// The image with what it is held against.
    fn subject(&self, set: &ImageSet) -> Result<Subject<'_>> {
        let resolved = set.resolve(&self.name)?;
        let chain = resolved.ancestors.iter().copied().chain([resolved.spec]);
        Ok(Subject::new(&self.image, &self.manifest, self.meant()?, chain))
    }

    /// Starts the image and tries it. `found` is what was read of it.
    fn boot(
        &self,
        set: &ImageSet,
        cache: &Cache,
        found: Option<&Contents>,
        arguments: &Arguments,
        progress: &Progress,
    ) -> Result<(Vec<Check>, Option<Booted>)> {
        if Some(self.target.platform) != Platform::host() {
            let why =
                format!("the image is for {}, and only this machine's own platform is started", self.target.platform);
            return Ok((vec![Check::skipped("boot", why)], None));
        }
        // What cannot be read is better tried than left out.
        let has = |path| found.is_none_or(|found| found.has(path));
        // Every image has the tool's first stage; that becomes one of these.
        if !OWN_INITS.into_iter().any(has) {
            return Ok((vec![Check::skipped("boot", "the image has no init")], None));
        }
        let machine = Bootable::get(
            arguments.kernel.as_deref(),
            arguments.accel,
            self.manifest.verity.is_some(),
            cache,
            progress,
        )?;
        let boot = set.resolve(&self.name)?.boot;
        let (checks, booted) = boot::examine(&self.exam(&machine, &boot, has("usr/sbin/sshd"))?, progress)?;
        Ok((checks, Some(booted)))
    }

    /// The image as it is to be booted.
    pub fn exam<'a>(&'a self, machine: &'a Bootable, boot: &'a Boot, has_sshd: bool) -> Result<Exam<'a>> {
        let logs = self.image.parent().context("an image has a folder")?;
        boot::forget_logs(logs);
        let mut arguments = boot.arguments.clone();
        arguments.extend(self.root_arguments());
        Ok(Exam {
            name: &self.name,
            image: &self.image,
            kernel: &machine.kernel,
            accelerator: machine.accelerator,
            why: machine.why.clone(),
            arguments,
            checks: &boot.checks,
            has_sshd,
            read_only: self.is_read_only(),
            logs,
        })
    }

    /// The tree that the image was made from, as it was listed when the image was written.
    fn meant(&self) -> Result<Result<Contents, String>> {
        let (contents, name) = (&self.manifest.contents, &self.name);
        let list = self.image.with_file_name(&contents.file);
        if !list.is_file() {
            return Ok(Err(format!("{} is gone; cargo xtask image {name}", list.display())));
        }
        ensure!(
            hash_file(&list)? == contents.sha256,
            "{} was changed: it is not the list that the manifest names\nhint: cargo xtask image {name} --refresh",
            list.display()
        );
        Ok(Ok(Contents::listed(read_contents(&list)?)))
    }
}

/// What it takes to boot images on this host.
pub struct Bootable {
    pub kernel: Kernel,
    pub accelerator: Accelerator,
    /// Why it is this accelerator.
    pub why: String,
}

impl Bootable {
    /// `own`: a kernel that needs no initramfs. `sealed`: with what opens images under dm-verity.
    pub fn get(own: Option<&Path>, wanted: Wanted, sealed: bool, cache: &Cache, progress: &Progress) -> Result<Self> {
        needs::require(&[Work::Boot])?;
        let kernel = match own {
            Some(image) => Kernel::own(image)?,
            None => debians(sealed, cache, progress)?,
        };
        let (accelerator, why) = boot::choose(wanted, &kernel, cache, progress)?;
        Ok(Bootable { kernel, accelerator, why })
    }
}

fn debians(sealed: bool, cache: &Cache, progress: &Progress) -> Result<Kernel> {
    let stage = progress.stage("get a kernel");
    let mut kernel = Kernel::fetch(cache.root())?;
    stage.finish(&kernel.version);
    if let (true, Some(parts)) = (sealed, &mut kernel.initramfs) {
        parts.mapper = Some(Mapper::fetch(cache, progress)?);
    }
    Ok(kernel)
}
