//! The tree of an image: base, steps, what follows them for every engine, and the first stage.

mod assembly;
pub mod first_stage;
mod layers;

pub use assembly::{Assembly, Refresh, subject};
