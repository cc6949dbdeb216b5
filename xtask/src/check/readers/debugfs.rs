//! Runs debugfs, which shares no code with our writer, on many inodes at once and parses its output.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::atomic::Scratch;
use anyhow::{Context, Result, bail, ensure};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::tree::Timestamp;

pub(super) const DEBUGFS: HostProgram = HostProgram { name: "debugfs", package: "e2fsprogs" };

/// Attributes that hold POSIX access control lists.
const ACL_XATTRS: &str = "system.posix_acl_";

/// debugfs with one image.
pub(super) struct Debugfs<'a> {
    image: &'a Path,
    folder: Scratch,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: Vec<u8>,
    pub inode: u32,
    pub is_directory: bool,
}

/// The first and the last block of an extent.
pub(super) type Extent = (u64, u64);

/// Output of debugfs's `stat` for an inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// Type in debugfs's words: `regular`, `directory`, `character special`.
    pub kind: String,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: Timestamp,
    pub device: Option<(u32, u32)>,
    /// Target of a fast symlink, which is in the inode itself.
    pub target: Option<Vec<u8>>,
    pub xattrs: Vec<String>,
    /// The logical blocks that hold data, ascending; `None` for a file that is not made of extents.
    pub extents: Option<Vec<Extent>>,
}

impl<'a> Debugfs<'a> {
    pub(super) fn new(image: &'a Path) -> Result<Self> {
        Ok(Debugfs { image, folder: Scratch::new().context("cannot make a temporary folder")? })
    }

    /// Returns the program's name and version: `debugfs 1.47.0`.
    pub(super) fn name() -> Result<String> {
        let output = child::output(DEBUGFS.command()?.arg("-V"))?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(said.split(" (").next().unwrap_or("debugfs").trim().to_owned())
    }

    /// Returns the entries of each directory, without `.` and `..`.
    pub(super) fn list(&self, directories: &[u32]) -> Result<Vec<Vec<Listed>>> {
        let said = self.ask(directories, "ls -p")?;
        said.into_iter().map(|listing| entries(&listing)).collect()
    }

    pub(super) fn stat(&self, inodes: &[u32]) -> Result<Vec<Stat>> {
        let said = self.ask(inodes, "stat")?;
        inodes
            .iter()
            .zip(said)
            .map(|(inode, said)| parse_stat(&said).with_context(|| format!("debugfs on inode {inode}")))
            .collect()
    }

    /// Returns targets of slow symlinks, which are in data blocks. `inodes` has each inode with the target's length in bytes.
    pub(super) fn long_targets(&self, inodes: &[(u32, u64)]) -> Result<Vec<Vec<u8>>> {
        let numbers: Vec<u32> = inodes.iter().map(|(inode, _)| *inode).collect();
        let said = self.ask(&numbers, "cat")?;
        let cut = |(mut target, (_, size)): (Vec<u8>, &(u32, u64))| {
            target.truncate(usize::try_from(*size).unwrap_or(usize::MAX));
            target
        };
        Ok(said.into_iter().zip(inodes).map(cut).collect())
    }

    /// Returns values of extended attributes, each given by inode and name.
    pub(super) fn xattrs(&self, wanted: &[(u32, String)]) -> Result<Vec<Vec<u8>>> {
        let place = |index: usize| -> PathBuf { self.folder.path().join(format!("value-{index}")) };
        let mut script = String::new();
        for (index, (inode, name)) in wanted.iter().enumerate() {
            writeln!(script, "ea_get -f {} <{inode}> {name}", place(index).display())?;
        }
        self.run(&script)?;
        let value = |(index, (inode, name)): (usize, &(u32, String))| {
            let value = fs::read(place(index)).with_context(|| format!("debugfs gives no {name} of inode {inode}"))?;
            Ok(if name.starts_with(ACL_XATTRS) { as_the_kernel_says(value) } else { value })
        };
        wanted.iter().enumerate().map(value).collect()
    }

