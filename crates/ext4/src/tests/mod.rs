//! The writer against programs that know ext4: e2fsck, debugfs, resize2fs, the kernel, ext4-view.

mod afterwards;
mod limits;
mod oracle;
mod random;
mod samples;
mod sizes;
mod trees;
