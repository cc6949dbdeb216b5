//! Image manifests, image indexes and configurations: the blobs of an image, and its platform.
//!
//! Sources: OCI image-spec 1.1 (manifest.md, image-index.md, config.md); Docker's "Image Manifest Version 2, Schema 2",
//! which has the same fields under other media types.

use serde::Deserialize;
use snug_rootfs::oci::{Digest, Reference};
use snug_rootfs::platform::Platform;

use super::error::OciError;
use crate::report::amounts::count;

/// Most layers of an image. Docker itself cannot mount more than 127.
const MAX_LAYERS: usize = 512;

/// Most bytes of a manifest or configuration. Registries take manifests of up to 4 MiB (OCI distribution-spec, "Pushing
/// Manifests"), and a configuration is of the same kind.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

/// What a registry returns for a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Document {
    /// Manifests for several platforms.
    Index(Vec<IndexEntry>),
    Image(ImageManifest),
}

/// The blobs of one image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ImageManifest {
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct IndexEntry {
    #[serde(flatten)]
    pub descriptor: Descriptor,
    pub platform: Option<Runs>,
}

/// The platform of an image, as indexes and configurations write it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Runs {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    pub variant: Option<String>,
}

/// The parts of the configuration that are used.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    pub runs: Runs,
    rootfs: RootFs,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

impl Runs {
    fn on(&self, platform: Platform) -> bool {
        let (architecture, variant) = match platform {
            Platform::Amd64 => ("amd64", "v1"),
            // 64-bit ARM begins with version 8.
            Platform::Arm64 => ("arm64", "v8"),
        };
        self.os == "linux"
            && self.architecture == architecture
            && self.variant.as_deref().is_none_or(|said| said.is_empty() || said == variant)
    }

    fn describe(&self) -> String {
        let variant = self.variant.as_ref().filter(|variant| !variant.is_empty());
        format!("{}/{}{}", self.os, self.architecture, variant.map(|v| format!("/{v}")).unwrap_or_default())
    }
}

/// Parses a manifest or an index. A document that is both is an error, since readers would disagree about it
/// (CVE-2021-41190).
pub(super) fn parse(bytes: &[u8], reference: &Reference) -> Result<Document, OciError> {
    let malformed = |reason: String| OciError::Malformed { reference: reference.to_string(), what: "manifest", reason };
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(malformed(format!("it is larger than {MAX_DOCUMENT} bytes")));
    }
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| malformed(format!("not JSON: {error}")))?;
    let has = |key: &str| value.get(key).is_some_and(|found| !found.is_null());
    match (has("manifests"), has("layers")) {
        (true, false) => {
            let entries = Vec::<IndexEntry>::deserialize(&value["manifests"]);
            Ok(Document::Index(entries.map_err(|error| malformed(error.to_string()))?))
        }
        (false, true) => {
            let manifest = ImageManifest::deserialize(&value).map_err(|error| malformed(error.to_string()))?;
            check_layers(&manifest, reference)?;
            Ok(Document::Image(manifest))
        }
        (true, true) => Err(malformed("it is an index and an image at once".to_owned())),
        (false, false) if has("fsLayers") => Err(OciError::Unsupported {
            reference: reference.to_string(),
            what: "a manifest",
            kind: "Docker schema 1, given up in 2017,".to_owned(),
        }),
        (false, false) => Err(malformed("it has neither layers nor manifests".to_owned())),
    }
}

fn check_layers(manifest: &ImageManifest, reference: &Reference) -> Result<(), OciError> {
    let count = manifest.layers.len();
    if count > MAX_LAYERS {
        let (count, max) = (count as u64, MAX_LAYERS as u64);
        return Err(OciError::TooMuch { reference: reference.to_string(), what: "layers", count, max });
    }
    // Registries also hold charts, signatures and models. Layers of a root filesystem are tar archives.
    let strange = |layer: &&Descriptor| !layer.media_type.contains(".tar") || layer.media_type.contains("encrypted");
    match manifest.layers.iter().find(strange) {
        Some(layer) => Err(OciError::Unsupported {
            reference: reference.to_string(),
            what: "a layer",
            kind: format!("`{}`", layer.media_type),
        }),
        None => Ok(()),
    }
}

/// Returns the first manifest of an index for a platform.
pub(super) fn choose(entries: &[IndexEntry], platform: Platform, reference: &Reference) -> Result<Digest, OciError> {
    let fits = |entry: &&IndexEntry| entry.platform.as_ref().is_some_and(|runs| runs.on(platform));
    let chosen = entries.iter().find(fits).map(|entry| entry.descriptor.digest);
    chosen.ok_or_else(|| {
        // Build attestations are listed under this platform.
        let known = |runs: &&Runs| runs.os != "unknown";
        let offered = entries.iter().filter_map(|entry| entry.platform.as_ref()).filter(known).map(Runs::describe);
        missing(reference, platform, offered.collect())
    })
}

