//! One image from its spec to its file: what is decided before anything runs, the build, writing the file, and what was
//! built.

mod build;
mod built;
mod fit;
mod order;
mod write;

pub use build::BuildOutcome;
pub use built::{Built, Found};
pub use fit::fit;
pub use order::{ImageState, ImageType, Order, Target, task_of};

pub use crate::plan::Providers;
pub use write::{Digests, Written, write};
