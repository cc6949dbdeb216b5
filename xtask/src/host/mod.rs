//! What a host has and lacks: programs, packages, disk space, mounts; and `--setup`.

pub mod disk_space;
pub mod erofs_utils;
pub mod mounts;
pub mod requirements;
pub mod setup;
