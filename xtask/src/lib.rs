//! Snug: right-sized root filesystem images for microVMs.
//!
//! Data flows one way: spec → plan → engine → tree → filesystem → check → manifest → report. A room stands above all that it
//! imports: `tests/structure.rs` holds the modules to that, the compiler the crates.

pub mod atomic;
pub mod bases;
pub mod bench;
pub mod cache;
pub mod check;
pub mod cli;
pub mod commands;
pub mod engine;
pub mod error;
pub mod filesystem;
pub mod host;
pub mod image;
pub mod jobs;
pub mod manifest;
pub mod plan;
pub mod report;
pub mod steps;
pub mod tree;
pub mod workspace;
