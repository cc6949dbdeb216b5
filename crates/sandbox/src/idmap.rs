//! The id maps of a user namespace: all ids for root, subordinate ids for other users.
//!
//! See user_namespaces(7), newuidmap(1) and subuid(5).

use std::fs;

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User};
use snug_process::child;
use snug_process::privilege::as_root;
use snug_process::program::HostProgram;

/// A map of every id to itself, but for the last, which means "no change" to chown(2).
const ALL_IDS: &str = "0 0 4294967295";

/// Fewer subordinate ids than this cannot hold Debian's `nobody` (65534).
const ENOUGH_IDS: u32 = 65535;

/// The set-id programs that write the maps of other users than root.
const NEWUIDMAP: HostProgram = HostProgram { name: "newuidmap", package: "uidmap" };
const NEWGIDMAP: HostProgram = HostProgram { name: "newgidmap", package: "uidmap" };

/// Writes the maps of a process that has unshared. Root maps every id to itself; other users map their own id to 0 and
/// their subordinate ids to the rest.
pub(super) fn write_maps(pid: u32) -> Result<()> {
    if Uid::effective().is_root() {
        for map in ["uid_map", "gid_map"] {
            fs::write(format!("/proc/{pid}/{map}"), ALL_IDS)
                .with_context(|| format!("cannot write {map} of the user namespace"))?;
        }
        return Ok(());
    }
    let user = user_name()?;
    let maps = [
        (NEWUIDMAP, Uid::effective().as_raw(), subordinate_ids("/etc/subuid", &user)?),
        (NEWGIDMAP, Gid::effective().as_raw(), subordinate_ids("/etc/subgid", &user)?),
    ];
    for (program, own, (start, count)) in maps {
        let mut command = program.command()?;
        command.args([pid, 0, own, 1, 1, start, count].map(|number| number.to_string()));
        let output = child::output(&mut command)?;
        if !output.status.success() {
            bail!("{} refused the id map: {}", program.name, String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}

/// Checks that this user can have a user namespace with enough ids. The error says what to do.
pub fn probe() -> Result<()> {
    if !Uid::effective().is_root() {
        let user = user_name()?;
        subordinate_ids("/etc/subuid", &user)?;
        subordinate_ids("/etc/subgid", &user)?;
    }
    super::run_silent(&super::Job { actions: Vec::new() }, |_| {})
}

fn user_name() -> Result<String> {
    let uid = Uid::effective();
    Ok(User::from_uid(uid)?.with_context(|| format!("user {uid} has no entry in /etc/passwd"))?.name)
}

/// Returns first id and count of the user's largest range in /etc/subuid or /etc/subgid.
fn subordinate_ids(file: &str, user: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let range = largest_range(&text, user, Uid::effective().as_raw());
    match range {
        Some((start, count)) if count >= ENOUGH_IDS => Ok((start, count)),
        _ => bail!(
            "{user} has no {ENOUGH_IDS} subordinate ids in {file}, so the image's users cannot be told apart\n\
             hint: {}",
            as_root(&format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"))
        ),
    }
}

fn largest_range(text: &str, user: &str, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next().filter(|owner| *owner == user || *owner == uid);
            owner.and(Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?)))
        })
        .max_by_key(|(_, count)| *count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_the_user_is_taken_by_name_or_number() {
        let text = "other:1:9\nme:100000:65536\n1000:300000:131072\nbroken\nme:x:y\n";
        assert_eq!(largest_range(text, "me", 1000), Some((300_000, 131_072)));
        assert_eq!(largest_range(text, "me", 7), Some((100_000, 65_536)));
        assert_eq!(largest_range(text, "nobody", 7), None);
    }
}
