//! System calls that commands cannot make (seccomp(2)).

use std::io;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_JUMP, BPF_K, BPF_LD, BPF_RET, BPF_STMT, BPF_W, sock_filter,
};
use nix::errno::Errno;

/// Offsets in `struct seccomp_data` (linux/seccomp.h): the call's number, the architecture that it is of, and the lower half
/// of its first argument, on little-endian machines.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

/// Marks calls of x86-64's x32, which are else the same.
const X32: u32 = 0x4000_0000;

/// io_uring_setup, by which sockets are made without a call of their own. It has this number in every architecture.
const IO_URING_SETUP: u32 = 425;

/// Families of sockets that reach nothing beyond a network namespace and the files that a process sees; AF_ALG, the kernel's
/// ciphers, reaches nothing at all. Others do: AF_VSOCK leads to the machine's host, and to its guests.
const FAMILIES: [i32; 6] =
    [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_ALG];

/// The calls of one architecture, by number.
struct Calls {
    /// AUDIT_ARCH_… (linux/audit.h).
    architecture: u32,
    /// add_key, request_key, keyctl.
    keyrings: [u32; 3],
    socket: u32,
    /// An older call for all that is done with sockets; no filter can see its arguments.
    socketcall: Option<u32>,
}

/// Those of the machines that images are for, and of the 32-bit programs that they run: x86-64, i386, AArch64, Arm.
const CALLS: [Calls; 4] = [
    Calls { architecture: 0xc000_003e, keyrings: [248, 249, 250], socket: 41, socketcall: None },
    Calls { architecture: 0x4000_0003, keyrings: [286, 287, 288], socket: 359, socketcall: Some(102) },
    Calls { architecture: 0xc000_00b7, keyrings: [217, 218, 219], socket: 198, socketcall: None },
    Calls { architecture: 0x4000_0028, keyrings: [309, 310, 311], socket: 281, socketcall: Some(102) },
];

/// A program of the kernel's, which is asked before every call.
#[derive(Debug, Clone)]
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// Refuses the calls of keyrings(7), as a kernel without them does.
    pub(super) fn keyrings() -> Self {
        Self::of(|calls| calls.keyrings.into_iter().flat_map(without).collect())
    }

    /// Refuses sockets of other families than [`FAMILIES`], as a kernel without them does, and what makes sockets unseen.
    pub(super) fn sockets() -> Self {
        Self::of(|calls| {
            let mut block: Vec<_> = [IO_URING_SETUP].into_iter().chain(calls.socketcall).flat_map(without).collect();
            let mut families = vec![load(FIRST_ARGUMENT)];
            families.extend(FAMILIES.into_iter().flat_map(|family| [unless(family as u32, 1), allow()]));
            families.push(refuse(Errno::EAFNOSUPPORT));
            block.push(unless(calls.socket, families.len() as u8));
            block.extend(families);
            block
        })
    }

    /// `block` sees the number of a call of its architecture, and what it does not decide is allowed.
    fn of(block: impl Fn(&Calls) -> Vec<sock_filter>) -> Self {
        let mut program = Vec::new();
        for calls in &CALLS {
            let mut whole = vec![load(NUMBER), statement(BPF_ALU | BPF_AND | BPF_K, !X32)];
            whole.extend(block(calls));
            whole.push(allow());
            program.extend([load(ARCHITECTURE), unless(calls.architecture, whole.len() as u8)]);
            program.extend(whole);
        }
        program.push(allow());
        Filter(program)
    }

    /// Puts this process, and all that it starts, under the filter, unless the kernel has no filters. Needs CAP_SYS_ADMIN in
    /// the user namespace. Allocates nothing.
    pub(super) fn install_where_known(&self) -> io::Result<()> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        let install = |flags: libc::c_ulong| {
            // SAFETY: the pointer is to a program of that length, which the kernel copies.
            let answer =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
            Errno::result(answer)
        };
        // The filter is no reason for mitigations that cost time; Linux before 4.17 does not know the flag.
        match install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).or_else(|_| install(0)) {
            Ok(_) => Ok(()),
            // What the kernel says of a mode or a call that it was compiled without.
            Err(Errno::ENOSYS | Errno::EINVAL) if !is_known() => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Returns whether the kernel has filters of system calls.
fn is_known() -> bool {
    let action = libc::SECCOMP_RET_ALLOW;
    // SAFETY: the pointer is to a number, which the kernel reads.
    unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

fn statement(code: u32, value: u32) -> sock_filter {
    // SAFETY: it only makes a structure of its arguments.
    unsafe { BPF_STMT(code as u16, value) }
}

fn load(offset: u32) -> sock_filter {
    statement(BPF_LD | BPF_W | BPF_ABS, offset)
}

/// Skips instructions where what was loaded is another value.
fn unless(value: u32, skipped: u8) -> sock_filter {
    // SAFETY: it only makes a structure of its arguments.
    unsafe { BPF_JUMP((BPF_JMP | BPF_JEQ | BPF_K) as u16, value, 0, skipped) }
}

/// Refuses a call, as a kernel without it does.
fn without(call: u32) -> [sock_filter; 2] {
    [unless(call, 1), refuse(Errno::ENOSYS)]
}

fn refuse(errno: Errno) -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32)
}

fn allow() -> sock_filter {
    statement(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_this_machine() {
        let own = [libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl].map(|number| number as u32);
        let socket = libc::SYS_socket as u32;
        assert!(CALLS.iter().any(|calls| calls.keyrings == own && calls.socket == socket));
        assert_eq!(libc::SYS_io_uring_setup as u32, IO_URING_SETUP);
    }

    #[test]
    fn jumps_fit_and_every_way_ends() {
        for Filter(program) in [Filter::keyrings(), Filter::sockets()] {
            let jumps = program.iter().enumerate().filter(|(_, step)| u32::from(step.code) & 0x07 == BPF_JMP);
            for (at, step) in jumps {
                assert!(at + 1 + usize::from(step.jf.max(step.jt)) < program.len());
            }
            assert!(program.len() < 4096 && program.last().is_some_and(|last| last.code as u32 & 0x07 == BPF_RET));
        }
    }
}
