//! What an image requires of the kernel that mounts it, so that a kernel that is too old is refused before a build and not
//! noticed by a guest that does not boot. Versions are the Linux releases that introduced a feature.

use crate::Filesystem;

/// A feature and the first kernel that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The feature, as a noun: `erofs compressed with zstd`.
    pub feature: String,
    /// Major and minor version of Linux.
    pub since: (u16, u16),
}

/// Returns all features that the guest's kernel must have for an image of this type, sealed with dm-verity if `verity`.
pub fn requirements(filesystem: &Filesystem, verity: bool) -> Vec<Requirement> {
    let mut found: Vec<(String, (u16, u16))> = Vec::new();
    let algorithm = |compression: &str| compression.split(':').next().unwrap_or_default().to_owned();
    match filesystem {
        // The newest of the features that the images have.
        Filesystem::Ext4(_) => found.push(("ext4 with metadata_csum_seed".into(), (4, 4))),
        Filesystem::Squashfs(options) => {
            let algorithm = algorithm(&options.compression);
            let since = match algorithm.as_str() {
                "zstd" => (4, 14),
                "lz4" => (3, 19),
                _ => (2, 6),
            };
            found.push((format!("squashfs compressed with {algorithm}"), since));
        }
        Filesystem::Erofs(options) => {
            found.push(("erofs".into(), (5, 4)));
            let algorithm = algorithm(&options.compression);
            let since = match algorithm.as_str() {
                "zstd" => (6, 10),
                "deflate" => (6, 6),
                "lzma" => (5, 16),
                _ => (5, 4),
            };
            if algorithm != "none" {
                found.push((format!("erofs compressed with {algorithm}"), since));
                // Compressed images have the ends of files in the metadata blocks ("ztailpacking").
                found.push(match options.dedupe {
                    true => ("erofs with dedupe".into(), (6, 1)),
                    false => ("erofs with packed tails".into(), (5, 17)),
                });
            }
        }
    }
    if verity {
        found.push(("dm-verity".into(), (3, 4)));
    }
    found.into_iter().map(|(feature, since)| Requirement { feature, since }).collect()
}

/// Returns the feature that is missing from a kernel of this version (major, minor); of several, the newest one.
pub fn missed(filesystem: &Filesystem, verity: bool, kernel: (u16, u16)) -> Option<Requirement> {
    requirements(filesystem, verity).into_iter().filter(|need| need.since > kernel).max_by_key(|need| need.since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ErofsOptions, FilesystemKind, SquashfsOptions};

    #[test]
    fn the_newest_missing_feature_is_returned() {
        let erofs = |compression: &str, dedupe| {
            Filesystem::Erofs(ErofsOptions { compression: compression.into(), dedupe, ..ErofsOptions::default() })
        };
        let named = |filesystem: &Filesystem, kernel| missed(filesystem, true, kernel).map(|need| need.feature);
        assert_eq!(named(&erofs("zstd:15", true), (6, 9)).as_deref(), Some("erofs compressed with zstd"));
        assert_eq!(named(&erofs("zstd:15", true), (6, 10)), None);
        assert_eq!(named(&erofs("deflate", false), (6, 1)).as_deref(), Some("erofs compressed with deflate"));
        assert_eq!(named(&erofs("lz4", false), (5, 15)).as_deref(), Some("erofs with packed tails"));
        assert_eq!(named(&erofs("none", false), (5, 15)), None);
        let squashfs = Filesystem::Squashfs(SquashfsOptions::default());
        assert_eq!(named(&squashfs, (4, 9)).as_deref(), Some("squashfs compressed with zstd"));
        // Debian 12's kernel reads every type with its default options.
        for kind in FilesystemKind::ALL {
            assert_eq!(missed(&Filesystem::default_of(kind), true, (6, 1)), None, "{kind}");
        }
    }
}
