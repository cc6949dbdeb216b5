//! Options that several verbs have in common, each with one help text.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use snug_rootfs::platform::Platform;
use snug_spec::model::EngineKind;

use crate::check::boot::AcceleratorChoice;
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
