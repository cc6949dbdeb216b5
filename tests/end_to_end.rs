//! The real command on real input. One file a subject.

mod boot;
mod broken_specs;
mod check;
mod chromium;
mod determinism;
mod edges;
mod hostile_builds;
mod images;
mod openclaw;
mod pack;
mod registry;
mod small_specs;
mod tools;
mod verity;
