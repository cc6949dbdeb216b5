//! What a tree depends on, named field by field, and the fingerprint over it.

use std::collections::BTreeMap;

use anyhow::Result;
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use snug_rootfs::accounts::Owner;
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::Timestamp;

use super::{BuildPlan, DeviceKind, FileSource, PackageManager, PlannedDevice, PlannedFile, SecretSource, StepAction};

/// Part of every fingerprint: raised when a tree of the same inputs would come out otherwise than before.
const TREE_FORMAT: u32 = 5;

/// Part of the key of every layer: raised when a step of the same inputs would leave another layer than before.
const LAYER_FORMAT: u32 = 1;

/// Everything that a tree depends on.
///
/// What is not in here does not change the tree: the name, the places of the spec's lines, where files are on the host,
/// filesystem, overlay, verity, sizing, boot, engine, platforms. Two equal values have the same tree.
#[derive(Debug, Serialize)]
pub(super) struct TreeInputs<'a> {
    format: u32,
    platform: Platform,
    /// The fingerprint of what the tree starts from.
    base: &'a str,
    spec: SpecInputs<'a>,
    /// SHA-256 of what is taken from the host for each file of the spec that is not written in it, in order.
    sources: Vec<String>,
    /// Times are clamped to it, in seconds since the epoch.
    source_date_epoch: Option<i64>,
}

/// What the spec itself says of the tree.
#[derive(Debug, Serialize)]
struct SpecInputs<'a> {
    steps: Vec<StepInput<'a>>,
    environment: &'a [(String, String)],
    hostname: Option<&'a str>,
    files: Vec<FileInput<'a>>,
    devices: Vec<DeviceInput<'a>>,
    secrets: Vec<(&'a str, SecretInput<'a>)>,
    exclude: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
