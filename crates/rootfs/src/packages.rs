//! What a tree has installed, as its package managers' own databases say: dpkg's `status` (deb822, dpkg(1)) and apk's
//! `installed` (apk-tools, `apk-package(5)`).

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::tree::{Kind, RootTree, TreePath};

/// A package of a distribution.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InstalledPackage {
    pub name: String,
    pub version: String,
    pub architecture: String,
}

/// Where dpkg and apk say what is installed; apk 3 moved its database below /usr.
const DPKG: &str = "var/lib/dpkg/status";
const APK: [&str; 2] = ["usr/lib/apk/db/installed", "lib/apk/db/installed"];

/// All installed packages in order of their names; none where the tree has no package manager.
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
    // On a merged /usr both places of apk are one.
    packages.dedup();
    Ok(packages)
}

fn read(tree: &RootTree, place: &str) -> Result<Option<String>> {
    let path = tree.resolve(&TreePath::new(place)?);
    let Some(Kind::File(body)) = path.and_then(|path| tree.get(&path)).map(|inode| &inode.kind) else {
        return Ok(None);
    };
    let bytes = tree.bodies().read_to_vec(body).with_context(|| format!("cannot read /{place} of the tree"))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// One stanza of dpkg's: only what is installed counts, since what was removed stays listed with its settings.
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

/// One paragraph of apk's, of one-letter fields.
fn apk_package(paragraph: &str) -> Option<InstalledPackage> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
    Some(InstalledPackage { name: field("P:")?, version: field("V:")?, architecture: field("A:")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Body, BodySource, Inode};

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
    fn apk_is_read_at_both_its_places() {
        let database =
            "C:Q1abc=\nP:musl\nV:1.2.5-r21\nA:x86_64\nF:lib\nR:ld-musl\n\nP:busybox\nV:1.37.0-r30\nA:x86_64\n";
        for place in APK {
            assert_eq!(shown(&tree(place, database)), ["busybox 1.37.0-r30 x86_64", "musl 1.2.5-r21 x86_64"]);
        }
    }

    #[test]
    fn a_tree_without_a_package_manager_has_no_packages() {
        assert!(shown(&tree("etc/passwd", "")).is_empty());
    }
}
