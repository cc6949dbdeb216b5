//! What people and programs are shown: progress, warnings, results as text or JSON, plain tables.

pub mod adjustments;
pub mod amounts;
pub mod escapes;
pub mod github;
pub mod progress;
pub mod proxies;
pub mod render;
pub mod screen;
pub mod shell;
pub mod streams;
pub mod table;
