//! What is mounted, as this process sees it (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::{fs, io};

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device's numbers: `major:minor`.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// What the filesystem calls its source: the path of a device, for one.
    pub source: PathBuf,
}

/// Returns all mounts, the latest last.
pub fn mounts() -> io::Result<Vec<Mount>> {
    let text = fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let point = path(fields.nth(1)?);
    // Any number of optional fields, ended by a hyphen; then the type and the source.
    fields.find(|field| *field == b"-")?;
    Some(Mount { device, point, source: path(fields.nth(1)?) })
}

/// The path of a field, in which spaces and the like are octal numbers.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\').and_then(|code| std::str::from_utf8(code).ok());
        let (byte, length) = match code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) => (byte, 4),
            None => (first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_places_and_octal_numbers_read() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134c\9 rw,noatime master:1 propagate_from:2 - ext3 /dev/root rw,errors=continue";
        let mount = Mount { device: "98:0".into(), point: r"/a b\c\9".into(), source: "/dev/root".into() };
        assert_eq!(parse(line), Some(mount));
        assert_eq!(parse(b""), None);
        assert!(mounts().unwrap().iter().any(|mount| mount.point.as_os_str() == "/proc"));
    }
}
