//! Snug: right-sized root filesystem images for microVMs.
//!
//! Data flows one way: spec → plan → engine → rootfs → filesystem → check → artifact → report.

pub mod artifact;
pub mod assemble;
pub mod bench;
pub mod binaries;
pub mod bootstrap;
pub mod cache;
pub mod check;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod filesystem;
pub mod first_stage;
pub mod image;
pub mod interrupt;
pub mod jobs;
pub mod namespace;
pub mod needs;
pub mod oci;
pub mod plan;
pub mod report;
pub mod room;
pub mod setup;
pub mod spec;
pub mod tools;
pub mod workspace;

pub use {snug_ext4::size, snug_rootfs as rootfs};
