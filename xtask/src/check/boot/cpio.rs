//! Writes an initramfs archive: cpio in the "newc" format, as in the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst.
//!
//! An entry is a header of a magic number and thirteen fields of eight hexadecimal digits, the name with a NUL, padding
//! to four bytes, the body, padding to four bytes. The entry `TRAILER!!!` ends the archive.

use std::io::{self, Write};

const MAGIC: &str = "070701";
const ALIGNMENT: usize = 4;
/// Six digits of magic number, thirteen fields of eight.
const HEADER_BYTES: usize = 6 + 13 * 8;
const TRAILER: &str = "TRAILER!!!";

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes entries in the order given; a directory must come before its entries. Owner is root and mtime the epoch, so that
/// the same entries give the same bytes.
pub(super) struct Writer<W> {
    to: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(to: W) -> Self {
        Writer { to, inode: 0 }
    }

    /// Adds a directory. `path` has no leading slash; of `mode`, only the permission bits count.
    pub(super) fn directory(&mut self, path: &str, mode: u32) -> io::Result<()> {
        self.entry(path, S_IFDIR | mode & 0o7777, (0, 0), &[])
    }

    pub(super) fn file(&mut self, path: &str, mode: u32, body: &[u8]) -> io::Result<()> {
        self.entry(path, S_IFREG | mode & 0o7777, (0, 0), body)
    }

    pub(super) fn character_device(&mut self, path: &str, mode: u32, (major, minor): (u32, u32)) -> io::Result<()> {
        self.entry(path, S_IFCHR | mode & 0o7777, (major, minor), &[])
    }

    /// Ends the archive and returns the stream.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, (0, 0), &[])?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), body: &[u8]) -> io::Result<()> {
        self.inode += 1;
        let links = if mode & S_IFDIR != 0 && mode & S_IFREG == 0 { 2 } else { 1 };
        let (owner, group, mtime, device, checksum) = (0, 0, 0, 0, 0);
        let size = u32::try_from(body.len()).map_err(|_| io::Error::other(format!("{path} is over 4 GiB")))?;
        let name_bytes = u32::try_from(path.len() + 1).map_err(|_| io::Error::other("a name over 4 GiB"))?;
        self.to.write_all(MAGIC.as_bytes())?;
        for field in
            [self.inode, mode, owner, group, links, mtime, size, device, device, major, minor, name_bytes, checksum]
        {
            write!(self.to, "{field:08x}")?;
        }
        self.to.write_all(path.as_bytes())?;
        self.to.write_all(&[0])?;
        self.pad(HEADER_BYTES + path.len() + 1)?;
        self.to.write_all(body)?;
        self.pad(body.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.to.write_all(&[0; ALIGNMENT][..written.next_multiple_of(ALIGNMENT) - written])
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// GNU cpio is the judge.
    #[test]
    fn cpio_lists_and_extracts_what_was_written() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            assert!(std::env::var_os("SNUG_TESTS_NO_SKIP").is_none(), "needs cpio");
            eprintln!("SKIPPED: needs cpio");
            return;
        };
        let mut archive = Writer::new(cpio.stdin.take().expect("a pipe was asked for"));
        archive.directory("dev", 0o755).expect("the pipe is open");
        archive.character_device("dev/console", 0o600, (5, 1)).expect("the pipe is open");
        for length in 0..5 {
            archive.file(&format!("file{}", "x".repeat(length)), 0o640, &vec![7; length]).expect("the pipe is open");
        }
        drop(archive.finish().expect("the pipe is open"));
        let output = cpio.wait_with_output().expect("cpio ends");
        assert!(output.status.success());
        insta::assert_snapshot!(String::from_utf8_lossy(&output.stdout), @r"
        drwxr-xr-x   2 0        0               0 Jan  1  1970 dev
        crw-------   1 0        0          5,   1 Jan  1  1970 dev/console
        -rw-r-----   1 0        0               0 Jan  1  1970 file
        -rw-r-----   1 0        0               1 Jan  1  1970 filex
        -rw-r-----   1 0        0               2 Jan  1  1970 filexx
        -rw-r-----   1 0        0               3 Jan  1  1970 filexxx
        -rw-r-----   1 0        0               4 Jan  1  1970 filexxxx
        ");
    }
}
