//! Says results to a person or a program: progress while it runs, tables and JSON at the end.

pub mod failure;
pub mod progress;
pub mod table;
