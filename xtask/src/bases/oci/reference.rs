//! Names of images in registries.

use std::fmt;

use snug_rootfs::platform::Platform;

use super::digest::Digest;
use super::error::OciError;

/// `registry/repository:tag@digest`, with tag or digest or both; the digest decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reference {
    /// With the registry's host: `docker.io/library/alpine`.
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a reference whose form the spec's reader has checked.
    pub(super) fn parse(text: &str) -> Result<Self, OciError> {
        let bad = || OciError::BadReference(text.to_owned());
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().map_err(|_| bad())?)),
            None => (text, None),
        };
        // A colon before the first slash divides host and port.
        let slash = name.find('/').ok_or_else(bad)?;
        let (repository, tag) = match name[slash..].rfind(':') {
            Some(colon) => (&name[..slash + colon], Some(name[slash + colon + 1..].to_owned())),
            None => (name, None),
        };
        if digest.is_none() && tag.is_none() {
            return Err(bad());
        }
        Ok(Reference { repository: repository.to_owned(), tag, digest })
    }

    /// The registry's host, with its port where one is written.
    pub(super) fn registry(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(host, _)| host)
    }

    /// The digest that the spec pins.
    pub(super) fn pin(&self) -> Option<Digest> {
        self.digest
    }

    /// How skopeo is asked for what the reference names. It takes no tag beside a digest.
    pub(super) fn source(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => self.source_of(digest),
            (None, Some(tag)) => format!("docker://{}:{tag}", self.repository),
            (None, None) => format!("docker://{}", self.repository),
        }
    }

    /// How skopeo is asked for one manifest of the repository.
    pub(super) fn source_of(&self, digest: &Digest) -> String {
        format!("docker://{}@{digest}", self.repository)
    }

    /// A file name for what is kept of the reference on one platform.
    pub(super) fn file_name(&self, platform: Platform) -> String {
        /// Digits of a pin that are enough to tell one from another.
        const DIGITS: usize = 12;
        let plain = |text: &str| text.replace(['/', ':'], "_");
        let tag = self.tag.as_ref().map(|tag| format!("_{tag}")).unwrap_or_default();
        let pin = self.digest.map(|digest| format!("_{}", &digest.hex()[..DIGITS])).unwrap_or_default();
        format!("oci_{}{tag}{pin}_{}", plain(&self.repository), plain(platform.as_str()))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart() {
        let pin = format!("sha256:{}", "a".repeat(64));
        let source = |text: &str| Reference::parse(text).unwrap().source();
        assert_eq!(source("docker.io/library/alpine:3.23"), "docker://docker.io/library/alpine:3.23");
        assert_eq!(source("localhost:5000/a/b:1"), "docker://localhost:5000/a/b:1");
        assert_eq!(source(&format!("localhost:5000/a/b:1@{pin}")), format!("docker://localhost:5000/a/b@{pin}"));
        let pinned = Reference::parse(&format!("ghcr.io/a/b@{pin}")).unwrap();
        assert_eq!(pinned.registry(), "ghcr.io");
        assert_eq!(pinned.to_string(), format!("ghcr.io/a/b@{pin}"));
        assert_eq!(pinned.file_name(Platform::Amd64), "oci_ghcr.io_a_b_aaaaaaaaaaaa_linux_amd64");
        let tagged = Reference::parse("localhost:5000/a:1.2-x").unwrap();
        assert_eq!(tagged.file_name(Platform::Arm64), "oci_localhost_5000_a_1.2-x_linux_arm64");
        for bad in ["alpine:3", "docker.io/alpine", "docker.io/alpine@sha256:12"] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }
}
