//! What processes get from those that start them, and steps must not get from the caller: open descriptors, keyrings,
//! and the sockets and processes that names lead to rather than files.

use std::fs;
use std::io;
use std::mem::size_of;

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::seccomp::Filter;

/// The first descriptor that is no standard stream.
pub(super) const FIRST_OTHER: u32 = 3;

/// KEYCTL_JOIN_SESSION_KEYRING (linux/keyctl.h).
const JOIN_SESSION_KEYRING: libc::c_long = 1;

/// `struct landlock_ruleset_attr` (linux/landlock.h).
#[repr(C)]
struct Ruleset {
    handled_access_fs: u64,
    handled_access_net: u64,
    scoped: u64,
}

/// LANDLOCK_CREATE_RULESET_VERSION: asks for the version of the interface instead.
const ASK_VERSION: libc::c_ulong = 1;
/// The version of Landlock's interface that knows scopes: that of Linux 6.12.
const SCOPES_SINCE: libc::c_long = 6;
/// LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET and LANDLOCK_SCOPE_SIGNAL.
const SCOPES: u64 = 1 << 0 | 1 << 1;

/// Closes every descriptor from `first` on. The caller's are open in a process that it starts unless they were made otherwise
/// (FD_CLOEXEC).
pub(super) fn close_descriptors(first: u32) -> Result<()> {
    // SAFETY: nothing in this process has opened a descriptor yet, and the call touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if answer == 0 {
        return Ok(());
    }
    // Before Linux 5.9.
    let entries = fs::read_dir("/proc/self/fd").context("cannot list the open descriptors")?;
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.parse().ok()).collect();
    for descriptor in names.into_iter().filter(|descriptor: &u32| *descriptor >= first) {
        // SAFETY: as above; that of the listing itself is closed already.
        unsafe { libc::close(descriptor as i32) };
    }
    Ok(())
}

/// Leaves the caller's session keyring for a new one (keyctl(2)).
pub(super) fn leave_session_keyring() -> Result<()> {
    // SAFETY: without a name, the call touches no memory.
    let answer = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<u8>()) };
    match Errno::result(answer) {
        // The kernel has no keyrings, or a container forbids them to all of its processes.
        Ok(_) | Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(Errno::EDQUOT) => Err(Errno::EDQUOT).context(
            "cannot make a session keyring\n\
             hint: this user has as many keys as it may: see /proc/key-users, and kernel.keys.maxkeys in sysctl",
        ),
        Err(errno) => Err(errno).context("cannot make a session keyring"),
    }
}

/// Refuses keyrings to this process and all that it starts: a keyring can be linked by its number, whoever left it, and that
/// of the caller's user has the caller's keys.
pub(super) fn refuse_keyrings() -> Result<()> {
    Filter::keyrings().install_where_known().context("cannot filter system calls (seccomp(2))")
}

/// Keeps this process and all that it starts from the abstract sockets (unix(7)) and the signals of other processes, where the
/// kernel can (landlock(7)). Abstract sockets belong to the network, which is the host's.
pub(super) fn stay_in_scope() -> Result<()> {
    // SAFETY: without a ruleset, the call touches no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, ASK_VERSION) };
    if version < SCOPES_SINCE {
        return Ok(());
    }
    let rules = Ruleset { handled_access_fs: 0, handled_access_net: 0, scoped: SCOPES };
    let scoped = || -> io::Result<()> {
        // SAFETY: the pointer is to a whole structure of that size; the descriptor is closed once.
        unsafe {
            let rules = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const rules, size_of::<Ruleset>(), 0_u32);
            let rules = Errno::result(rules)?;
            let answer = Errno::result(libc::syscall(libc::SYS_landlock_restrict_self, rules, 0_u32));
            libc::close(rules as i32);
            answer?;
        }
        Ok(())
    };
    scoped().context("cannot keep the build from the sockets of other processes (landlock(7))")
}
