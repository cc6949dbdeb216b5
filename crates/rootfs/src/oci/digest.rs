//! Digests in the form in which registries write them.

use std::fmt;
use std::str::FromStr;

use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::digest;

/// Prefix of the digits: the algorithm that every registry supports.
const ALGORITHM: &str = "sha256:";

/// A SHA-256, written `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor.md, "Digests").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(digest::Digest);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// Returns the digest of what was hashed.
    pub fn finish(hash: sha2::Sha256) -> Self {
        Digest(hash.finalize().into())
    }

    /// Returns the hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl From<digest::Digest> for Digest {
    fn from(digest: digest::Digest) -> Self {
        Digest(digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{ALGORITHM}{}", self.hex())
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut bytes = [0; 32];
            let digits = text.strip_prefix(ALGORITHM)?;
            let read = base16ct::lower::decode(digits, &mut bytes).ok()?.len();
            (read == bytes.len()).then_some(Digest(bytes))
        };
        parse().ok_or_else(|| format!("`{text}` is not a SHA-256 digest"))
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}
