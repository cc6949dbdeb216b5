//! The writer against programs that know ext4: e2fsck, debugfs, the kernel, ext4-view.

mod oracle;
mod samples;
