//! The policy that forbids services while packages are installed: package scripts would otherwise start daemons on the
//! host's network.

use anyhow::{Context, Result};

use super::own_folder::OwnFolder;

/// The script that Debian's `invoke-rc.d` asks before it starts a service (`/usr/share/doc/init-system-helpers`,
/// README.policy-rc.d), as a path from the root directory.
pub const POLICY_PATH: &str = "usr/sbin/policy-rc.d";
/// A policy that forbids every action (exit status 101).
pub const POLICY_SCRIPT: &str = "#!/bin/sh\nexit 101\n";

/// Our policy in an entered root.
#[derive(Default)]
pub(super) struct ServicePolicy {
    installed: bool,
}

impl ServicePolicy {
    /// Forbids services in the entered root, unless it has a policy of its own.
    pub(super) fn install() -> Result<Self> {
        let Some((folder, name)) = place().filter(|(folder, name)| !folder.has(name)) else {
            return Ok(ServicePolicy::default());
        };
        folder.create(name, POLICY_SCRIPT, 0o755).with_context(|| format!("cannot write /{POLICY_PATH}"))?;
        Ok(ServicePolicy { installed: true })
    }

    /// Removes our `policy-rc.d`, unless a step has replaced it, with whatever.
    pub(super) fn remove(&self) -> Result<()> {
        let Some((folder, name)) = place().filter(|_| self.installed) else { return Ok(()) };
        if folder.read(name, POLICY_SCRIPT.len() as u64).is_ok_and(|text| text == POLICY_SCRIPT.as_bytes()) {
            folder.remove(name)?;
        }
        Ok(())
    }
}

/// The folder of the policy in the entered root, if there is one, and its name there.
fn place() -> Option<(OwnFolder, &'static str)> {
    let (folder, name) = POLICY_PATH.rsplit_once('/')?;
    Some((OwnFolder::open(&format!("/{folder}"))?, name))
}
