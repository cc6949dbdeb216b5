//! Operating system and architecture of a root filesystem's programs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on, by the name that OCI gives it (image-spec, "Platform").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Platform {
    /// `linux/amd64`: 64-bit x86.
    #[serde(rename = "linux/amd64")]
    Amd64,
    /// `linux/arm64`: 64-bit Arm.
    #[serde(rename = "linux/arm64")]
    Arm64,
}

impl Platform {
    /// All platforms that are supported.
    pub const ALL: [Platform; 2] = [Platform::Amd64, Platform::Arm64];

    /// Returns OCI's name: `linux/amd64`.
    pub fn as_str(self) -> &'static str {
        match self {
            Platform::Amd64 => "linux/amd64",
            Platform::Arm64 => "linux/arm64",
        }
    }

    /// Returns Debian's name of the architecture.
    pub fn debian_architecture(self) -> &'static str {
        match self {
            Platform::Amd64 => "amd64",
            Platform::Arm64 => "arm64",
        }
    }

    /// Returns the kernel's name of the architecture, as `uname -m` prints it.
    pub fn machine(self) -> &'static str {
        match self {
            Platform::Amd64 => "x86_64",
            Platform::Arm64 => "aarch64",
        }
    }

    /// Returns a name for files and directories: `linux-arm64`.
    pub fn file_name(self) -> String {
        self.as_str().replace('/', "-")
    }

    /// Returns the platform of this machine, if it is a supported one.
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

    /// Parses `linux/amd64`, or `amd64` for short.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|platform| platform.as_str().strip_prefix("linux/") == Some(text.trim_start_matches("linux/")))
            .ok_or_else(|| format!("`{text}` is not one of linux/amd64, linux/arm64"))
    }
}