fn missing(reference: &Reference, platform: Platform, offered: Vec<String>) -> OciError {
    OciError::NoPlatform { reference: reference.to_string(), wanted: platform.to_string(), offered }
}

impl Config {
    /// Parses the configuration of an image with `layers` layers for `platform`.
    pub(super) fn parse(
        bytes: &[u8],
        layers: usize,
        platform: Platform,
        reference: &Reference,
    ) -> Result<Self, OciError> {
        let malformed = |reason| {
            let what = "configuration";
            OciError::Malformed { reference: reference.to_string(), what, reason }
        };
        let config: Config = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        if config.rootfs.diff_ids.len() != layers {
            let found = config.rootfs.diff_ids.len();
            return Err(malformed(format!("it has {}, and the manifest has {layers}", count(found, "layer"))));
        }
        if !config.runs.on(platform) {
            return Err(missing(reference, platform, vec![config.runs.describe()]));
        }
        Ok(config)
    }

    /// Returns the digests of the uncompressed layers, the lowest first.
    pub(super) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference() -> Reference {
        "registry.test/image:1".parse::<Reference>().unwrap()
    }

    fn descriptor(kind: &str, digit: char, platform: &str) -> String {
        let digest = String::from(digit).repeat(64);
        format!(r#"{{"mediaType": "{kind}", "digest": "sha256:{digest}", "size": 7{platform}}}"#)
    }

    fn index(platforms: &[(&str, char)]) -> Vec<IndexEntry> {
        let entry = |(platform, digit): &(&str, char)| {
            let mut parts = platform.split('/');
            let mut field = |name: &str| parts.next().map(|part| format!(r#""{name}": "{part}""#));
            let fields = [field("os"), field("architecture"), field("variant")];
            let fields: Vec<String> = fields.into_iter().flatten().collect();
            descriptor("x", *digit, &format!(r#", "platform": {{{}}}"#, fields.join(", ")))
        };
        let entries: Vec<String> = platforms.iter().map(entry).collect();
        let text = format!(r#"{{"schemaVersion": 2, "manifests": [{}]}}"#, entries.join(", "));
        match parse(text.as_bytes(), &reference()).unwrap() {
            Document::Index(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_that_runs_on_the_platform_is_chosen() {
        let entries = index(&[
            ("unknown/unknown", '0'),
            ("windows/amd64", '1'),
            ("linux/amd64/v3", '2'),
            ("linux/amd64", '3'),
            ("linux/arm64/v8", '4'),
            ("linux/amd64", '5'),
        ]);
        let chosen = |platform| choose(&entries, platform, &reference()).unwrap().hex();
        assert!(chosen(Platform::Amd64).starts_with('3'));
        assert!(chosen(Platform::Arm64).starts_with('4'));
        let error = choose(&entries[..3], Platform::Arm64, &reference()).unwrap_err().to_string();
        assert!(error.contains("has no image for linux/arm64, only for windows/amd64, linux/amd64/v3"), "{error}");
    }

    #[test]
    fn what_is_no_image_is_refused_in_words() {
        let tar = descriptor("application/vnd.oci.image.layer.v1.tar+gzip", 'a', "");
        let chart = descriptor("application/vnd.cncf.helm.chart.content.v1", 'b', "");
        let many = vec![tar.as_str(); MAX_LAYERS + 1].join(",");
        for (text, expected) in [
            ("<html>".to_owned(), "manifest is not what the OCI image specification says: not JSON"),
            ("{}".to_owned(), "neither layers nor manifests"),
            (r#"{"fsLayers": []}"#.to_owned(), "Docker schema 1"),
            (format!(r#"{{"manifests": [], "layers": [{tar}]}}"#), "an index and an image at once"),
            (format!(r#"{{"config": {tar}, "layers": [{}]}}"#, tar.replace("sha256:aa", "sha512:aa")), "not a SHA-256"),
            (format!(r#"{{"config": {tar}, "layers": [{chart}]}}"#), "helm.chart"),
            (format!(r#"{{"config": {tar}, "layers": [{many}]}}"#), "513 layers, more than 512"),
        ] {
            let error = parse(text.as_bytes(), &reference()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let config = r#"{"os": "linux", "architecture": "arm64", "rootfs": {"diff_ids": []}}"#;
        let error = Config::parse(config.as_bytes(), 1, Platform::Arm64, &reference()).unwrap_err().to_string();
        assert!(error.contains("it has 0 layers, and the manifest has 1"), "{error}");
        let error = Config::parse(config.as_bytes(), 0, Platform::Amd64, &reference()).unwrap_err().to_string();
        assert!(error.contains("has no image for linux/amd64, only for linux/arm64"), "{error}");
    }
}
