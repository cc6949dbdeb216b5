//! What the programs of a root filesystem run on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on, named as OCI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Platform {
    #[serde(rename = "linux/amd64")]
    Amd64,
    #[serde(rename = "linux/arm64")]
    Arm64,
}

impl Platform {
    pub const ALL: [Platform; 2] = [Platform::Amd64, Platform::Arm64];

    pub fn as_str(self) -> &'static str {
        match self {
            Platform::Amd64 => "linux/amd64",
            Platform::Arm64 => "linux/arm64",
        }
    }

    /// Debian's name of the architecture.
    pub fn debian_architecture(self) -> &'static str {
        match self {
            Platform::Amd64 => "amd64",
            Platform::Arm64 => "arm64",
        }
    }

    /// The kernel's name of the machine, as `uname -m` says it.
    pub fn machine(self) -> &'static str {
        match self {
            Platform::Amd64 => "x86_64",
            Platform::Arm64 => "aarch64",
        }
    }

    /// A name for files and folders: `linux-arm64`.
    pub fn file_name(self) -> String {
        self.as_str().replace('/', "-")
    }

    /// The platform of this machine, where it is one of them.
    pub fn host() -> Option<Platform> {
        Self::ALL.into_iter().find(|platform| platform.machine() == std::env::consts::ARCH)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `linux/amd64`, and `amd64` for short.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|platform| platform.as_str().strip_prefix("linux/") == Some(text.trim_start_matches("linux/")))
            .ok_or_else(|| format!("`{text}` is not one of linux/amd64, linux/arm64"))
    }
}
