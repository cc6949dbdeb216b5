//! One file a verb: its arguments, what it does, its result.

pub mod arguments;
pub mod bench;
pub mod boot;
pub mod check;
pub mod clean;
pub mod completions;
pub mod doctor;
pub mod export;
pub mod file_names;
pub mod image;
pub mod list;
pub mod new;
pub mod pack;
pub mod report;
pub mod run;
pub mod test;
pub mod tools;
