//! The real command on real input. One file a subject.

mod alpine;
mod binaries;
mod boot;
mod broken_specs;
mod caching;
mod check;
mod chromium;
mod conformance;
mod containers;
mod determinism;
mod edges;
mod engines;
mod faults;
mod growth;
mod hostile_builds;
mod images;
mod openclaw;
mod pack;
mod platforms;
mod registry;
mod secrets;
mod small_specs;
mod tools;
mod unprivileged;
mod verbs;
mod verity;
