//! Images in the folder of results.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use snug_formats::FilesystemKind;
use snug_rootfs::listing::Listing;
use snug_rootfs::platform::Platform;
use snug_spec::model::{Boot, BootCheck};
use snug_spec::{ImageSet, Located};

use super::order::{ImageType, Order, Target, placed};
use crate::cache::Cache;
use crate::check::boot::{
    self, AcceleratorChoice, BootEnvironment, BootSummary, BootTest, GuestCommand, OverlayDisk, dmsetup,
};
use crate::check::{Check, CheckInput};
use crate::error::Failure;
use crate::host::requirements::Task;
use crate::manifest::{MANIFEST_FILE, Manifest, ManifestError, image_file, manifest_beside, read_contents};
use crate::plan::{Providers, hash_file};
use crate::report::progress::Progress;
use crate::tree::first_stage;

/// Returns the target of a built image: the named platform, else this machine's where the spec is for it, else the first of
/// the spec.
fn target(set: &ImageSet, name: &str, platform: Option<Platform>) -> Result<Target> {
    let targets = Target::all(set.get(name)?, platform.as_slice())?;
    let own = targets.iter().find(|target| Some(target.platform) == Platform::host());
    Ok(*own.unwrap_or(&targets[0]))
}

fn guest_command(check: &Located<BootCheck>) -> GuestCommand {
    let BootCheck { run, prints, within } = &check.value;
    GuestCommand { run: run.clone(), prints: prints.clone(), within: *within }
}

