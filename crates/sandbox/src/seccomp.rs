//! System calls that commands cannot make (seccomp(2)).

use std::io;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JMP, BPF_JUMP, BPF_K, BPF_LD, BPF_RET, BPF_STMT, BPF_W, sock_filter,
};
use nix::errno::Errno;

/// Offsets in `struct seccomp_data` (linux/seccomp.h): the call's number and the architecture that it is of.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// Marks calls of x86-64's x32, which are else the same.
const X32: u32 = 0x4000_0000;

/// The calls of one architecture, by number.
struct Calls {
    /// AUDIT_ARCH_… (linux/audit.h).
    architecture: u32,
    /// add_key, request_key, keyctl.
    keyrings: [u32; 3],
}

/// Those of the machines that images are for, and of the 32-bit programs that they run.
const CALLS: [Calls; 4] = [
    Calls { architecture: 0xc000_003e, keyrings: [248, 249, 250] }, // x86-64
    Calls { architecture: 0x4000_0003, keyrings: [286, 287, 288] }, // i386
    Calls { architecture: 0xc000_00b7, keyrings: [217, 218, 219] }, // AArch64
    Calls { architecture: 0x4000_0028, keyrings: [309, 310, 311] }, // Arm
];

/// A program of the kernel's, which is asked before every call.
#[derive(Debug, Clone)]
pub(super) struct Filter(Vec<sock_filter>);

impl Filter {
    /// Refuses the calls of keyrings(7), as a kernel without them does.
    pub(super) fn keyrings() -> Self {
        let mut program = Vec::new();
        for calls in &CALLS {
            let mut block = vec![load(NUMBER), statement(BPF_ALU | BPF_AND | BPF_K, !X32)];
            for number in calls.keyrings {
                block.extend([unless(number, 1), refuse(Errno::ENOSYS)]);
            }
            block.push(allow());
            program.extend([load(ARCHITECTURE), unless(calls.architecture, block.len() as u8)]);
            program.extend(block);
        }
        program.push(allow());
        Filter(program)
    }

    /// Puts this process, and all that it starts, under the filter. Needs CAP_SYS_ADMIN in the user namespace. Allocates nothing.
    pub(super) fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        let install = |flags: libc::c_ulong| {
            // SAFETY: the pointer is to a program of that length, which the kernel copies.
            let answer =
                unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
            Errno::result(answer)
        };
        // The filter is no reason for mitigations that cost time; Linux before 4.17 does not know the flag.
        install(libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).or_else(|_| install(0))?;
        Ok(())
    }
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
        assert!(CALLS.iter().any(|calls| calls.keyrings == own));
    }
}
