//! The version of the host's erofs-utils.

use snug_process::child;
use snug_process::program::HostProgram;

/// The writer of erofs.
pub const MKFS: HostProgram = HostProgram { name: "mkfs.erofs", package: "erofs-utils" };
/// The first version whose tar mode writes compressed images.
const LEAST_VERSION: (u32, u32) = (1, 8);

/// Returns the version of the host's mkfs.erofs, if there is one.
pub fn installed_version() -> Option<String> {
    let said = child::run(MKFS.command().ok()?.arg("--version"), &[1]).ok()?;
    version(&String::from_utf8_lossy(&said))
}

/// Returns the version of the host's mkfs.erofs if it is new enough.
pub fn host_version() -> Option<String> {
    installed_version().filter(|version| numbers(version).is_some_and(|numbers| numbers >= LEAST_VERSION))
}

/// Parses what mkfs.erofs prints: `mkfs.erofs (erofs-utils) 1.8.6`, or `mkfs.erofs 1.5`.
pub fn version(said: &str) -> Option<String> {
    let first = said.lines().find(|line| line.starts_with("mkfs.erofs"))?;
    let last = first.split_whitespace().last()?;
    numbers(last).map(|_| last.to_owned())
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_mkfs_are_understood() {
        assert_eq!(version("mkfs.erofs (erofs-utils) 1.8.6\navailable").as_deref(), Some("1.8.6"));
        assert_eq!(version("<W> something\nmkfs.erofs 1.5\n").as_deref(), Some("1.5"));
        assert!(numbers("1.5") < Some(LEAST_VERSION) && numbers("1.10") > Some(LEAST_VERSION));
        assert_eq!(version("mkfs.erofs: unknown option"), None);
    }
}
