//! Secrets of a build: read when it starts, mounted for its steps from memory, and neither stored nor printed.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use memchr::memmem::Finder;
use snug_rootfs::regular_file;
use snug_rootfs::tree::{Kind, RootTree};
use snug_sandbox::SECRETS;

use crate::plan::{PlannedSecret, SecretSource};
use crate::report::amounts::count;
use crate::steps::secret::{SHORTEST, Secret};

/// Bytes of a file that are searched at a time.
const WINDOW: usize = 1 << 20;

/// Bytes of the largest secret, as engines have it: docker's builder takes no larger ones (`MaxSecretSize` of BuildKit).
const SIZE_MAX: u64 = 500 << 10;

/// Reads the secrets of a plan from the caller's environment and files. Errors name the place in the spec.
pub fn read(secrets: &[PlannedSecret]) -> Result<Vec<Secret>> {
    secrets.iter().map(|secret| read_one(secret).with_context(|| secret.place.clone())).collect()
}

fn read_one(secret: &PlannedSecret) -> Result<Secret> {
    let value = match &secret.source {
        SecretSource::Environment(name) => std::env::var_os(name)
            .with_context(|| format!("the secret `{}` is to come from ${name}, which is not set", secret.id))?
            .into_encoded_bytes(),
        SecretSource::File { written, path } => {
            let path = match written.strip_prefix("~/") {
                Some(rest) => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(rest),
                None => path.clone(),
            };
            regular_file::read(&path, SIZE_MAX)
                .with_context(|| format!("cannot read the secret `{}` from {}", secret.id, path.display()))?
        }
    };
    let secret = Secret { id: secret.id.clone(), value };
    if secret.core().len() < SHORTEST {
        bail!(
            "the secret `{}` has {}, and below {SHORTEST} it could not be told apart from other text",
            secret.id,
            count(secret.core().len(), "byte")
        );
    }
    Ok(secret)
}

/// Refuses a tree that holds a secret as it is: in a file's content, name or attribute, or a link's target. One that was
/// encoded, compressed or encrypted is not recognised.
pub fn refuse_in(tree: &RootTree, secrets: &[Secret]) -> Result<()> {
    let finders: Vec<_> = secrets.iter().map(|secret| (secret, Finder::new(secret.core()))).collect();
    if finders.is_empty() {
        return Ok(());
    }
    let mut window = Vec::new();
    for entry in tree.entries() {
        let inode = entry.inode;
        let in_attributes = |finder: &Finder| inode.xattrs.iter().any(|(_, value)| finder.find(value).is_some());
        let in_target = |finder: &Finder| match &inode.kind {
            Kind::Symlink(target) => finder.find(target).is_some(),
            _ => false,
        };
        let mut found = finders
            .iter()
            .find(|(_, finder)| {
                finder.find(entry.path.as_bytes()).is_some() || in_attributes(finder) || in_target(finder)
            })
            .map(|(secret, _)| *secret);
        if let Kind::File(body) = &inode.kind
            && entry.hard_link_to.is_none()
        {
            for range in body.extents.as_slice() {
                found = found.or(in_range(tree, range.source, range.length, &finders, &mut window)?);
            }
        }
        if let Some(secret) = found {
            bail!(
                "the secret `{}` is in the image, at {}\n\
                 hint: let steps read {SECRETS}/{} where they need it, and remove or `exclude` what keeps it",
                secret.id,
                entry.path,
                secret.id
            );
        }
    }
    Ok(())
}

/// Searches `length` bytes at `source`, in windows that overlap by the longest secret.
fn in_range<'secret>(
    tree: &RootTree,
    source: u64,
    length: u64,
    finders: &[(&'secret Secret, Finder)],
    window: &mut Vec<u8>,
) -> Result<Option<&'secret Secret>> {
    let overlap = finders.iter().map(|(secret, _)| secret.core().len() - 1).max().unwrap_or(0);
    let mut start = 0;
    while start < length {
        let count = (length - start).min((WINDOW + overlap) as u64);
        window.resize(usize::try_from(count)?, 0);
        tree.bodies().read_exact_at(window, source + start)?;
        if let Some((secret, _)) = finders.iter().find(|(_, finder)| finder.find(window).is_some()) {
            return Ok(Some(secret));
        }
        start += WINDOW as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use snug_rootfs::tree::{Body, BodySource, Inode, TreePath};

    fn secret(value: &str) -> Secret {
        Secret { id: "token".into(), value: value.into() }
    }

    #[test]
    fn a_secret_in_a_tree_is_found_wherever_it_hides() {
        let secrets = [secret("canary-0123456789\n")];
        let path = |raw: &str| TreePath::new(raw).unwrap();
        let with_body = |body: Vec<u8>| {
            let size = body.len() as u64;
            let mut tree = RootTree::new(BodySource::new(body));
            tree.insert(path("file"), Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644)).unwrap();
            refuse_in(&tree, &secrets)
        };
        assert!(with_body(b"nothing".to_vec()).is_ok());
        // Across the border of two windows, and at the very end.
        for start in [0, WINDOW - 5, WINDOW, 2 * WINDOW + 17] {
            let mut body = vec![b'.'; start];
            body.extend_from_slice(b"canary-0123456789");
            let error = with_body(body).unwrap_err().to_string();
            assert!(error.starts_with("the secret `token` is in the image, at /file"), "{error}");
        }
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let target = Kind::Symlink(b"/canary-0123456789".as_slice().into());
        tree.insert(path("link"), Inode::new(target, 0o777)).unwrap();
        assert!(refuse_in(&tree, &secrets).is_err());
    }
}
