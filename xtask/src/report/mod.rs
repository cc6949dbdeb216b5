//! What people see: live progress and plain tables.

pub mod progress;
pub mod table;
