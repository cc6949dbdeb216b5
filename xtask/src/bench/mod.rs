//! Measures how fast images are written, by this tool and by others. Every candidate is a process of its own, measured by
//! the kernel's accounting. Each round runs all candidates, so that a busy machine slows all of them alike.

pub mod candidates;
mod measure;
mod sample;
pub mod scale;
pub mod summary;

pub use measure::{Measured, measure, sync_output};
pub use sample::write_sample;
