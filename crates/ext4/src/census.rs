//! What every byte of an image is used for.

use serde::{Deserialize, Serialize};
use snug_rootfs::adjustments::Adjustments;
use snug_rootfs::tree::Kind;

use super::on_disk::BLOCK;
use super::overhead::structure;
use super::plan::Plan;
use crate::size::SizeDecision;

/// What an image consists of. Also used for the images of other writers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Census {
    /// Length of the image file in bytes.
    pub size: u64,
    /// The program and version that wrote it.
    pub writer: String,
    /// The image by use, in the order of the image or by kind; the bytes add up to `size`.
    pub parts: Vec<Part>,
    /// Why the image has this size; `None` for read-only types, which are as large as their content.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<SizeDecision>,
    /// What was left out of the tree or changed in it, since the image cannot hold it or the archive cannot be taken as it is.
    #[serde(default, skip_serializing_if = "Adjustments::is_empty")]
    pub adjustments: Adjustments,
}

/// The bytes of an image that are used for one thing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The use, as a noun: `file data`, `inode tables`, `free`.
    pub name: String,
    /// How many bytes.
    pub bytes: u64,
}

/// Accounts for every byte of a planned filesystem.
pub(crate) fn census(plan: &Plan) -> Census {
    let mut parts: Vec<(String, u64)> = Vec::new();
    let (mut directories, mut symlinks, mut blocks, mut bytes, mut trees) = (0, 0, 0, 0, 0);
    for (node, placed) in plan.inventory.nodes.iter().zip(&plan.places) {
        let tree: u64 = plan.runs_of(&placed.tree).iter().map(|run| u64::from(run.length)).sum();
        trees += tree;
        match &node.inode.kind {
            Kind::Directory => directories += node.blocks(),
            Kind::Symlink(_) => symlinks += node.blocks(),
            Kind::File(body) => {
                blocks += node.blocks();
                bytes += body.data_bytes();
            }
            _ => {}
        }
    }
    let in_bytes = |blocks: u64| blocks * BLOCK as u64;
    parts.push(("file data".into(), bytes));
    parts.push(("file data rounded to blocks".into(), in_bytes(blocks) - bytes));
    parts.push(("directories".into(), in_bytes(directories)));
    parts.push(("long symlinks".into(), in_bytes(symlinks)));
    parts.push(("extent trees".into(), in_bytes(trees)));
    parts.push(("extended attributes".into(), in_bytes(plan.xattr_places.len() as u64)));
    for overhead in &plan.decision.overhead {
        let mut blocks = overhead.blocks;
        if overhead.name == structure::JOURNAL {
            // The decision counts a block for the journal's extent tree, which it may not need.
            blocks = plan.journal.as_ref().map_or(0, |placed| plan.blocks_of(placed));
        }
        parts.push((overhead.name.clone(), in_bytes(blocks)));
    }
    let used: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
    let size = in_bytes(plan.layout.blocks);
    parts.push(("free".into(), size - used));
    let parts = parts.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(name, bytes)| Part { name, bytes }).collect();
    Census {
        size,
        writer: concat!("snug ", env!("CARGO_PKG_VERSION")).into(),
        parts,
        decision: Some(plan.decision.clone()),
        adjustments: Adjustments::default(),
    }
}
