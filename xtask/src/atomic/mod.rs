//! Where results go: files that appear under their name complete or not at all, standard output, block devices. And
//! temporary folders.

mod block_device;
mod destination;
mod partial;
mod place;
mod scratch;
mod sync_ahead;

use std::fs::File;
use std::path::Path;

pub use destination::{Accepts, Destination, Identity};
pub use partial::{Partial, is_at};
pub use scratch::Scratch;

/// Takes a folder, among the runs of this tool, for publishing several files that belong together: waits for the run that
/// has it, and holds it until the result is dropped. `None` where its filesystem has no locks.
pub fn lock_folder(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.lock().ok()?;
    Some(file)
}
