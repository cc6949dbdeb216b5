//! Access to registries through skopeo, which handles credentials (auth.json), mirrors and insecure registries
//! (registries.conf), trust (policy.json) and certificate authorities.
//!
//! Its messages are translated into an [`OciError`] each, with a hint.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use snug_process::Child;
use snug_process::program::HostProgram;
use snug_rootfs::oci::{Digest, Reference};

use super::error::OciError;
use super::manifest::MAX_DOCUMENT;
use super::source;
use crate::error::Failure;
use crate::host::requirements::{self, Task};
use crate::report::progress::Stage;

const SKOPEO: HostProgram = HostProgram { name: "skopeo", package: "skopeo" };

/// The variable that names another registries.conf to Podman and newer versions of skopeo. skopeo 1.9 takes an option.
const REGISTRIES_CONF: &str = "CONTAINERS_REGISTRIES_CONF";

/// Where `podman login` and `skopeo login` keep logins for a user without a session (containers-auth.json(5)).
const SYSTEM_LOGINS: &str = "/run/containers";

/// Interval at which the progress of a download is read.
const TICK: Duration = Duration::from_millis(200);

/// Bytes of skopeo's standard error that are kept.
const MAX_COMPLAINT: u64 = 64 << 10;

/// Returns the manifest or index that `source` names, byte for byte as the registry has it.
pub(super) fn manifest(source: &str, reference: &Reference) -> Result<Vec<u8>> {
    run(&mut command(&["inspect", "--raw", source])?, reference, &mut || {})
}

/// Downloads the image that `source` names into `folder`, which must not exist: `manifest.json`, and each blob under the
/// hexadecimal digits of its digest. skopeo's `dir:` layout holds manifest and configuration as they were pushed; copied
/// into an OCI layout, an image with Docker's media types is rewritten and its digests change.
pub(super) fn download(source: &str, folder: &Path, reference: &Reference, stage: &Stage) -> Result<()> {
    let mut target = std::ffi::OsString::from("dir:");
    target.push(folder);
    let mut command = command(&["copy", "--quiet", source])?;
    command.arg(target);
    run(&mut command, reference, &mut || stage.advance_to(size_of(folder))).map(drop)
}

fn command(words: &[&str]) -> Result<Command> {
    requirements::require(&[Task::OciBase])?;
    let mut command = SKOPEO.command()?;
    if let Some(file) = std::env::var_os(REGISTRIES_CONF).filter(|file| !file.is_empty()) {
        command.arg("--registries-conf").arg(file);
    }
    if logins_are_out_of_reach() {
        // It then looks into ~/.config/containers and ~/.docker. Only root could write logins to `/`.
        command.env("XDG_RUNTIME_DIR", "/");
    }
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

/// Whether skopeo would fail to read a folder of logins that belongs to root. Without a session, as in many CI systems, it
/// looks into [`SYSTEM_LOGINS`], and takes a folder that only root can read for a broken file instead of for no login.
fn logins_are_out_of_reach() -> bool {
    let is_told = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if is_told("REGISTRY_AUTH_FILE") || is_told("XDG_RUNTIME_DIR") {
        return false;
    }
    let user = nix::unistd::Uid::current();
    let file = Path::new(SYSTEM_LOGINS).join(user.to_string()).join("auth.json");
    fs::metadata(file).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

/// Runs to the end, calling `tick` meanwhile, and returns standard output.
fn run(command: &mut Command, reference: &Reference, tick: &mut dyn FnMut()) -> Result<Vec<u8>> {
    let mut child = Child::start(command)?;
    let said = gather(child.stdout.take(), MAX_DOCUMENT + 1);
    let complaints = gather(child.stderr.take(), MAX_COMPLAINT);
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for skopeo")? {
            break status;
        }
        tick();
        thread::sleep(TICK);
    };
    let said = said.join().expect("reading does not panic").context("cannot read what skopeo says")?;
    let complaints = complaints.join().expect("reading does not panic").unwrap_or_default();
    if !status.success() {
        let error = translate(&String::from_utf8_lossy(&complaints), reference);
        return Err(match &error {
            OciError::Unreachable { .. } => Failure::Unreachable(error.to_string()).into(),
            _ => error.into(),
        });
    }
    Ok(said)
}

/// Reads a pipe to its end on another thread and keeps the first `most` bytes.
fn gather(pipe: Option<impl Read + Send + 'static>, most: u64) -> thread::JoinHandle<io::Result<Vec<u8>>> {
    thread::spawn(move || {
        let Some(mut pipe) = pipe else { return Ok(Vec::new()) };
        let mut bytes = Vec::new();
        pipe.by_ref().take(most).read_to_end(&mut bytes)?;
        io::copy(&mut pipe, &mut io::sink())?;
        Ok(bytes)
    })
}

fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|about| about.len()).sum()
}

