//! File capabilities: libcap's text form, and the value of the `security.capability` attribute.
//!
//! The grammar is cap_from_text(3)'s; the value is `struct vfs_cap_data`, revision 2, of `linux/capability.h`.

use std::fmt;

use serde::{Serialize, Serializer};

/// The capabilities by number (`linux/capability.h`), without their `cap_` prefix.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// `VFS_CAP_REVISION_2`: two 32-bit words each of permitted and inheritable, no root id.
const REVISION_2: u32 = 0x0200_0000;
/// `VFS_CAP_FLAGS_EFFECTIVE`: the file's effective bit, which holds for all of its capabilities or none.
const EFFECTIVE: u32 = 0x0000_0001;
/// Bytes of a revision 2 value.
pub const XATTR_LENGTH: usize = 20;

/// The capabilities of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Permitted set; bit n is capability n.
    pub permitted: u64,
    /// Inheritable set; bit n is capability n.
    pub inheritable: u64,
    /// The effective bit.
    pub effective: bool,
}

/// Why a text does not describe the capabilities of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// No capability is left in any set.
    #[error("there is no capability in it")]
    Empty,
    /// A clause has no operator.
    #[error("`{0}` has no `=`, `+` or `-` followed by flags out of e, i, p")]
    Clause(String),
    /// A name is not a capability.
    #[error("`{0}` is not a capability")]
    Unknown(String),
    /// A flag is not one.
    #[error("`{0}` is not a flag: flags are e, i, p")]
    Flag(char),
    /// The effective flag is set for some of the capabilities.
    #[error("the effective flag of a file holds for all of its capabilities or for none")]
    PartlyEffective,
}

impl Capabilities {
    /// Returns every name that [`parse`](Self::parse) knows, in the order of their numbers.
    pub fn names() -> impl Iterator<Item = String> {
        NAMES.iter().map(|name| format!("cap_{name}"))
    }

    /// Parses `cap_net_bind_service,cap_net_raw=ep`: clauses divided by white space, applied from left to right, each
    /// a list of names (none or `all`: all of them) and one or more of `=` (set to exactly), `+` (raise) and `-`
    /// (lower) with their flags.
    pub fn parse(text: &str) -> Result<Self, CapabilityError> {
        let all = (1u64 << NAMES.len()) - 1;
        let (mut effective, mut inheritable, mut permitted) = (0u64, 0u64, 0u64);
        let mut clauses = text.split_ascii_whitespace().peekable();
        clauses.peek().ok_or(CapabilityError::Empty)?;
        for clause in clauses {
            let malformed = || CapabilityError::Clause(clause.into());
            let start = clause.find(['=', '+', '-']).ok_or_else(malformed)?;
            let (names, mut actions) = clause.split_at(start);
            let set = match names {
                // Only `=` may stand without names: to raise or lower nothing in particular says nothing.
                "" if actions.starts_with('=') => all,
                "" => return Err(malformed()),
                names => {
                    let mut set = 0;
                    for name in names.split(',') {
                        set |= Self::bits(name, all)?;
                    }
                    set
                }
            };
            while let Some(operator) = actions.chars().next() {
                let rest = &actions[operator.len_utf8()..];
                let (flags, next) = rest.split_at(rest.find(['=', '+', '-']).unwrap_or(rest.len()));
                if operator != '=' && flags.is_empty() {
                    return Err(malformed());
                }
                if operator == '=' {
                    for flagged in [&mut effective, &mut inheritable, &mut permitted] {
                        *flagged &= !set;
                    }
                }
                for flag in flags.chars() {
                    let flagged = match flag {
                        'e' => &mut effective,
                        'i' => &mut inheritable,
                        'p' => &mut permitted,
                        other => return Err(CapabilityError::Flag(other)),
                    };
                    if operator == '-' { *flagged &= !set } else { *flagged |= set }
                }
                actions = next;
            }
        }
        if permitted | inheritable == 0 {
            return Err(CapabilityError::Empty);
        }
        // A file has one effective bit, not one for each capability (capabilities(7), "File capabilities").
        if effective != 0 && effective != permitted | inheritable {
            return Err(CapabilityError::PartlyEffective);
        }
        Ok(Capabilities { permitted, inheritable, effective: effective != 0 })
    }

