//! One file a verb: what it takes, what it does, what it says at the end.

pub mod arguments;
pub mod bench;
pub mod boot;
pub mod check;
pub mod clean;
pub mod completions;
pub mod doctor;
pub mod export;
pub mod image;
pub mod list;
pub mod new;
pub mod pack;
pub mod report;
pub mod run;
pub mod test;
pub mod tools;
