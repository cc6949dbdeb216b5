//! How skopeo and the cache name what a reference names.

use snug_rootfs::oci::{Digest, Reference};
use snug_rootfs::platform::Platform;

/// Digits of a pin that distinguish one from another in a file name.
const PIN_DIGITS: usize = 12;

/// Returns skopeo's name of what the reference names. skopeo takes no tag beside a digest.
pub(super) fn of_reference(reference: &Reference) -> String {
    match (reference.pin(), reference.tag()) {
        (Some(digest), _) => of_manifest(reference, &digest),
        (None, Some(tag)) => format!("docker://{}:{tag}", reference.repository()),
        (None, None) => format!("docker://{}", reference.repository()),
    }
}

/// Returns skopeo's name of one manifest of the reference's repository.
pub(super) fn of_manifest(reference: &Reference, digest: &Digest) -> String {
    format!("docker://{}@{digest}", reference.repository())
}

/// Returns a file name for what the cache keeps of the reference on one platform.
pub(super) fn file_name(reference: &Reference, platform: Platform) -> String {
    let plain = |text: &str| text.replace(['/', ':'], "_");
    let tag = reference.tag().map(|tag| format!("_{tag}")).unwrap_or_default();
    let pin = reference.pin().map(|digest| format!("_{}", &digest.hex()[..PIN_DIGITS])).unwrap_or_default();
    format!("oci_{}{tag}{pin}_{}", plain(reference.repository()), plain(platform.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skopeo_and_the_cache_name_references_their_own_way() {
        let pin = format!("sha256:{}", "a".repeat(64));
        let reference = |text: &str| text.parse::<Reference>().unwrap();
        let source = |text: &str| of_reference(&reference(text));
        assert_eq!(source("docker.io/library/alpine:3.23"), "docker://docker.io/library/alpine:3.23");
        assert_eq!(source("localhost:5000/a/b:1"), "docker://localhost:5000/a/b:1");
        assert_eq!(source(&format!("localhost:5000/a/b:1@{pin}")), format!("docker://localhost:5000/a/b@{pin}"));
        let pinned = reference(&format!("ghcr.io/a/b@{pin}"));
        assert_eq!(file_name(&pinned, Platform::Amd64), "oci_ghcr.io_a_b_aaaaaaaaaaaa_linux_amd64");
        let tagged = reference("localhost:5000/a:1.2-x");
        assert_eq!(file_name(&tagged, Platform::Arm64), "oci_localhost_5000_a_1.2-x_linux_arm64");
    }
}
