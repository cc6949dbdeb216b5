//! Checks that an image fits its spec's `max-size`, and holds no secrets and nothing that each machine must have of its own.

use std::time::Instant;

use snug_rootfs::glob::Glob;
use snug_rootfs::listing::{Listing, Record};
use snug_rootfs::tree::TreePath;

use super::verdict::{Check, Finding};
use crate::report::amounts::count;
use crate::report::progress::human_bytes;

const QUESTION: &str = "fits";
const JUDGE: &str = "the spec";

/// Files in which programs keep passwords and private keys. Public keys and `authorized_keys` are no secrets.
const SECRETS: [(&str, &str); 10] = [
    ("/etc/ssh/ssh_host_*_key", "an SSH host key: every machine must make its own"),
    ("/**/.ssh/id_*", "a private SSH key"),
    ("/**/.netrc", "a file of passwords"),
    ("/**/.git-credentials", "git's passwords"),
    ("/**/.docker/config.json", "a registry's login"),
    ("/**/.config/containers/auth.json", "a registry's login"),
    ("/**/.pypirc", "a package index's login"),
    ("/**/.aws/credentials", "a cloud's login"),
    ("/**/.gnupg/private-keys-v1.d/*", "a private key"),
    ("/run/secrets/*", "a secret of the build"),
];

/// Directories that must be empty: they are filled at boot.
const EMPTY: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];
/// Files that must be empty, so that every machine gets its own content.
const BLANK: [&str; 2] = ["etc/machine-id", "etc/resolv.conf"];

/// Size of the image and the spec's `max-size`, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct SizeLimit {
    pub size: u64,
    pub max_size: Option<u64>,
}

/// Judges what was found in the image; `meant` is what the tree held.
pub(super) fn check(found: &Listing, meant: Option<&Listing>, placed: &[TreePath], limit: SizeLimit) -> Check {
    let started = Instant::now();
    let mut findings = Vec::new();
    let mut say = |place: String, what: String| findings.push(Finding { place, what });
    if let Some(max) = limit.max_size.filter(|max| limit.size > *max) {
        say("/".into(), format!("{} are more than max-size, {}", human_bytes(limit.size), human_bytes(max)));
    }
    let get = |path: &str| TreePath::new(path).ok().and_then(|path| found.records.get(&path));
    for path in BLANK {
        if let Some(size) =
            get(path).map(Record::size).filter(|size| *size > 0).map(|size| usize::try_from(size).unwrap_or(usize::MAX))
        {
            say(
                format!("/{path}"),
                format!("{}; it must be empty, so that every machine gets its own", count(size, "byte")),
            );
        }
    }
    let secrets = SECRETS.map(|(glob, what)| (Glob::new(glob).expect("the patterns written here are valid"), what));
    for (path, record) in &found.records {
        let top = path.components().next().unwrap_or_default();
        // The spec may place files there.
        let is_placed = placed.iter().any(|placed| placed.is_within(path) || path.is_within(placed));
        if path.depth() > 1 && EMPTY.iter().any(|name| name.as_bytes() == top) && !is_placed {
            say(path.to_string(), "must not exist: this folder is filled at boot".into());
        }
        if record.size() > 0
            && !is_placed
            && path.as_bytes().strip_suffix(b".pub").is_none()
            && let Some((_, what)) = secrets.iter().find(|(glob, _)| glob.matches(path, false))
        {
            say(path.to_string(), (*what).into());
        }
    }
    let capabilities = found.capabilities();
    let capable = format!("{} with capabilities", count(capabilities, "file"));
    let meant = meant.map(Listing::capabilities);
    if meant.is_some_and(|meant| meant != capabilities) {
        say("/".into(), format!("{capable} instead of {}", meant.unwrap_or_default()));
    }
    let said = match findings.len() {
        0 => format!("no keys or secrets, no machine's identity, {capable}"),
        found => count(found, "finding"),
    };
    Check::passed(QUESTION, JUDGE, said).with_findings(findings).took(started.elapsed())
}

#[cfg(test)]
mod tests {
    use snug_rootfs::listing::Content;
    use snug_rootfs::tree::Kind;

    use super::*;

    fn listing(names: &[(&str, u64)]) -> Listing {
        let record = |size| Record::new(Kind::File(Content { size, digest: None }), 0o644);
        Listing { records: names.iter().map(|(path, size)| (TreePath::new(path).unwrap(), record(*size))).collect() }
    }

    #[test]
    fn keys_secrets_and_identities_are_found() {
        let found = listing(&[
            ("dev/console", 0),
            ("etc/machine-id", 33),
            ("etc/resolv.conf", 0),
            ("etc/ssh/ssh_host_ed25519_key", 400),
            ("etc/ssh/ssh_host_ed25519_key.pub", 90),
            ("home/node/.ssh/authorized_keys", 90),
            ("home/node/.ssh/id_ed25519", 400),
            ("home/node/.ssh/id_ed25519.pub", 90),
            ("root/.netrc", 10),
            ("run/left", 1),
            ("srv/null", 0),
        ]);
        let placed = [TreePath::new("dev/console").unwrap()];
        let check = check(&found, Some(&found), &placed, SizeLimit { size: 3 << 30, max_size: Some(1 << 30) });
        insta::assert_snapshot!(check.findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n"));
    }
}
