//! How fast images are written, and what else writes them: every candidate is a process of its own, measured by the
//! kernel's accounting, in rounds that go through all of them so that a busy machine troubles all alike.

pub mod candidates;
mod measure;
mod sample;
pub mod summary;

pub use measure::{Measured, measure, settle};
pub use sample::write_sample;
