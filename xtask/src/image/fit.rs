//! The one policy on what an image cannot hold: left out or moved to the nearest, and told once for each kind with a count and
//! the first example; or, where the caller is strict, refused before anything is written.

use anyhow::{Context, Result};
use snug_formats::Filesystem;
use snug_rootfs::adjustments::Adjustments;
use snug_rootfs::fit;
use snug_rootfs::tree::RootTree;

use crate::filesystem::limits;
use crate::report::adjustments::Strictness;
use crate::report::progress::Progress;

/// Brings `tree` within what an image of this type can hold. Returns what was adjusted for that, and when the tree was read,
/// after telling it. `subject` is what the tree is of, where a run has more than one.
///
/// # Errors
///
/// What cannot be left out without breaking the tree; and, where the caller is strict, any adjustment.
pub fn fit(
    tree: &mut RootTree,
    filesystem: &Filesystem,
    strictness: Strictness,
    subject: Option<&str>,
    progress: &Progress,
) -> Result<Adjustments> {
    let mut adjustments = tree.adjustments().clone();
    let fitted = fit::fit(tree, limits(filesystem));
    adjustments.extend(fitted.with_context(|| format!("cannot write the {} image", filesystem.kind()))?);
    strictness.judge(&adjustments, subject, progress)?;
    Ok(adjustments)
}
