//! Why an image of a registry cannot be had, so that a person knows what to do.

use snug_rootfs::layers::LayerError;

use super::digest::Digest;

#[derive(Debug, thiserror::Error)]
pub enum OciError {
    #[error(
        "`{0}` is not a reference to an image\n\
         hint: with registry and tag or digest, as \"docker.io/library/alpine:3.23\""
    )]
    BadReference(String),
    #[error("no build has asked yet what {0} means")]
    Unresolved(String),
    #[error(
        "the registry has no image {reference}\n  {said}\n\
         hint: mind the spelling, and the tags that it has: skopeo list-tags {repository}"
    )]
    NotFound { reference: String, repository: String, said: String },
    #[error(
        "the registry {registry} refuses to give {reference} without a login that it accepts\n  {said}\n\
         hint: skopeo login {registry}, or point REGISTRY_AUTH_FILE at an auth.json that has it; a registry may also \
         answer so for an image that is not there"
    )]
    Refused { reference: String, registry: String, said: String },
    #[error(
        "the registry {registry} cannot be reached\n  {said}\n\
         hint: a mirror, or an address that is not the name's, goes into registries.conf (containers-registries.conf(5); \
         CONTAINERS_REGISTRIES_CONF names another file)"
    )]
    Unreachable { registry: String, said: String },
    #[error(
        "the registry {registry} speaks no TLS that this host trusts\n  {said}\n\
         hint: trust its authority (/etc/containers/certs.d/{registry}), or mark it `insecure = true` in registries.conf"
    )]
    Insecure { registry: String, said: String },
    #[error(
        "{what} {expected} of {reference} is damaged where it came from: what was served hashes to {found}\n\
         hint: the registry's storage, or something on the way, changed it; push the image again"
    )]
    Damaged { what: &'static str, reference: String, expected: Digest, found: Digest },
    #[error(
        "{what} {expected} of {reference} is damaged in the cache: it hashes to {found}\n\
         hint: the copy was removed, and the next run downloads the image anew"
    )]
    DamagedCopy { what: &'static str, reference: String, expected: Digest, found: Digest },
    #[error(
        "this host does not let skopeo get {reference}\n  {said}\n\
         hint: skopeo reads registries.conf and policy.json, in /etc/containers and ~/.config/containers"
    )]
    Host { reference: String, said: String },
    #[error("the registry {registry} failed to give {reference}\n  {said}")]
    Failed { reference: String, registry: String, said: String },
    #[error(
        "{reference} is not there for {wanted}: it is for {}\n\
         hint: name another image, or another platform", if offered.is_empty() { "none that is named".to_owned() } else { offered.join(", ") }
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
