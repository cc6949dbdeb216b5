//! The real command on real input. One file a subject.

mod boot;
mod broken_specs;
