//! The packages that a tree has installed, from the databases of its package managers: dpkg's `status` (deb822, dpkg(1)) and apk's
//! `installed` (apk-tools, `apk-package(5)`).

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::regular_file;
use super::tree::{RootTree, TreePath};

/// An installed package.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstalledPackage {
    /// Its name: `zlib1g`.
    pub name: String,
    /// Its version, as the package manager writes it: `1:1.3.dfsg-3`.
    pub version: String,
    /// Its architecture, by the distribution's name: `amd64`, `x86_64`, `all`.
    pub architecture: String,
}

/// The databases of dpkg and apk; apk 3 moved its own below `/usr`.
const DPKG: &str = "var/lib/dpkg/status";
const APK: [&str; 2] = ["usr/lib/apk/db/installed", "lib/apk/db/installed"];
/// Bytes of the largest database that is read: all 70,000 packages of Debian have about 60 MiB in their index.
const DATABASE_MAX: u64 = 128 << 20;

/// Returns all installed packages, sorted by name; none where the tree has no package manager.
///
/// # Errors
///
/// A database cannot be read, or is larger than any real one.
pub fn installed(tree: &RootTree) -> Result<Vec<InstalledPackage>> {
    let mut packages = Vec::new();
    if let Some(text) = read(tree, DPKG)? {
        packages.extend(text.split("\n\n").filter_map(dpkg_package));
    }
    for place in APK {
        if let Some(text) = read(tree, place)? {
            packages.extend(text.split("\n\n").filter_map(apk_package));
        }
    }
    packages.sort();
    // On a merged /usr both paths of apk are the same file.
    packages.dedup();
    Ok(packages)
}

fn read(tree: &RootTree, place: &str) -> Result<Option<String>> {
    let bytes = regular_file::read_from_tree(tree, &TreePath::new(place)?, DATABASE_MAX)
        .with_context(|| format!("cannot list the packages: /{place} of the tree cannot be read"))?;
    Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Parses a stanza of dpkg's status file. Packages that were removed but not purged stay in it: they are `None`.
fn dpkg_package(stanza: &str) -> Option<InstalledPackage> {
    let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(|text| text.trim().to_owned());
    if field("Status:")?.split_whitespace().next_back() != Some("installed") {
        return None;
    }
    Some(InstalledPackage {
        name: field("Package:")?,
        version: field("Version:")?,
        architecture: field("Architecture:")?,
    })
}

/// Parses a paragraph of apk's database, whose fields have names of one letter.
fn apk_package(paragraph: &str) -> Option<InstalledPackage> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    Some(InstalledPackage { name: field("P:")?, version: field("V:")?, architecture: field("A:")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Body, BodySource, Inode, Kind};

    fn tree(place: &str, text: &str) -> RootTree {
        let mut tree = RootTree::new(BodySource::new(text.as_bytes().to_vec()));
        let file = Kind::File(Body::contiguous(text.len() as u64, 0));
        tree.insert(TreePath::new(place).unwrap(), Inode::new(file, 0o644)).unwrap();
        tree
    }

    fn shown(tree: &RootTree) -> Vec<String> {
        let packages = installed(tree).unwrap();
        packages.iter().map(|p| format!("{} {} {}", p.name, p.version, p.architecture)).collect()
    }

    #[test]
    fn dpkg_lists_what_is_installed_and_not_what_was_removed() {
        let status = "Package: zlib1g\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.3\nDescription: x\n Version: 9\n\n\
                      Package: gone\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n\n\
                      Package: apt\nStatus: hold ok installed\nArchitecture: amd64\nVersion: 3.0.3\n";
        assert_eq!(shown(&tree(DPKG, status)), ["apt 3.0.3 amd64", "zlib1g 1:1.3 amd64"]);
    }

    #[test]
    fn apk_is_read_at_both_of_its_paths() {
        let database =
            "C:Q1abc=\nP:musl\nV:1.2.5-r21\nA:x86_64\nF:lib\nR:ld-musl\n\nP:busybox\nV:1.37.0-r30\nA:x86_64\n";
        for place in APK {
            assert_eq!(shown(&tree(place, database)), ["busybox 1.37.0-r30 x86_64", "musl 1.2.5-r21 x86_64"]);
        }
    }

    #[test]
    fn a_sparse_database_is_an_error_and_takes_no_memory() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let body = Body { size: 40 << 30, ..Body::default() };
        tree.insert(TreePath::new(DPKG).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap();
        let error = format!("{:#}", installed(&tree).unwrap_err());
        assert!(error.contains("/var/lib/dpkg/status") && error.contains("128 MiB"), "{error}");
    }

    #[test]
    fn a_tree_without_a_package_manager_has_no_packages() {
        assert!(shown(&tree("etc/passwd", "")).is_empty());
    }
}
