//! The policy that forbids services while packages are installed: package scripts would otherwise start daemons on the
//! host's network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::Result;

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
        let path = Path::new("/").join(POLICY_PATH);
        let installed = path.parent().is_some_and(Path::is_dir) && fs::symlink_metadata(&path).is_err();
        if installed {
            fs::write(&path, POLICY_SCRIPT)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)))?;
        }
        Ok(ServicePolicy { installed })
    }

    /// Removes our `policy-rc.d`, unless a step has replaced it.
    pub(super) fn remove(&self) -> Result<()> {
        let path = Path::new("/").join(POLICY_PATH);
        if self.installed && fs::read(&path).is_ok_and(|text| text == POLICY_SCRIPT.as_bytes()) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}
