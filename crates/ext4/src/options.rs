//! The options of an ext4 image.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which writer makes an ext4 image. This crate has the native one; the tool `cargo xtask` has the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ext4Writer {
    /// [`crate::NativeExt4`].
    #[default]
    Native,
    /// `mke2fs -d` over the tree as files in a user namespace.
    Mke2fs,
    /// `mke2fs`, a loop mount and `tar`; needs root.
    Loop,
}

impl Ext4Writer {
    /// The names of all writers.
    pub const NAMES: [&str; 3] = ["native", "mke2fs", "loop"];
}

impl FromStr for Ext4Writer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "native" => Ok(Ext4Writer::Native),
            "mke2fs" => Ok(Ext4Writer::Mke2fs),
            "loop" => Ok(Ext4Writer::Loop),
            _ => Err(format!("`{text}` is not one of native, mke2fs, loop")),
        }
    }
}

/// The options of an ext4 image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ext4Options {
    /// Whether there is a journal; its size is from mke2fs's table. On by default.
    pub journal: bool,
    /// Blocks reserved for root, in percent of all (0..=50). Default: 0.
    pub reserved_percent: u8,
    /// Volume label, at most 16 bytes.
    pub label: Option<String>,
    /// The UUID; `None`: derived from the tree and the options ([`crate::identity`]).
    pub uuid: Option<[u8; 16]>,
    /// Size in bytes up to which the filesystem can be grown online; group descriptors are reserved for it. `None`: 16 times
    /// its size, and at least 64 GiB.
    pub growth: Option<u64>,
    /// Which writer makes the image.
    pub writer: Ext4Writer,
}

impl Default for Ext4Options {
    fn default() -> Self {
        Ext4Options {
            journal: true,
            reserved_percent: 0,
            label: None,
            uuid: None,
            growth: None,
            writer: Ext4Writer::default(),
        }
    }
}
