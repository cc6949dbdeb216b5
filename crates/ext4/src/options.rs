//! What a spec or a command line may say about an ext4 image.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which program writes an ext4 image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ext4Writer {
    /// The writer of this tool.
    #[default]
    Native,
    /// `mke2fs -d` over the tree, materialised in a namespace.
    Mke2fs,
    /// `mkfs.ext4`, a loop mount and `tar`: needs root.
    Loop,
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

/// What an ext4 image can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ext4Options {
    /// Have a journal, sized by mke2fs's table.
    pub journal: bool,
    /// Blocks kept for root, in percent of all (0..=50).
    pub reserved_percent: u8,
    /// Volume label, at most 16 bytes.
    pub label: Option<String>,
    /// Instead of the UUID that is derived from the content.
    pub uuid: Option<[u8; 16]>,
    /// Size in bytes up to which the filesystem must be able to grow online (group descriptors are reserved for it);
    /// `None`: 16 times its size and at least 64 GiB.
    pub growth: Option<u64>,
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
