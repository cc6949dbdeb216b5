//! The version of the host's erofs-utils.

use snug_process::child;
use snug_process::program::HostProgram;

/// The writer of erofs.
pub const MKFS: HostProgram = HostProgram { name: "mkfs.erofs", package: "erofs-utils" };
/// The first version whose tar mode writes compressed images.
const LEAST_VERSION: Version = Version { numbers: (1, 8, 0), is_release: true };
/// The first version whose `dedupe` writes images over [`DEDUPE_LIMIT`] without damage (erofs-utils, ChangeLog of 1.8.10).
const DEDUPE_VERSION: Version = Version { numbers: (1, 8, 10), is_release: true };
/// Bytes of the largest image that `dedupe` of every version writes without damage.
const DEDUPE_LIMIT: u64 = 4 << 30;

/// A version of erofs-utils, whole: the third number counts as the others do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    numbers: (u32, u32, u32),
    /// Not a candidate (`-rc1`) for the release of these numbers, which comes after it.
    is_release: bool,
}

impl Version {
    /// Parses `1.8.6`, `1.5`, `1.8.10-gabcdef`, `1.9-rc1`.
    fn parse(text: &str) -> Option<Self> {
        let (numbers, rest) =
            text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
        let mut numbers = numbers.split('.').map(|number| number.parse::<u32>());
        let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
        let patch = numbers.next().unwrap_or(Ok(0)).ok()?;
        Some(Version { numbers: (major, minor, patch), is_release: !rest.contains("rc") })
    }
}

/// Whether an image of so many bytes, written with `dedupe` by this version of mkfs.erofs, may be damaged.
pub fn dedupe_damages(version: &str, image_bytes: u64) -> bool {
    image_bytes > DEDUPE_LIMIT && Version::parse(version).is_none_or(|version| version < DEDUPE_VERSION)
}

/// Returns the version of the host's mkfs.erofs, if there is one.
pub fn installed_version() -> Option<String> {
    let said = child::run(MKFS.command().ok()?.arg("--version"), &[1]).ok()?;
    version(&String::from_utf8_lossy(&said))
}

/// Returns the version of the host's mkfs.erofs if it is new enough.
pub fn host_version() -> Option<String> {
    installed_version().filter(|version| Version::parse(version).is_some_and(|version| version >= LEAST_VERSION))
}

/// Parses what mkfs.erofs prints: `mkfs.erofs (erofs-utils) 1.8.6`, or `mkfs.erofs 1.5`.
pub fn version(said: &str) -> Option<String> {
    let first = said.lines().find(|line| line.starts_with("mkfs.erofs"))?;
    let last = first.split_whitespace().last()?;
    Version::parse(last).map(|_| last.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_mkfs_are_understood() {
        assert_eq!(version("mkfs.erofs (erofs-utils) 1.8.6\navailable").as_deref(), Some("1.8.6"));
        assert_eq!(version("<W> something\nmkfs.erofs 1.5\n").as_deref(), Some("1.5"));
        assert_eq!(version("mkfs.erofs (erofs-utils) 1.8.10-g2bbf1b6").as_deref(), Some("1.8.10-g2bbf1b6"));
        assert_eq!(version("mkfs.erofs: unknown option"), None);
    }

    #[test]
    fn versions_are_compared_whole() {
        let inorder =
            ["1.5", "1.7.1", "1.8-rc1", "1.8", "1.8.1", "1.8.6", "1.8.9", "1.8.10-rc1", "1.8.10", "1.9", "1.10", "2.0"];
        let parsed: Vec<Version> = inorder.iter().map(|text| Version::parse(text).unwrap()).collect();
        assert!(parsed.is_sorted_by(|a, b| a < b), "{parsed:?}");
        assert_eq!(Version::parse("1.8"), Version::parse("1.8.0"));
        assert_eq!(Version::parse("1.8.10-g2bbf1b6"), Some(DEDUPE_VERSION));
        for text in ["", "1", "x.y", "1.x", "1.8.x", "version"] {
            assert_eq!(Version::parse(text).filter(|version| *version >= LEAST_VERSION), None, "{text}");
        }
    }

    #[test]
    fn deduplication_is_trusted_to_four_gibibytes_or_from_the_fixed_version_on() {
        for (version, bytes, damaged) in [
            ("1.8.6", DEDUPE_LIMIT, false),
            ("1.8.6", DEDUPE_LIMIT + 1, true),
            ("1.8.9", DEDUPE_LIMIT + 1, true),
            ("1.8.10", DEDUPE_LIMIT + 1, false),
            ("1.8.10-rc1", DEDUPE_LIMIT + 1, true),
            ("1.9.1", u64::MAX, false),
            ("unknown", DEDUPE_LIMIT + 1, true),
            ("unknown", 4096, false),
        ] {
            assert_eq!(dedupe_damages(version, bytes), damaged, "{version} {bytes}");
        }
    }
}
