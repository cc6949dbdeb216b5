//! Files that appear under their name complete or not at all.

mod partial;
mod sync_ahead;

use std::fs::File;
use std::path::Path;

pub use partial::Partial;

/// Takes a folder, among the runs of this tool, for publishing several files that belong together: waits for the run that
/// has it, and holds it until the result is dropped. `None` where its filesystem has no locks.
pub fn lock_folder(folder: &Path) -> Option<File> {
    let file = File::open(folder).ok()?;
    file.lock().ok()?;
    Some(file)
}
