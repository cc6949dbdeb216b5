//! Commands without a network: in a network namespace of their own (network_namespaces(7)), where only a loopback device is.

use std::ffi::c_short;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::Program;
use super::seccomp::Filter;

/// The device of every network namespace, which is down in a new one.
const LOOPBACK: &[u8] = b"lo";

/// Has the command start in a network namespace of its own, with its loopback device up, and without the families of sockets
/// that belong to no network namespace.
pub(super) fn leave(command: &mut Command) {
    let filter = Filter::sockets();
    // SAFETY: all of these are system calls, which are safe between fork and exec, and the filter was made before.
    unsafe {
        command.pre_exec(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            raise_loopback()?;
            filter.install_where_known()
        });
    }
}

/// Returns what to do where a command did not start for want of a network namespace: the kernel then says no more than that
/// there is no space left, or that it is not permitted.
pub(super) fn why_refused(program: &Program, error: &io::Error) -> Option<&'static str> {
    let refused = [libc::ENOSPC, libc::EPERM, libc::EINVAL, libc::EUSERS].map(Some).contains(&error.raw_os_error());
    (!program.network && refused)
        .then_some("the step has no network, which takes a network namespace: see user.max_net_namespaces in sysctl")
}

fn raise_loopback() -> io::Result<()> {
    // SAFETY: an ifreq is numbers only, and all zeros is one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(LOOPBACK) {
        *place = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as c_short;
    // SAFETY: the descriptor is new and owned once; the pointer is to a whole structure.
    unsafe {
        let socket = Errno::result(libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0))?;
        let socket = OwnedFd::from_raw_fd(socket);
        Errno::result(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}