    /// Runs one command on many inodes. Returns the output for each.
    fn ask(&self, inodes: &[u32], command: &str) -> Result<Vec<Vec<u8>>> {
        let mut script = String::new();
        for inode in inodes {
            writeln!(script, "{command} <{inode}>")?;
        }
        let said = self.run(&script)?;
        // debugfs prints each command before its output.
        let mut answers = Vec::with_capacity(inodes.len());
        let mut rest = said.as_slice();
        for (index, inode) in inodes.iter().enumerate() {
            let echo = format!("debugfs: {command} <{inode}>\n");
            let start = find(rest, echo.as_bytes()).with_context(|| format!("debugfs did not answer {echo:?}"))?;
            rest = &rest[start + echo.len()..];
            let end = match inodes.get(index + 1) {
                Some(next) => find(rest, format!("debugfs: {command} <{next}>\n").as_bytes()).unwrap_or(rest.len()),
                None => rest.len(),
            };
            answers.push(rest[..end].to_vec());
            rest = &rest[end..];
        }
        Ok(answers)
    }

    fn run(&self, script: &str) -> Result<Vec<u8>> {
        let path = self.folder.path().join("commands");
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        let said = child::run(DEBUGFS.command()?.arg("-f").arg(&path).arg(self.image), &[])?;
        ensure!(script.is_empty() || !said.is_empty(), "debugfs cannot open the filesystem");
        Ok(said)
    }
}

/// An ACL with the kernel's "no id" (`ACL_UNDEFINED_ID`, include/uapi/linux/posix_acl.h) in entries that are nobody's in
/// particular. On disk such an entry has no room for an id, and libext2fs makes it 0. Entries of eight bytes stand behind a
/// version of four: tag, permissions, id.
fn as_the_kernel_says(mut value: Vec<u8>) -> Vec<u8> {
    const VERSION: usize = 4;
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    const UNDEFINED_ID: [u8; 4] = u32::MAX.to_le_bytes();
    let (entries, _) = value.get_mut(VERSION..).unwrap_or_default().as_chunks_mut::<8>();
    for entry in entries {
        if ![USER, GROUP].contains(&u16::from_le_bytes([entry[0], entry[1]])) {
            entry[4..].copy_from_slice(&UNDEFINED_ID);
        }
    }
    value
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // The needle is nearly always at the start, so a simple search is fast.
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The records of `ls -p`, each of as many lines as its name has: no name holds a slash, so seven of them end a record.
fn records(listing: &[u8]) -> Vec<Vec<u8>> {
    const SLASHES: usize = 7;
    let slashes = |record: &[u8]| record.iter().filter(|&&byte| byte == b'/').count();
    let mut records: Vec<Vec<u8>> = Vec::new();
    for line in listing.split(|&byte| byte == b'\n') {
        match records.last_mut().filter(|record| slashes(record) < SLASHES) {
            Some(record) => {
                record.push(b'\n');
                record.extend_from_slice(line);
            }
            None if line.is_empty() => {}
            None => records.push(line.to_vec()),
        }
    }
    records
}

/// Records of `ls -p`: `/INODE/MODE/UID/GID/NAME/SIZE/`, the mode in octal with the type.
fn entries(listing: &[u8]) -> Result<Vec<Listed>> {
    const TYPE: u32 = 0o170_000;
    const DIRECTORY: u32 = 0o040_000;
    let mut entries = Vec::new();
    for line in records(listing) {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b'/').collect();
        let [b"", inode, mode, _, _, name, ..] = fields[..] else {
            bail!("debugfs lists {:?}", line.escape_ascii().to_string());
        };
        let inode: u32 = std::str::from_utf8(inode)?.parse().context("an inode's number")?;
        let mode = u32::from_str_radix(std::str::from_utf8(mode)?, 8).context("a mode")?;
        if inode != 0 && name != b"." && name != b".." {
            entries.push(Listed { name: name.to_vec(), inode, is_directory: mode & TYPE == DIRECTORY });
        }
    }
    Ok(entries)
}

