//! Names of a build's images and container, and the labels by which a later run finds them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use crate::cache::Cache;

/// Label with the name of the build's work folder.
pub(super) const WORK_LABEL: &str = "snug.work";
/// Label with the id of the build's cache.
pub(super) const CACHE_LABEL: &str = "snug.cache";
/// Repository of all images made here.
pub(super) const REPOSITORY: &str = "localhost/snug";

/// The names of one build.
pub(super) struct BuildNames {
    /// Name of the build's work folder.
    pub(super) work: String,
    /// Tells one cache from another on the same daemon.
    pub(super) cache: String,
}

impl BuildNames {
    pub(super) fn base_image(&self) -> String {
        base_image(&self.work)
    }

    pub(super) fn image(&self) -> String {
        image(&self.work)
    }

    pub(super) fn container(&self) -> String {
        container(&self.work)
    }

    /// Labels of the base, inherited by every image and container that is made of it.
    pub(super) fn labels(&self) -> [String; 2] {
        [format!("{WORK_LABEL}={}", self.work), format!("{CACHE_LABEL}={}", self.cache)]
    }
}

pub(super) fn base_image(work: &str) -> String {
    format!("{REPOSITORY}:{work}-base")
}

pub(super) fn image(work: &str) -> String {
    format!("{REPOSITORY}:{work}")
}

pub(super) fn container(work: &str) -> String {
    format!("snug-{work}")
}

pub(super) fn name_of(work: &Path) -> String {
    work.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns an id that tells this cache from those of other machines and users of the same daemon.
pub(super) fn cache_id(cache: &Cache) -> String {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let host = nix::unistd::gethostname().unwrap_or_default();
    let mut hasher = DefaultHasher::new();
    (machine, host, cache.root()).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}
