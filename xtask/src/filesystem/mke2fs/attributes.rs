//! What mke2fs cannot copy from files is written into the image by debugfs afterwards: device nodes, which a user namespace
//! cannot create, xattrs that the kernel or the host's filesystem refused, and the attributes of the root directory.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use snug_process::child;
use snug_process::program::HostProgram;
use snug_rootfs::tree::{Inode, InodeId, Kind, RootTree, TreePath};

use super::Settings;
use crate::atomic::Scratch;

pub(super) const DEBUGFS: HostProgram = HostProgram { name: "debugfs", package: "e2fsprogs" };

/// `S_IFCHR`, `S_IFBLK`, `S_IFDIR` (inode(7)).
const S_IFCHR: u32 = 0o020_000;
const S_IFBLK: u32 = 0o060_000;
const S_IFDIR: u32 = 0o040_000;

/// Writes to the image what mke2fs did not copy.
pub(super) fn complete(tree: &RootTree, image: &Path, settings: &Settings) -> Result<()> {
    let values = Scratch::new().context("cannot make a temporary folder")?;
    let mut script = Script { text: Vec::new(), folder: values.path(), values: HashMap::new() };
    script.attributes(b"<2>", tree.inode(tree.id(&TreePath::root()).context("the tree has no root")?), S_IFDIR);
    script.devices(tree)?;
    script.xattrs(tree)?;

    let file = values.path().join("commands");
    fs::write(&file, &script.text)?;
    let mut command = DEBUGFS.command()?;
    settings.freeze(&mut command);
    let output = child::output(command.arg("-w").arg("-f").arg(&file).arg(image))?;
    // Its exit status does not depend on the commands. Standard error has its version, and then nothing but errors.
    let said = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> =
        said.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("debugfs 1.")).take(10).collect();
    if !output.status.success() || !errors.is_empty() {
        bail!("debugfs could not complete the image:\n  {}", errors.join("\n  "));
    }
    Ok(())
}

struct Script<'a> {
    text: Vec<u8>,
    folder: &'a Path,
    /// Files with the values of xattrs, by value: few values are shared by many inodes.
    values: HashMap<Box<[u8]>, OsString>,
}

impl Script<'_> {
    /// Replaces the empty files that stand in for device nodes by these, with all of their names.
    fn devices(&mut self, tree: &RootTree) -> Result<()> {
        let mut names: BTreeMap<InodeId, Vec<&TreePath>> = BTreeMap::new();
        for entry in tree.entries() {
            if let Kind::CharacterDevice { .. } | Kind::BlockDevice { .. } = entry.inode.kind {
                names.entry(entry.id).or_default().push(entry.path);
            }
        }
        for (id, paths) in names {
            let inode = tree.inode(id);
            let (letter, kind, major, minor) = match inode.kind {
                Kind::CharacterDevice { major, minor } => ("c", S_IFCHR, major, minor),
                Kind::BlockDevice { major, minor } => ("b", S_IFBLK, major, minor),
                _ => continue,
            };
            for path in &paths {
                let quoted = quoted(path)?;
                self.line(&[b"rm", &quoted]);
            }
            let Some((first, links)) = paths.split_first() else { continue };
            let device = quoted(first)?;
            // The command mknod takes a name, not a path.
            self.line(&[b"cd", &quoted(&first.parent().unwrap_or_else(TreePath::root))?]);
            let (major, minor) = (major.to_string(), minor.to_string());
            self.line(&[b"mknod", &quote(first.name())?, letter.as_bytes(), major.as_bytes(), minor.as_bytes()]);
            for link in links {
                self.line(&[b"ln", &device, &quoted(link)?]);
            }
            self.line(&[b"sif", &device, b"links_count", paths.len().to_string().as_bytes()]);
            self.attributes(&device, inode, kind);
        }
        Ok(())
    }

    /// Sets mode, owner and time.
    fn attributes(&mut self, file: &[u8], inode: &Inode, kind: u32) {
        // debugfs sets 32 bits, without the epoch.
        let seconds = inode.mtime.seconds.clamp(0, i32::MAX.into());
        for (field, value) in [
            ("mode", format!("0{:o}", kind | u32::from(inode.mode))),
            ("uid", inode.uid.to_string()),
            ("gid", inode.gid.to_string()),
            ("mtime", format!("@{seconds}")),
        ] {
            self.line(&[b"sif", file, field.as_bytes(), value.as_bytes()]);
        }
    }

    /// Sets every xattr, including those that mke2fs copied: which ones it could not read depends on the kernel, the namespace
    /// and the host's filesystem.
    fn xattrs(&mut self, tree: &RootTree) -> Result<()> {
        for entry in tree.entries() {
            if entry.hard_link_to.is_some() || entry.inode.kind == Kind::Socket {
                continue;
            }
            for (name, value) in &entry.inode.xattrs {
                let path = quoted(entry.path)?;
                let file = self.value(value)?;
                self.line(&[b"ea_set", b"-f", file.as_encoded_bytes(), &path, &quote(name)?]);
            }
        }
        Ok(())
    }

    fn value(&mut self, value: &[u8]) -> Result<OsString> {
        if let Some(file) = self.values.get(value) {
            return Ok(file.clone());
        }
        let file = self.folder.join(self.values.len().to_string()).into_os_string();
        fs::write(&file, value)?;
        self.values.insert(value.into(), file.clone());
        Ok(file)
    }

    fn line(&mut self, words: &[&[u8]]) {
        self.text.extend_from_slice(&words.join(&b' '));
        self.text.push(b'\n');
    }
}

/// Quotes a path for debugfs's command language (libss).
fn quoted(path: &TreePath) -> Result<Vec<u8>> {
    quote(&[b"/", path.as_bytes()].concat()).with_context(|| format!("mke2fs cannot finish {path}"))
}

/// Quotes a word. Inside quotes only a quote is special, and is doubled; a newline cannot be written.
fn quote(word: &[u8]) -> Result<Vec<u8>> {
    ensure!(!word.contains(&b'\n'), "debugfs takes no names with a newline");
    let mut quoted = vec![b'"'];
    for &byte in word {
        quoted.extend_from_slice(if byte == b'"' { b"\"\"" } else { std::slice::from_ref(&byte) });
    }
    quoted.push(b'"');
    Ok(quoted)
}