/// Paths of an image's own init, those after Debian's merge of `/sbin` and `/bin` into `/usr` included.
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
    /// Returns the names of the images with a manifest in the folder of results.
    pub fn names(set: &ImageSet, output: &Path, platform: Option<Platform>) -> Vec<String> {
        let is_built = |name: &&str| {
            // A spec may have become a base since.
            set.get(name).is_ok_and(|spec| spec.filesystem.is_some())
                && target(set, name, platform)
                    .is_ok_and(|target| target.folder(output, name).join(MANIFEST_FILE).is_file())
        };
        set.names().filter(is_built).map(ToOwned::to_owned).collect()
    }

    /// Returns the image that was built last under this name.
    pub fn find(set: &ImageSet, name: &str, output: &Path, platform: Option<Platform>) -> Result<Self> {
        match Self::look(set, name, output, platform)? {
            Found::Whole(built) => Ok(*built),
            Found::Damaged { image, why, .. } => bail!(Failure::Usage(format!(
                "{}: {why}\nhint: cargo xtask image {name} writes it again",
                image.display()
            ))),
        }
    }

    /// Looks for the image that was built last under this name.
    ///
    /// # Errors
    ///
    /// If none was built, or the spec is a base of other images.
    pub fn look(set: &ImageSet, name: &str, output: &Path, platform: Option<Platform>) -> Result<Found> {
        let target = target(set, name, platform)?;
        let folder = target.folder(output, name);
        let Some(filesystem) = &set.get(name)?.filesystem else { bail!(no_image(set, name)) };
        let kind = filesystem.kind();
        let manifest = match Manifest::read(&folder.join(MANIFEST_FILE)) {
            Ok(manifest) => manifest,
            Err(error @ ManifestError::Damaged(_)) => {
                let image = folder.join(image_file(kind));
                return Ok(Found::Damaged { image, kind, why: error.to_string() });
            }
            Err(ManifestError::Missing | ManifestError::OtherSchema) => bail!(Failure::Usage(format!(
                "{name} has not been built in {}\nhint: cargo xtask image {name}",
                output.display()
            ))),
        };
        let image = folder.join(&manifest.file);
        if !image.is_file() {
            let why = if image.exists() { "it is no regular file" } else { "the image file is gone" };
            return Ok(Found::Damaged { image, kind: manifest.filesystem.kind(), why: why.to_owned() });
        }
        Ok(Found::Whole(Box::new(Built { name: name.to_owned(), target, image, manifest })))
    }

    /// Returns what was changed of the image since it was built; `None` if nothing was.
    pub fn changes(&self, progress: &Progress) -> Option<String> {
        self.manifest.changes(&manifest_beside(&self.image), progress)
    }

    /// Returns the tasks of booting it, whose requirements the host has to meet.
    pub fn boot_tasks(&self) -> Vec<Task> {
        // The initramfs of a sealed image gets dmsetup, unpacked as a Debian base is.
        let sealed = self.manifest.verity.is_some().then_some(Task::DebianBase);
        [Task::Boot].into_iter().chain(sealed).collect()
    }

    /// Returns the tasks of checking it without a boot.
    pub fn check_tasks(&self) -> Vec<Task> {
        vec![match self.manifest.filesystem.kind() {
            FilesystemKind::Ext4 => Task::CheckExt4,
            FilesystemKind::Squashfs => Task::CheckSquashfs,
            FilesystemKind::Erofs => Task::CheckErofs,
        }]
    }

    /// Whether its root is read-only, however it is mounted.
    pub fn is_read_only(&self) -> bool {
        self.manifest.filesystem.kind() != FilesystemKind::Ext4 || self.manifest.verity.is_some()
    }

    /// Returns what a machine of it does with a disk for its overlay.
    pub fn overlay_disk(&self) -> OverlayDisk {
        let in_memory = || self.meant().is_ok_and(|list| list.has(first_stage::OVERLAY_IN_MEMORY));
        match self.is_read_only() {
            false => OverlayDisk::Unneeded,
            true if in_memory() => OverlayDisk::LeftAlone,
            true => OverlayDisk::Kept,
        }
    }

    /// Returns the kernel arguments by which the root is found, if it is not the disk itself.
    pub fn root_arguments(&self) -> Vec<String> {
        self.manifest.verity.as_ref().map(|verity| dmsetup::root_arguments(verity).into()).unwrap_or_default()
    }

    /// Returns a warning if the inputs have changed since the image was built.
    pub fn staleness(&self, set: &ImageSet, providers: &Providers) -> Option<String> {
        let named = ImageType { kind: self.manifest.filesystem.kind(), verity: self.manifest.verity.is_some() };
        let order = Order::new(set, &self.name, self.target, Some(named), providers).ok()?;
        let fingerprint = order.fingerprint().ok()?;
        (fingerprint != self.manifest.fingerprint).then(|| {
            format!("its inputs have changed since it was built\nhint: cargo xtask image {} builds it anew", self.name)
        })
    }

    /// Returns the image with what it is to be checked against.
    pub fn check_input(&self, set: &ImageSet) -> Result<CheckInput<'_>> {
        let resolved = set.resolve(&self.name)?;
        Ok(CheckInput {
            image: &self.image,
            manifest: &self.manifest,
            meant: self.meant(),
            placed: placed(&resolved),
            max_size: resolved.spec.sizing.max_size,
        })
    }

    /// Boots the image and runs its tests. `found` is what was read of it.
    pub fn boot(
        &self,
        set: &ImageSet,
        cache: &Cache,
        found: Option<&Listing>,
        (kernel, accelerator): (Option<&Path>, AcceleratorChoice),
        progress: &Progress,
    ) -> Result<(Vec<Check>, Option<BootSummary>)> {
        if Some(self.target.platform) != Platform::host() {
            let why =
                format!("the image is for {}, and only this machine's own platform is started", self.target.platform);
            return Ok((vec![Check::skipped("boot", why)], None));
        }
        // An image that could not be read is tried.
        let has = |path| found.is_none_or(|found| found.has(path));
        // The kernel starts the image's own init, or the first stage one of these.
        let own = has("init") && !has(first_stage::FOLDER);
        if !own && !OWN_INITS.into_iter().any(has) {
            return Ok((vec![Check::skipped("boot", "the image has no init")], None));
        }
        let machine = BootEnvironment::prepare(kernel, accelerator, self.manifest.verity.is_some(), cache, progress)?;
        let boot = set.resolve(&self.name)?.boot;
        let (checks, booted) = self.boot_test(&machine, &boot, has("usr/sbin/sshd"))?.run(progress)?;
        Ok((checks, Some(booted)))
    }

    /// Returns the boot test of the image.
    pub fn boot_test<'a>(
        &'a self,
        machine: &'a BootEnvironment,
        boot: &'a Boot,
        has_sshd: bool,
    ) -> Result<BootTest<'a>> {
        let logs = self.image.parent().context("an image has a folder")?;
        boot::remove_logs(logs);
        let mut arguments = boot.arguments.clone();
        arguments.extend(self.root_arguments());
        Ok(BootTest {
            name: &self.name,
            image: &self.image,
            kernel: &machine.kernel,
            accelerator: machine.accelerator,
            cache: &machine.cache,
            why: machine.why.clone(),
            arguments,
            commands: boot.checks.iter().map(guest_command).collect(),
            has_sshd,
            overlay_disk: self.overlay_disk(),
            logs,
        })
    }

    /// Returns the tree that the image was made from, as it was listed when the image was written, or why it is not known.
    fn meant(&self) -> Result<Listing, String> {
        let contents = &self.manifest.contents;
        let list = self.image.with_file_name(&contents.file);
        let read = || -> Result<Listing> {
            ensure!(list.is_file(), "{} is gone", list.display());
            ensure!(
                hash_file(&list, &mut |_| {})? == contents.sha256,
                "{} was changed since it was written",
                list.display()
            );
            read_contents(&list)
        };
        read().map_err(|error| format!("{error:#}"))
    }
}

/// What stands in the folder of results of an image.
pub enum Found {
    Whole(Box<Built>),
    /// The image or its manifest cannot be used.
    Damaged {
        image: PathBuf,
        kind: FilesystemKind,
        why: String,
    },
}

/// The error for a spec that is only a base: what can be started and checked are the images on it.
fn no_image(set: &ImageSet, name: &str) -> Failure {
    let stands_on = |other: &&str| {
        set.resolve(other).is_ok_and(|resolved| {
            resolved.spec.filesystem.is_some() && resolved.ancestors.iter().any(|spec| spec.name == name)
        })
    };
    let images: Vec<&str> = set.names().filter(stands_on).collect();
    let hint = match images.is_empty() {
        true => "give its spec a filesystem, as in filesystem = \"ext4\"".to_owned(),
        false => format!("name an image that is based on it: {}", images.join(", ")),
    };
    Failure::Usage(format!("{name} is a base of other images and has no image of its own\nhint: {hint}"))
}