fn parse_stat(said: &[u8]) -> Result<Stat> {
    let text = String::from_utf8_lossy(said);
    let after = |label: &str| {
        let (_, rest) = text.split_once(label).with_context(|| format!("no {label:?} in {text:?}"))?;
        Ok::<_, anyhow::Error>(rest.trim_start())
    };
    let number = |label: &str| -> Result<u64> {
        let digits: String = after(label)?.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("no number behind {label:?}"))
    };
    let (kind, _) = after("Type:")?.split_once("   ").context("a type")?;
    let mode: String = after("Mode:")?.chars().take_while(char::is_ascii_digit).collect();
    let size = number("Size:")?;
    let target = find(said, b"Fast link dest: \"").map(|start| {
        let target = &said[start + b"Fast link dest: \"".len()..];
        target[..usize::try_from(size).unwrap_or(usize::MAX).min(target.len())].to_vec()
    });
    Ok(Stat {
        kind: kind.trim().to_owned(),
        mode: u16::from_str_radix(&mode, 8).context("a mode")? & 0o7777,
        uid: u32::try_from(number("User:")?)?,
        gid: u32::try_from(number("Group:")?)?,
        size,
        mtime: mtime(after(" mtime: 0x").or_else(|_| after("\nmtime: 0x"))?)?,
        device: device(&text)?,
        target,
        xattrs: xattr_names(&text),
        extents: extents(&text)?,
    })
}

/// `SECONDS:EXTRA` in hexadecimal, or the seconds alone in an inode without room for more. The extra word's low two bits
/// are bits 32 and 33 of the seconds, the rest nanoseconds (the kernel's Documentation/filesystems/ext4/inodes.rst).
fn mtime(raw: &str) -> Result<Timestamp> {
    let word = |text: &str| u32::from_str_radix(text, 16).with_context(|| format!("the time {raw:.20?}"));
    let (seconds, rest) = raw.split_at_checked(8).context("a time")?;
    let extra = match rest.strip_prefix(':') {
        Some(rest) => word(rest.get(..8).context("a time")?)?,
        None => 0,
    };
    let seconds = i64::from(word(seconds)? as i32) + (i64::from(extra & 3) << 32);
    Ok(Timestamp { seconds, nanoseconds: extra >> 2 })
}

/// `Device major/minor number: 01:03 (hex 01:03)`; the first pair is decimal.
fn device(text: &str) -> Result<Option<(u32, u32)>> {
    let Some((_, rest)) = text.split_once("Device major/minor number: ") else { return Ok(None) };
    let (major, rest) = rest.split_once(':').context("a device number")?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Ok(Some((major.parse().context("a major number")?, minor.parse().context("a minor number")?)))
}

/// Below `EXTENTS:`, a line of `(FIRST-LAST):BLOCK-BLOCK`, or `(FIRST):BLOCK`, with `[u]` behind the logical blocks of an extent
/// that reads as zeros, and `(ETB0):BLOCK` for blocks of the extent tree. An older file has `BLOCKS:` instead, an empty one
/// neither.
fn extents(text: &str) -> Result<Option<Vec<Extent>>> {
    if text.contains("\nBLOCKS:\n") {
        return Ok(None);
    }
    let Some((_, list)) = text.split_once("\nEXTENTS:\n") else { return Ok(Some(Vec::new())) };
    let list = list.lines().next().unwrap_or_default();
    let mut extents = Vec::new();
    for item in list.split(", ").filter(|item| !item.is_empty() && !item.starts_with("(ETB")) {
        let context = || format!("the extent {item:?}");
        let (logical, _) = item.strip_prefix('(').and_then(|item| item.split_once(')')).with_context(context)?;
        if logical.ends_with("[u]") {
            continue;
        }
        let (first, last) = logical.split_once('-').unwrap_or((logical, logical));
        extents.push((first.parse().with_context(context)?, last.parse().with_context(context)?));
    }
    Ok(Some(extents))
}