    fn bits(name: &str, all: u64) -> Result<u64, CapabilityError> {
        let lower = name.to_ascii_lowercase();
        if lower == "all" {
            return Ok(all);
        }
        let number = lower.strip_prefix("cap_").and_then(|short| NAMES.iter().position(|known| *known == short));
        number.map(|number| 1 << number).ok_or_else(|| CapabilityError::Unknown(name.into()))
    }

    /// Returns the value of `security.capability`: little-endian magic, then the low words of both sets, then the high ones.
    pub fn to_xattr(self) -> [u8; XATTR_LENGTH] {
        let magic = REVISION_2 | if self.effective { EFFECTIVE } else { 0 };
        let word = |set: u64, shift: u32| (set >> shift) as u32;
        let words = [
            magic,
            word(self.permitted, 0),
            word(self.inheritable, 0),
            word(self.permitted, 32),
            word(self.inheritable, 32),
        ];
        let mut value = [0; XATTR_LENGTH];
        for (bytes, word) in value.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        value
    }
}

/// The text form, as short as `getcap` writes it where all capabilities have the same flags.
impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for (set, flags) in [
            (self.permitted & !self.inheritable, "p"),
            (self.inheritable & !self.permitted, "i"),
            (self.permitted & self.inheritable, "ip"),
        ] {
            if set == 0 {
                continue;
            }
            let names: Vec<String> =
                Self::names().enumerate().filter(|(n, _)| set >> n & 1 == 1).map(|(_, name)| name).collect();
            write!(f, "{between}{}={}{flags}", names.join(","), if self.effective { "e" } else { "" })?;
            between = " ";
        }
        Ok(())
    }
}

impl Serialize for Capabilities {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn clauses_apply_from_left_to_right() {
        let parse = |text: &str| Capabilities::parse(text).unwrap();
        let raw = Capabilities { permitted: 1 << 13, inheritable: 0, effective: true };
        assert_eq!(parse("cap_net_raw=ep"), raw);
        assert_eq!(parse("CAP_NET_RAW+ep"), raw);
        assert_eq!(parse("cap_chown,cap_net_raw=ep cap_chown="), raw);
        assert_eq!(parse("cap_net_raw=p+e-i"), raw);
        assert_eq!(parse("all=p").permitted, (1 << 41) - 1);
        assert_eq!(parse("=p cap_chown-p").permitted, (1 << 41) - 2);
    }

    #[test]
    fn what_is_no_capability_of_a_file_is_refused() {
        for (text, error) in [
            ("", CapabilityError::Empty),
            ("cap_chown=", CapabilityError::Empty),
            ("cap_chown", CapabilityError::Clause("cap_chown".into())),
            ("+p", CapabilityError::Clause("+p".into())),
            ("cap_chown+", CapabilityError::Clause("cap_chown+".into())),
            ("chown=p", CapabilityError::Unknown("chown".into())),
            ("cap_chown,=p", CapabilityError::Unknown(String::new())),
            ("cap_chown=px", CapabilityError::Flag('x')),
            ("cap_chown=é", CapabilityError::Flag('é')),
            ("cap_chown=ep cap_net_raw=p", CapabilityError::PartlyEffective),
        ] {
            assert_eq!(Capabilities::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn the_text_form_reads_back() {
        for text in ["cap_chown=ep", "cap_chown=p cap_kill=i cap_setgid,cap_bpf=ip", "all=eip"] {
            let capabilities = Capabilities::parse(text).unwrap();
            assert_eq!(Capabilities::parse(&capabilities.to_string()), Ok(capabilities), "{text}");
        }
    }

    /// setcap writes the same bytes for the same text.
    #[test]
    fn values_are_those_of_setcap() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("program");
        for text in [
            "cap_net_bind_service=ep",
            "cap_net_bind_service,cap_net_raw+eip",
            "cap_chown=p cap_dac_override=ip",
            "cap_perfmon,cap_bpf,cap_checkpoint_restore=p",
            "cap_setuid=i",
            "all=ep cap_sys_admin-ep",
        ] {
            std::fs::write(&file, "").unwrap();
            let set = Command::new("setcap").arg(text).arg(&file).output();
            if !set.as_ref().is_ok_and(|output| output.status.success()) {
                assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "setcap {text}: {set:?}");
                eprintln!("SKIPPED values_are_those_of_setcap: needs setcap (libcap2-bin) and root");
                return;
            }
            let value = xattr::get(&file, "security.capability").unwrap().unwrap();
            assert_eq!(Capabilities::parse(text).unwrap().to_xattr().as_slice(), value, "{text}");
        }
    }
}
