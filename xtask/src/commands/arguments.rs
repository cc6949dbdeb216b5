//! Options that several verbs have in common, each with one help text.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use snug_rootfs::platform::Platform;
use snug_spec::ImageSet;
use snug_spec::model::{Base, EngineKind};

use crate::check::boot::AcceleratorChoice;
use crate::error;
use crate::host::requirements::Task;
use crate::host::setup;
use crate::report::adjustments::Strictness;
use crate::report::render::{self, Render};

/// `--images`
#[derive(Debug, Args)]
pub struct Images {
    /// Folder of image specs [default: the workspace's images/]
    #[arg(id = "images", long = "images", value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// `--output` of the verbs that read or write the folder of results
#[derive(Debug, Args)]
pub struct Results {
    /// Folder of results, one folder an image in it [default: target/images]
    #[arg(id = "output", long = "output", value_name = "DIR")]
    pub folder: Option<PathBuf>,
}

/// `--engine`
#[derive(Debug, Args)]
pub struct Engine {
    /// What runs the steps: builtin, docker or podman [default: SNUG_ENGINE, the spec's, or the first that works here]
    #[arg(id = "engine", long = "engine", value_name = "ENGINE")]
    pub kind: Option<EngineKind>,
}

/// `--platform` of the verbs that look at one image of a spec
#[derive(Debug, Args)]
pub struct OnePlatform {
    /// Platform of the image [default: the spec's first, else this machine's]
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,
}

/// `--strict`
#[derive(Debug, Args)]
pub struct Strict {
    /// Refuse what would have to be left out or changed to fit the filesystem, instead of warning of it
    #[arg(long)]
    strict: bool,
}

impl Strict {
    /// Returns what becomes of a tree that has to be adjusted.
    pub fn strictness(&self) -> Strictness {
        if self.strict { Strictness::Strict } else { Strictness::Adjusting }
    }
}

/// `--json`
#[derive(Debug, Args)]
pub struct Format {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Format {
    /// Whether the result is printed as JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes the result of the verb to standard output, as text or as JSON.
    pub fn print(&self, result: &impl Render) -> Result<()> {
        render::print(result, self.json)
    }
}

/// `--setup`
#[derive(Debug, Clone, Copy, Args)]
pub struct Setup {
    /// Install what this host lacks first (Debian and Ubuntu)
    #[arg(long)]
    pub setup: bool,
}

impl Setup {
    /// Installs what the host lacks for `tasks`, if that was asked for.
    pub fn prepare(self, tasks: impl IntoIterator<Item = Task>) -> Result<()> {
        if !self.setup {
            return Ok(());
        }
        let tasks: BTreeSet<Task> = tasks.into_iter().collect();
        setup::prepare(&tasks.into_iter().collect::<Vec<_>>())
    }

    /// Installs, if that was asked for, what planning `names` needs: a plan names the image of a registry by its digest,
    /// which a program asks for.
    pub fn prepare_planning<'a>(self, set: &ImageSet, names: impl IntoIterator<Item = &'a String>) -> Result<()> {
        match names.into_iter().any(|name| stands_on_registry(set, name)) {
            true => self.prepare([Task::OciBase]),
            false => Ok(()),
        }
    }

    /// Adds to an error that `--setup` installs what is missing, where it was not given and would do so for `tasks`.
    pub fn hint(self, tasks: impl IntoIterator<Item = Task>, error: anyhow::Error) -> anyhow::Error {
        let missing = error::missing_packages(&error);
        let mut required = tasks.into_iter().flat_map(Task::requirements);
        if self.setup || !required.any(|requirement| missing.contains(&requirement.package)) {
            return error;
        }
        error.context("hint: run again with --setup to install what is missing")
    }
}

/// Whether an image is based, directly or by way of others, on an image of a registry.
fn stands_on_registry(set: &ImageSet, name: &str) -> bool {
    let chain =
        set.resolve(name).map(|resolved| resolved.ancestors.into_iter().chain([resolved.spec]).collect::<Vec<_>>());
    chain.is_ok_and(|specs| specs.iter().any(|spec| matches!(spec.base.value, Base::Oci { .. })))
}

/// `--accel` and `--kernel`
#[derive(Debug, Args)]
pub struct Machine {
    /// What runs the machine: kvm, tcg (emulation), or auto
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto")]
    pub accel: AcceleratorChoice,
    /// Kernel that starts the image without an initramfs [default: Debian's, with one]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
}
