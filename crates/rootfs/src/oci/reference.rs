//! References to images of registries.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Digest;

/// Most characters of a tag (OCI distribution-spec, "Pulling manifests").
const TAG_MAX: usize = 128;

/// `registry/repository:tag@digest`, with a tag or a digest or both; a digest decides which manifest is meant (OCI
/// distribution-spec, "Pulling manifests", and the reference grammar of the distribution project).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    /// With the registry's host: `docker.io/library/alpine`.
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The first part is not the host of a registry: `alpine:3.23`.
    #[error("`{0}` names no registry")]
    NoRegistry(String),
    /// What follows `@` is not a digest.
    #[error("`{0}` is not a digest")]
    BadDigest(String),
    /// There is neither a tag nor a digest.
    #[error("`{0}` has neither tag nor digest, so the image that it names would change over time")]
    Floating(String),
    /// A character or a part is not allowed where it stands.
    #[error("`{0}` is not a reference to an image")]
    Malformed(String),
}

impl Reference {
    /// Returns the registry's host, with its port where one is written.
    pub fn registry(&self) -> &str {
        self.repository.split_once('/').map_or(&self.repository, |(host, _)| host)
    }

    /// Returns the repository, with the registry's host: `docker.io/library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag, if one is written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, if the reference is pinned by one.
    pub fn pin(&self) -> Option<Digest> {
        self.digest
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let whole = || text.to_owned();
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // A host has a dot or a port, unlike the first part of a name on Docker Hub.
        let (host, path) = name
            .split_once('/')
            .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
            .ok_or_else(|| ReferenceError::NoRegistry(whole()))?;
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let parse = |digest: &str| digest.parse().map_err(|_| ReferenceError::BadDigest(digest.to_owned()));
        let digest = digest.map(parse).transpose()?;
        if digest.is_none() && tag.is_none() {
            return Err(ReferenceError::Floating(whole()));
        }
        let component = |part: &str| is_word(part, b"-._") && !part.bytes().any(|byte| byte.is_ascii_uppercase());
        if !is_word(host, b"-.:") || !path.split('/').all(component) || !tag.is_none_or(is_tag) {
            return Err(ReferenceError::Malformed(whole()));
        }
        Ok(Reference { repository: format!("{host}/{path}"), tag: tag.map(ToOwned::to_owned), digest })
    }
}

/// Whether `text` consists of letters, digits and `extra`, beginning with a letter or digit.
fn is_word(text: &str, extra: &[u8]) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_MAX
        && tag.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
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

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_is_parsed_into_its_parts_and_written_as_it_was() {
        let pin = format!("sha256:{}", "a".repeat(64));
        for (text, registry, tag) in [
            ("docker.io/library/alpine:3.23".to_owned(), "docker.io", Some("3.23")),
            ("localhost:5000/a/b:1".to_owned(), "localhost:5000", Some("1")),
            (format!("ghcr.io/a/b@{pin}"), "ghcr.io", None),
            (format!("localhost/a:_1@{pin}"), "localhost", Some("_1")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.registry(), reference.tag()), (registry, tag), "{text}");
            assert_eq!(reference.pin().is_some(), text.contains('@'));
            assert_eq!(reference.to_string(), text);
        }
    }

    #[test]
    fn each_mistake_has_its_error() {
        let parse = |text: &str| text.parse::<Reference>().unwrap_err();
        assert!(matches!(parse("alpine:3"), ReferenceError::NoRegistry(_)));
        assert!(matches!(parse("library/alpine:3"), ReferenceError::NoRegistry(_)));
        assert!(matches!(parse("docker.io/alpine"), ReferenceError::Floating(_)));
        assert!(matches!(parse("docker.io/alpine@sha256:12"), ReferenceError::BadDigest(_)));
        for text in ["docker.io/Alpine:3", "docker.io//a:1", "docker.io/a:", "docker.io/a:-x", "docker.io/a b:1"] {
            assert!(matches!(parse(text), ReferenceError::Malformed(_)), "{text}");
        }
    }
}
