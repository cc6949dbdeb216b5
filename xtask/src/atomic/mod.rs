//! Files that appear under their name complete or not at all.

mod partial;
mod sync_ahead;

pub use partial::Partial;
