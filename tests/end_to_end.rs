//! The real command on real input. One file a subject.

mod boot;
mod broken_specs;
mod check;
mod determinism;
mod edges;
mod hostile_builds;
mod openclaw;
mod pack;
mod small_specs;
mod tools;