enum StepInput<'a> {
    Install(PackageManager, &'a [String]),
    Files,
    Shell(&'a str),
    ShellWithoutNetwork(&'a str),
}

#[derive(Debug, Serialize)]
struct FileInput<'a> {
    to: String,
    /// `None`: it is among the sources.
    text: Option<&'a str>,
    mode: Option<u16>,
    owner: Option<&'a Owner>,
    xattrs: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct DeviceInput<'a> {
    path: String,
    kind: DeviceKind,
    number: (u32, u32),
    mode: u16,
    owner: Option<&'a Owner>,
}

/// Which secret it is. Its value is in no fingerprint: that would tell of it.
#[derive(Debug, Serialize)]
enum SecretInput<'a> {
    File(&'a str),
    Environment(&'a str),
}

/// All that one step can depend on.
#[derive(Debug, Serialize)]
struct LayerInput<'a> {
    format: u32,
    platform: Platform,
    /// The key of the layer below, or the fingerprint of the base.
    below: &'a str,
    step: Option<&'a StepInput<'a>>,
    /// Where the step places them.
    files: Option<(&'a Vec<FileInput<'a>>, &'a Vec<String>)>,
    environment: &'a [(String, String)],
    hostname: Option<&'a str>,
    secrets: &'a [(&'a str, SecretInput<'a>)],
    source_date_epoch: Option<i64>,
}

impl<'a> TreeInputs<'a> {
    /// Collects the inputs of `plan` on the base of that fingerprint.
    pub(super) fn of(plan: &'a BuildPlan, base: &'a str) -> Self {
        let step = |action: &'a StepAction| match action {
            StepAction::Install { manager, packages } => StepInput::Install(*manager, packages),
            StepAction::Files(_) => StepInput::Files,
            StepAction::Shell { command, network: true } => StepInput::Shell(command),
            StepAction::Shell { command, network: false } => StepInput::ShellWithoutNetwork(command),
        };
        // Without `..`: a new field does not compile until it is decided whether it changes the tree.
        let file = |file: &'a PlannedFile| {
            let PlannedFile { place: _, source, to, mode, owner, xattrs } = file;
            let text = match source {
                FileSource::Text(text) => Some(text.as_str()),
                FileSource::Host(_) => None,
            };
            let xattrs = xattrs.iter().map(|(name, value)| (name.clone(), hex(value))).collect();
            FileInput { to: to.to_string(), text, mode: *mode, owner: owner.as_ref(), xattrs }
        };
        let device = |device: &'a PlannedDevice| {
            let PlannedDevice { place: _, path, kind, major, minor, mode, owner } = device;
            let (path, number) = (path.to_string(), (*major, *minor));
            DeviceInput { path, kind: *kind, number, mode: *mode, owner: owner.as_ref() }
        };
        let spec = SpecInputs {
            steps: plan.steps.iter().map(|planned| step(&planned.action)).collect(),
            environment: &plan.environment,
            hostname: plan.hostname.as_deref(),
            files: plan.files.iter().map(file).collect(),
            devices: plan.devices.iter().map(device).collect(),
            secrets: plan.secrets.iter().map(|secret| (secret.id.as_str(), SecretInput::of(&secret.source))).collect(),
            exclude: plan.exclude.iter().map(|exclude| exclude.glob.as_str()).collect(),
        };
        let hosts = plan.files.iter().filter_map(|file| match &file.source {
            FileSource::Host(source) => Some(source),
            FileSource::Text(_) => None,
        });
        TreeInputs {
            format: TREE_FORMAT,
            platform: plan.platform,
            base,
            spec,
            sources: hosts.map(|source| source.sha256()).collect(),
            source_date_epoch: Timestamp::source_date_epoch(),
        }
    }

    /// Returns the SHA-256 over all inputs, as hex.
    pub(super) fn fingerprint(&self) -> Result<String> {
        hashed(self)
    }

    /// Returns, for each step, the SHA-256 over all that the tree after it depends on, as hex. Without steps there is one for what
    /// entering the base changes.
    pub(super) fn layers(&self) -> Result<Vec<String>> {
        let mut below = self.base.to_owned();
        let mut key = |step: Option<&StepInput>| -> Result<String> {
            let files = matches!(step, Some(StepInput::Files)).then_some((&self.spec.files, &self.sources));
            below = hashed(&LayerInput {
                format: LAYER_FORMAT,
                platform: self.platform,
                below: &below,
                step,
                files,
                environment: self.spec.environment,
                hostname: self.spec.hostname,
                secrets: &self.spec.secrets,
                source_date_epoch: self.source_date_epoch,
            })?;
            Ok(below.clone())
        };
        match &self.spec.steps[..] {
            [] => Ok(vec![key(None)?]),
            steps => steps.iter().map(|step| key(Some(step))).collect(),
        }
    }

    /// Returns the digests by which a later plan tells what changed.
    pub(super) fn summary(&self) -> Result<Inputs> {
        Ok(Inputs { base: self.base.to_owned(), spec: hashed(&self.spec)?, files: hashed(&self.sources)? })
    }
}

impl<'a> SecretInput<'a> {
    fn of(source: &'a SecretSource) -> Self {
        match source {
            SecretSource::File { written, .. } => SecretInput::File(written),
            SecretSource::Environment(name) => SecretInput::Environment(name),
        }
    }
}

/// SHA-256 of a value's JSON, as hex.
fn hashed(value: &impl Serialize) -> Result<String> {
    Ok(hex(&Sha256::digest(serde_json::to_vec(value)?)))
}

/// SHA-256 of the inputs of a tree, kind by kind, to tell which of them changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub base: String,
    pub spec: String,
    pub files: String,
}

impl Inputs {
    /// Returns, in words, which inputs differ from those of an image that was built `before`.
    pub fn difference(&self, before: &Inputs) -> String {
        let kinds = [
            ("the base", &self.base, &before.base),
            ("the spec", &self.spec, &before.spec),
            ("the files", &self.files, &before.files),
        ];
        let changed: Vec<&str> =
            kinds.into_iter().filter(|(_, now, then)| now != then).map(|(kind, ..)| kind).collect();
        match changed[..] {
            [] => "the filesystem, the sizing or the tool changed".to_owned(),
            _ => format!("{} changed", changed.join(" and ")),
        }
    }
}