/// Below `Extended attributes:`, lines of `  NAME (LENGTH) = VALUE`.
fn xattr_names(text: &str) -> Vec<String> {
    let Some((_, list)) = text.split_once("\nExtended attributes:\n") else { return Vec::new() };
    let name = |line: &str| {
        let name = line.strip_prefix("  ")?;
        let end = name.find(" (")?;
        Some(name[..end].to_owned())
    };
    list.lines().map_while(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_understood() {
        let said = b"Inode: 12   Type: character special    Mode:  0666   Flags: 0x0\n\
            Generation: 0    Version: 0x00000000:00000000\n\
            User:     5   Group: 70000   Project:     0   Size: 0\n\
            File ACL: 0\nLinks: 1   Blockcount: 0\n\
            Fragment:  Address: 0    Number: 0    Size: 0\n \
            ctime: 0x6b068902:00000000 -- Wed Nov 25 07:06:42 2026\n \
            atime: 0x6b068902:00000000 -- Wed Nov 25 07:06:42 2026\n \
            mtime: 0x00000001:00000015 -- Thu Jan  1 00:00:01 1970\n\
            crtime: 0x6b068902:00000000 -- Wed Nov 25 07:06:42 2026\n\
            Size of extra inode fields: 32\nExtended attributes:\n  user.note (3) = \"val\"\n  security.capability (20) = 01 00 00 02 \n\
            Inode checksum: 0xed0e6fb4\nDevice major/minor number: 01:30 (hex 01:1e)\n";
        let stat = parse_stat(said).unwrap();
        assert_eq!(stat.kind, "character special");
        assert_eq!((stat.mode, stat.uid, stat.gid, stat.device), (0o666, 5, 70000, Some((1, 30))));
        assert_eq!(stat.mtime, Timestamp { seconds: 1 + (1 << 32), nanoseconds: 5 });
        assert_eq!(stat.xattrs, ["user.note", "security.capability"]);
    }

    #[test]
    fn extents_are_understood() {
        let of = |said: &str| extents(&format!("Inode checksum: 0xd41be09b\n{said}")).unwrap();
        assert_eq!(of("EXTENTS:\n(ETB0):4406, (0-4):4385-4389, (7):9, (8-9[u]):10-11\n"), Some(vec![(0, 4), (7, 7)]));
        assert_eq!(of("EXTENTS:\n"), Some(Vec::new()));
        assert_eq!((of(""), of("BLOCKS:\n(0-1):7-8\nTOTAL: 2\n")), (Some(Vec::new()), None));
        assert!(extents("\nEXTENTS:\nodd").is_err());
    }

    #[test]
    fn access_control_lists_are_those_of_the_kernel() {
        // u::rw-,u:33:r--: as libext2fs gives it, and as getxattr(2) does.
        let entry = |tag: u8, permissions: u8, id: [u8; 4]| [&[tag, 0, permissions, 0], &id[..]].concat();
        let list = |owner_id| [vec![2, 0, 0, 0], entry(1, 6, owner_id), entry(2, 4, [33, 0, 0, 0])].concat();
        assert_eq!(as_the_kernel_says(list([0; 4])), list([0xff; 4]));
        assert_eq!(as_the_kernel_says(vec![2, 0]), [2, 0]);
    }

    #[test]
    fn listings_are_understood() {
        let listing = b"/2/040755/0/0/.//\n/2/040755/0/0/..//\n/13/100644/0/0/a b/3/\n/0/000000/0/0/gone/0/\n";
        let listed = Listed { name: b"a b".to_vec(), inode: 13, is_directory: false };
        assert_eq!(entries(listing).unwrap(), [listed]);
        assert!(entries(b"cannot read\n").is_err());
    }
}
