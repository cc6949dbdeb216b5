//! Snug: right-sized root filesystem images for microVMs.
//!
//! Data flows one way: spec → plan → engine → rootfs → filesystem → check → artifact → report.

pub mod cache;
pub mod check;
pub mod engine;
pub mod filesystem;
pub mod interrupt;
pub mod namespace;
pub mod plan;
pub mod report;
pub mod rootfs;
pub mod size;
pub mod spec;
pub mod workspace;
