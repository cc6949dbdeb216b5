//! Snug: right-sized root filesystem images for microVMs.
//!
//! Data flows one way: spec → plan → engine → rootfs → filesystem → check → artifact → report.

pub mod check;
pub mod filesystem;
pub mod report;
pub mod rootfs;
pub mod size;
