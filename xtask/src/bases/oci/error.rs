//! Why an image of a registry cannot be used, with what to do about it.

use snug_rootfs::layers::LayerError;
use snug_rootfs::oci::Digest;

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error("{0} has not been fetched yet")]
    Unresolved(String),
    #[error(
        "the registry has no image {reference}\n  {said}\n\
         hint: check the name, and list the repository's tags: skopeo list-tags {repository}"
    )]
    NotFound { reference: String, repository: String, said: String },
    #[error(
        "the registry {registry} does not give {reference} without a valid login\n  {said}\n\
         hint: skopeo login {registry}, or point REGISTRY_AUTH_FILE at an auth.json that has it; some registries say \
         the same of an image that does not exist"
    )]
    Refused { reference: String, registry: String, said: String },
    #[error(
        "the registry {registry} cannot be reached\n  {said}\n\
         hint: set a mirror or another address in registries.conf (containers-registries.conf(5); \
         CONTAINERS_REGISTRIES_CONF names another file)"
    )]
    Unreachable { registry: String, said: String },
    #[error(
        "the registry {registry} has no TLS certificate that this host trusts\n  {said}\n\
         hint: add its certificate authority to /etc/containers/certs.d/{registry}, or set `insecure = true` in registries.conf"
    )]
    Insecure { registry: String, said: String },
    #[error(
        "{what} {expected} of {reference} is damaged in the registry: what it serves hashes to {found}\n\
         hint: push the image again"
    )]
    Damaged { what: &'static str, reference: String, expected: Digest, found: Digest },
    #[error(
        "{what} {expected} of {reference} is damaged in the cache: it hashes to {found}\n\
         hint: the copy was removed; run again to download the image"
    )]
    DamagedCopy { what: &'static str, reference: String, expected: Digest, found: Digest },
    #[error(
        "this host's configuration keeps skopeo from fetching {reference}\n  {said}\n\
         hint: skopeo reads registries.conf and policy.json, in /etc/containers and ~/.config/containers"
    )]
    Host { reference: String, said: String },
    #[error("the registry {registry} failed to serve {reference}\n  {said}")]
    Failed { reference: String, registry: String, said: String },
    #[error(
        "{reference} has no image for {wanted}, only for {}\n\
         hint: name another image, or another platform", if offered.is_empty() { "platforms that it does not name".to_owned() } else { offered.join(", ") }
    )]
    NoPlatform { reference: String, wanted: String, offered: Vec<String> },
    #[error("{reference}: the {what} is not what the OCI image specification says: {reason}")]
    Malformed { reference: String, what: &'static str, reason: String },
    #[error("{reference}: {what} of the kind {kind} cannot be used")]
    Unsupported { reference: String, what: &'static str, kind: String },
    #[error("{reference}: the image has {count} {what}, more than {max}")]
    TooMuch { reference: String, what: &'static str, count: u64, max: u64 },
    #[error("{reference}: layer {number} of {count}, {digest}")]
    Layer { reference: String, number: usize, count: usize, digest: Digest, source: Box<LayerError> },
    #[error("{reference}: layer {digest} unpacks to {found}, and the image's configuration says {expected}")]
    WrongContent { reference: String, digest: Digest, expected: Digest, found: Digest },
}
