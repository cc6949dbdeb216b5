//! What a host has and lacks: programs, packages, room on its disks; and `--setup`.

pub mod disk_space;
pub mod erofs_utils;
pub mod requirements;
pub mod setup;
