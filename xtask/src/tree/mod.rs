//! The tree of an image: base and steps in order, what engines leave behind put right, and the first stage.

mod assembly;
pub mod first_stage;

pub use assembly::{Assembly, Refresh, subject};