/// Returns the error for what skopeo printed to standard error.
fn translate(complaints: &str, reference: &Reference) -> OciError {
    let said = last_message(complaints);
    let registry = reference.registry().to_owned();
    let reference_text = reference.to_string();
    // Where mirrors failed as well, the registry itself comes last, and its failure is the cause.
    let own = said.rsplit_once("]): ").map_or(said.as_str(), |(_, own)| own);
    let says = |needles: &[&str]| needles.iter().any(|needle| own.contains(needle));
    if let Some((expected, found)) = mismatch(own) {
        return OciError::Damaged { what: "the blob", reference: reference_text, expected, found };
    }
    if says(&["trust policy", "rejected by policy", "registries configuration", "registries.conf", "no space left"]) {
        return OciError::Host { reference: reference_text, said };
    }
    if says(&["manifest unknown", "name unknown", "NAME_UNKNOWN", "repository not found"]) {
        let source = source::of_reference(reference);
        let repository = source.split_once('@').map_or(source.as_str(), |(name, _)| name);
        let colon = repository.rfind(':').filter(|at| !repository[*at..].contains('/'));
        let repository = colon.map_or(repository, |at| &repository[..at]).to_owned();
        return OciError::NotFound { reference: reference_text, repository, said };
    }
    if says(&[
        "unauthorized",
        "authentication required",
        "access to the resource is denied",
        "invalid username",
        "403 (Forbidden)",
        "denied:",
    ]) {
        return OciError::Refused { reference: reference_text, registry, said };
    }
    if says(&["HTTP response to HTTPS client", "x509:", "tls:", "certificate"]) {
        return OciError::Insecure { registry, said };
    }
    if says(&[
        "no such host",
        "connection refused",
        "network is unreachable",
        "no route to host",
        "timeout",
        "timed out",
        "deadline exceeded",
        "server misbehaving",
        "Temporary failure in name resolution",
        "connection reset",
        "host is down",
        "proxyconnect",
        ": EOF",
    ]) {
        return OciError::Unreachable { registry, said };
    }
    OciError::Failed { reference: reference_text, registry, said }
}

/// Returns the two digests, expected and found, of skopeo's message about a damaged blob.
fn mismatch(said: &str) -> Option<(Digest, Digest)> {
    let digests: Vec<Digest> = said
        .split(|ch: char| !ch.is_ascii_alphanumeric() && ch != ':')
        .filter_map(|word| word.trim_end_matches(':').parse().ok())
        .collect();
    match digests.as_slice() {
        [.., expected, found] if said.contains("Digest did not match, expected ") => Some((*expected, *found)),
        [.., found, expected] if said.contains(" does not match expected ") => Some((*expected, *found)),
        _ => None,
    }
}

/// Returns the message of the last line, out of the form `time="…" level=fatal msg="…"`.
fn last_message(complaints: &str) -> String {
    let line = complaints.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim();
    let Some((_, quoted)) = line.split_once("msg=\"") else { return line.to_owned() };
    let quoted = quoted.strip_suffix('"').unwrap_or(quoted);
    let mut message = String::new();
    let mut chars = quoted.chars();
    while let Some(ch) = chars.next() {
        match ch {
            '\\' => message.push(chars.next().map_or('\\', |next| if next == 'n' { ' ' } else { next })),
            _ => message.push(ch),
        }
    }
    // The name was parsed; what failed comes after it.
    let lead = message.strip_prefix("Error parsing image name \"").and_then(|rest| rest.split_once("\": "));
    lead.map_or(message.clone(), |(_, rest)| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What skopeo 1.9.3 and 1.18 print, word for word but for hosts and digests.
    fn error(message: &str) -> OciError {
        let line = format!("time=\"2026-01-01T00:00:00Z\" level=fatal msg=\"{message}\"\n");
        translate(&line, &"registry.test:5000/a/b:1".parse::<Reference>().unwrap())
    }

    #[test]
    fn every_complaint_becomes_the_error_that_says_what_to_do() {
        let missing = error(
            r#"Error parsing image name \"docker://registry.test:5000/a/b:1\": reading manifest 1 in registry.test:5000/a/b: manifest unknown: manifest unknown"#,
        );
        assert!(matches!(&missing, OciError::NotFound { .. }));
        assert_eq!(
            missing.to_string(),
            "the registry has no image registry.test:5000/a/b:1\n  reading manifest 1 in registry.test:5000/a/b: \
             manifest unknown: manifest unknown\n\
             hint: check the name, and list the repository's tags: skopeo list-tags docker://registry.test:5000/a/b"
        );
        let refused = error("reading manifest 1 in registry.test:5000/a/b: unauthorized: authentication required");
        assert!(matches!(refused, OciError::Refused { .. }));
        let plain = error(
            r#"pinging container registry registry.test:5000: Get \"https://registry.test:5000/v2/\": http: server gave HTTP response to HTTPS client"#,
        );
        assert!(matches!(plain, OciError::Insecure { .. }));
        let gone = error(
            r#"pinging container registry registry.test:5000: Get \"https://registry.test:5000/v2/\": dial tcp 10.0.0.1:5000: connect: connection refused"#,
        );
        assert!(matches!(gone, OciError::Unreachable { .. }));
        // The mirror has no such image, and the registry itself is out of reach: that is what is to be mended.
        let mirrored = error(
            "(Mirrors also failed: [127.0.0.1:1/b:1: reading manifest 1 in b: manifest unknown: manifest unknown]): registry.test:5000/a/b:1: dial tcp: lookup registry.test on 10.0.0.53:53: no such host",
        );
        assert!(matches!(mirrored, OciError::Unreachable { .. }));
        assert!(mirrored.to_string().contains("Mirrors also failed"));
        let policy = error("Error loading trust policy: open /etc/containers/policy.json: no such file or directory");
        assert!(matches!(policy, OciError::Host { .. }));
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let damaged =
            error(&format!("writing blob: happened during read: Digest did not match, expected {one}, got {two}"));
        assert!(matches!(damaged, OciError::Damaged { expected, found, .. } if expected == one && found == two));
        let damaged = error(&format!(
            "reading config blob {one}: Download config.json digest {two} does not match expected {one}"
        ));
        assert!(matches!(damaged, OciError::Damaged { expected, found, .. } if expected == one && found == two));
        let other = error("received unexpected HTTP status: 500 Internal Server Error");
        assert_eq!(
            other.to_string(),
            "the registry registry.test:5000 failed to serve registry.test:5000/a/b:1\n  received unexpected HTTP status: 500 Internal Server Error"
        );
    }
}
