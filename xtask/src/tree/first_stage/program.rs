//! Whether the kernel of an image can execute a file in its tree: execve(2), `fs/binfmt_elf.c` and `fs/binfmt_script.c`, by the
//! tree alone. Libraries that a program loads after its start are not looked for.

use std::fmt;
use std::io;

use snug_rootfs::platform::Platform;
use snug_rootfs::tree::{Body, Kind, RootTree, TreePath};

/// Bytes of a file that the kernel looks at (`BINPRM_BUF_SIZE`).
const HEAD: usize = 256;
/// Scripts whose interpreters are scripts, as deep as the kernel goes.
const DEPTH: usize = 5;
/// Longest path of an ELF interpreter, in bytes (`PATH_MAX`).
const INTERPRETER_MAX: usize = 4096;
/// Bytes of an ELF file's program headers that are looked at; ordinary programs have a dozen, of 56 bytes each.
const HEADERS_MAX: usize = 64 << 10;
/// Where `env` looks without a `PATH`, as the kernel starts the first process: the default paths of glibc and busybox.
const DEFAULT_PATH: [&str; 4] = ["bin", "usr/bin", "sbin", "usr/sbin"];
/// Where it looks as well by the default path of musl (`src/process/execvp.c`), which has its loader in `/lib`.
const MUSL_PATH: &str = "usr/local/bin";

/// What starts a program.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    platform: Platform,
    /// The folders of its `PATH`, which `env` looks into.
    path: &'static [&'static str],
}

impl Caller {
    /// A kernel of `platform`, which starts its first process without a `PATH`.
    pub(super) fn kernel(platform: Platform) -> Self {
        Caller { platform, path: &DEFAULT_PATH }
    }

    /// A script on that kernel with a `PATH` of its own.
    pub(super) fn script(platform: Platform, path: &'static [&'static str]) -> Self {
        Caller { platform, path }
    }

    /// Whether `env` finds the program.
    fn finds(self, tree: &RootTree, name: &[u8], depth: usize) -> bool {
        let starts = |folder: &str| {
            TreePath::new([folder.as_bytes(), b"/", name].concat())
                .is_ok_and(|path| check_at(tree, &path, self, depth).is_ok())
        };
        let has_musl = || {
            let loader = format!("lib/ld-musl-{}.so.1", self.platform.machine());
            TreePath::new(loader).is_ok_and(|loader| tree.resolve(&loader).is_some())
        };
        self.path.iter().any(|folder| starts(folder)) || (has_musl() && starts(MUSL_PATH))
    }
}

/// Why a file cannot be executed, as what is said of it: `/init …`.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotExecutable {
    #[error("does not exist")]
    Missing,
    #[error("is a symlink that leads nowhere")]
    Dangling,
    #[error("is a {0}")]
    NotAFile(&'static str),
    #[error("is not executable (mode {0:04o})")]
    Mode(u16),
    #[error("is empty")]
    Empty,
    #[error("is neither an ELF program nor a script that begins with `#!`")]
    UnknownFormat,
    #[error("is a damaged ELF program")]
    BadElf,
    #[error("is a program for {found}, and the image is for {wanted}")]
    Machine { found: Machine, wanted: Platform },
    #[error("is started by {interpreter}, which {why}")]
    Interpreter { interpreter: String, why: Box<NotExecutable> },
    #[error("is a script of scripts, too deep for the kernel")]
    TooDeep,
    #[error("cannot be read")]
    Unreadable(#[from] io::Error),
}

/// ELF's `e_machine` (elf.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine(u16);

impl Machine {
    const I386: Machine = Machine(3);
    const ARM: Machine = Machine(40);
    const X86_64: Machine = Machine(62);
    const AARCH64: Machine = Machine(183);

    /// Whether a kernel of `platform` runs it; those of 64 bits run programs of 32.
    fn runs_on(self, platform: Platform) -> bool {
        match platform {
            Platform::Amd64 => [Machine::X86_64, Machine::I386].contains(&self),
            Platform::Arm64 => [Machine::AARCH64, Machine::ARM].contains(&self),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Machine::I386 => f.write_str("386"),
            Machine::ARM => f.write_str("arm"),
            Machine::X86_64 => f.write_str("amd64"),
            Machine::AARCH64 => f.write_str("arm64"),
            Machine(21) => f.write_str("ppc64"),
            Machine(22) => f.write_str("s390x"),
            Machine(243) => f.write_str("riscv64"),
            Machine(258) => f.write_str("loong64"),
            Machine(number) => write!(f, "another machine (ELF's number {number})"),
        }
    }
}

/// Checks that `caller` can execute what `path` leads to in the tree.
pub(super) fn check(tree: &RootTree, path: &str, caller: Caller) -> Result<(), NotExecutable> {
    let path = TreePath::new(path).map_err(|_| NotExecutable::Missing)?;
    check_at(tree, &path, caller, DEPTH)
}

fn check_at(tree: &RootTree, path: &TreePath, caller: Caller, depth: usize) -> Result<(), NotExecutable> {
    let Some(real) = tree.resolve(path) else {
        let is_link = tree.get(&tree.resolve_parent(path)).is_some();
        return Err(if is_link { NotExecutable::Dangling } else { NotExecutable::Missing });
    };
    let inode = tree.get(&real).ok_or(NotExecutable::Missing)?;
    let Kind::File(body) = &inode.kind else { return Err(NotExecutable::NotAFile(inode.kind.noun())) };
    // Any of the three is enough for root.
    if inode.mode & 0o111 == 0 {
        return Err(NotExecutable::Mode(inode.mode));
    }
    let file = File { tree, body };
    let head = file.read(0, HEAD)?;
    if head.is_empty() {
        return Err(NotExecutable::Empty);
    }
    if head.starts_with(b"\x7fELF") {
        return check_elf(&file, &head, caller, depth);
    }
    let line = head.strip_prefix(b"#!").ok_or(NotExecutable::UnknownFormat)?;
    let line = trim(line.split(|&byte| byte == b'\n').next().unwrap_or_default());
    let end = line.iter().position(is_blank).unwrap_or(line.len());
    let (interpreter, argument) = (&line[..end], trim(&line[end..]));
    if interpreter.is_empty() {
        return Err(NotExecutable::UnknownFormat);
    }
    started_by(tree, interpreter, caller, depth)?;
    if interpreter.ends_with(b"/env") && is_name(argument) && !caller.finds(tree, argument, depth - 1) {
        let interpreter = argument.escape_ascii().to_string();
        return Err(NotExecutable::Interpreter { interpreter, why: NotExecutable::Missing.into() });
    }
    Ok(())
}

/// Whether a byte ends a word of the first line of a script; a carriage return does not.
fn is_blank(byte: &u8) -> bool {
    b" \t".contains(byte)
}

fn trim(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| !is_blank(byte)).unwrap_or(line.len());
    let end = line.iter().rposition(|byte| !is_blank(byte)).map_or(start, |last| last + 1);
    &line[start..end]
}

/// Whether the argument of `env` is the name of a program alone.
fn is_name(argument: &[u8]) -> bool {
    !argument.is_empty() && !argument.starts_with(b"-") && !argument.iter().any(|byte| b"/= \t".contains(byte))
}

fn started_by(tree: &RootTree, interpreter: &[u8], caller: Caller, depth: usize) -> Result<(), NotExecutable> {
    let deeper = depth.checked_sub(1).filter(|depth| *depth > 0).ok_or(NotExecutable::TooDeep)?;
    let path = TreePath::new(interpreter).map_err(|_| NotExecutable::Missing);
    path.and_then(|path| check_at(tree, &path, caller, deeper)).map_err(|why| match why {
        NotExecutable::TooDeep => NotExecutable::TooDeep,
        why => NotExecutable::Interpreter { interpreter: interpreter.escape_ascii().to_string(), why: why.into() },
    })
}

/// Checks the machine of an ELF program, and that its loader is there (elf(5): `Elf64_Ehdr`, `Elf64_Phdr`).
fn check_elf(file: &File, head: &[u8], caller: Caller, depth: usize) -> Result<(), NotExecutable> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const EXECUTABLE: u64 = 2;
    const SHARED: u64 = 3;
    const PT_INTERP: u64 = 3;
    let number = |bytes: &[u8], at: usize, length: usize| {
        let field = bytes.get(at..at + length).ok_or(NotExecutable::BadElf)?;
        Ok::<u64, NotExecutable>(field.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
    };
    let is_64 = *head.get(4).ok_or(NotExecutable::BadElf)? == CLASS_64;
    let machine = match (head.get(5), number(head, 18, 2)?) {
        (Some(&LITTLE_ENDIAN), machine) => machine,
        (_, machine) => (machine as u16).swap_bytes().into(),
    };
    let machine = Machine(machine as u16);
    if !machine.runs_on(caller.platform) {
        return Err(NotExecutable::Machine { found: machine, wanted: caller.platform });
    }
    if ![EXECUTABLE, SHARED].contains(&number(head, 16, 2)?) {
        return Err(NotExecutable::BadElf);
    }
    // Where the two classes have the fields: offset, size and count of program headers; offset and length of a segment.
    let [offset, size, count] = if is_64 { [(32, 8), (54, 2), (56, 2)] } else { [(28, 4), (42, 2), (44, 2)] };
    let [start, length] = if is_64 { [(8, 8), (32, 8)] } else { [(4, 4), (16, 4)] };
    let (offset, size, count) =
        (number(head, offset.0, offset.1)?, number(head, size.0, size.1)? as usize, number(head, count.0, count.1)?);
    let headers = file.read(offset, (size * count as usize).min(HEADERS_MAX))?;
    for header in headers.chunks_exact(size.max(1)) {
        if number(header, 0, 4)? != PT_INTERP {
            continue;
        }
        let path = file.read(number(header, start.0, start.1)?, number(header, length.0, length.1)? as usize)?;
        let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
        return started_by(file.tree, path, caller, depth);
    }
    Ok(())
}

/// A file of the tree, read in parts.
struct File<'tree> {
    tree: &'tree RootTree,
    body: &'tree Body,
}

impl File<'_> {
    /// Reads up to `length` bytes, at most those of a path or of the headers, at `offset`; fewer at the file's end.
    fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let length = length.min(INTERPRETER_MAX.max(HEADERS_MAX)) as u64;
        let end = offset.saturating_add(length).min(self.body.size);
        let mut bytes = vec![0; end.saturating_sub(offset) as usize];
        for range in self.body.extents.as_slice() {
            let (from, to) = (range.offset.max(offset), (range.offset + range.length).min(end));
            if from < to {
                let part = &mut bytes[(from - offset) as usize..(to - offset) as usize];
                self.tree.bodies().read_exact_at(part, range.source + (from - range.offset))?;
            }
        }
        Ok(bytes)
    }
}

/// An ELF header of 64 bits with one program header, for an interpreter where there is one.
#[cfg(test)]
pub(super) fn elf(machine: u8, interpreter: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56];
    bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (bytes[16], bytes[18], bytes[32], bytes[54], bytes[56]) = (2, machine, 64, 56, 1);
    if let Some(interpreter) = interpreter {
        (bytes[64], bytes[64 + 8], bytes[64 + 32]) = (3, 120, interpreter.len() as u8 + 1);
        bytes.extend_from_slice(interpreter.as_bytes());
        bytes.push(0);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use snug_rootfs::tree::{BodySource, Inode};
    use snug_tests::{have, is_root};

    fn path(raw: &str) -> TreePath {
        TreePath::new(raw).unwrap()
    }

    fn empty() -> RootTree {
        RootTree::new(BodySource::new(Vec::new()))
    }

    fn add(tree: &mut RootTree, name: &str, content: &[u8], mode: u16) {
        let body = tree.add_body(content);
        tree.insert(path(name), Inode::new(Kind::File(body), mode)).unwrap();
    }

    fn link(tree: &mut RootTree, name: &str, target: &str) {
        tree.insert(path(name), Inode::new(Kind::Symlink(target.as_bytes().into()), 0o777)).unwrap();
    }

    #[test]
    fn what_the_kernel_cannot_start_is_said_in_words() {
        let mut tree = empty();
        let tree = &mut tree;
        add(tree, "static", &elf(62, None), 0o755);
        add(tree, "lib64/ld.so", &elf(62, None), 0o755);
        add(tree, "dynamic", &elf(62, Some("/lib64/ld.so")), 0o755);
        add(tree, "musl", &elf(62, Some("/lib/ld-musl.so")), 0o755);
        add(tree, "arm", &elf(183, None), 0o755);
        add(tree, "riscv", &elf(243, None), 0o755);
        add(tree, "cut", b"\x7fELF\x02", 0o755);
        add(tree, "plain", &elf(62, None), 0o644);
        add(tree, "empty", b"", 0o755);
        add(tree, "text", b"echo hello\n", 0o755);
        add(tree, "only-mark", b"#!", 0o755);
        add(tree, "usr/bin/dash", &elf(62, Some("/lib64/ld.so")), 0o755);
        add(tree, "usr/bin/env", &elf(62, None), 0o755);
        link(tree, "bin", "usr/bin");
        link(tree, "usr/bin/sh", "dash");
        add(tree, "script", b"#! /bin/sh -e\necho\n", 0o755);
        add(tree, "crlf", b"#!/bin/sh\r\necho\r\n", 0o755);
        add(tree, "bash", b"#!/bin/bash\n", 0o755);
        add(tree, "by-env", b"#!/usr/bin/env sh\n", 0o755);
        add(tree, "by-env-bash", b"#!/usr/bin/env bash\n", 0o755);
        add(tree, "of-script", b"#!/script\n", 0o755);
        add(tree, "itself", b"#!/itself\n", 0o755);
        tree.insert(path("folder"), Inode::directory(0o755)).unwrap();
        link(tree, "gone", "/no/where");
        link(tree, "loop", "loop");
        link(tree, "good", "../../static");
        let said = |name: &str, platform| match check(tree, name, Caller::kernel(platform)) {
            Ok(()) => format!("/{name} starts\n"),
            Err(why) => format!("/{name} {why}\n"),
        };
        let names = [
            "static",
            "good",
            "dynamic",
            "musl",
            "arm",
            "riscv",
            "cut",
            "plain",
            "empty",
            "text",
            "only-mark",
            "script",
            "crlf",
            "bash",
            "by-env",
            "by-env-bash",
            "of-script",
            "itself",
            "folder",
            "gone",
            "loop",
            "none",
        ];
        let table: String = names.into_iter().map(|name| said(name, Platform::Amd64)).collect();
        insta::assert_snapshot!(table, @r"
        /static starts
        /good starts
        /dynamic starts
        /musl is started by /lib/ld-musl.so, which does not exist
        /arm is a program for arm64, and the image is for linux/amd64
        /riscv is a program for riscv64, and the image is for linux/amd64
        /cut is a damaged ELF program
        /plain is not executable (mode 0644)
        /empty is empty
        /text is neither an ELF program nor a script that begins with `#!`
        /only-mark is neither an ELF program nor a script that begins with `#!`
        /script starts
        /crlf is started by /bin/sh\r, which does not exist
        /bash is started by /bin/bash, which does not exist
        /by-env starts
        /by-env-bash is started by bash, which does not exist
        /of-script starts
        /itself is a script of scripts, too deep for the kernel
        /folder is a directory
        /gone is a symlink that leads nowhere
        /loop is a symlink that leads nowhere
        /none does not exist
        ");
        assert_eq!(said("arm", Platform::Arm64), "/arm starts\n");
        assert_eq!(
            said("static", Platform::Arm64),
            "/static is a program for amd64, and the image is for linux/arm64\n"
        );
    }

    /// Each time `env` with the caller's word.
    #[test]
    fn env_looks_where_its_caller_says() {
        let mut tree = empty();
        add(&mut tree, "usr/bin/env", &elf(62, None), 0o755);
        add(&mut tree, "usr/local/bin/node", &elf(62, None), 0o755);
        add(&mut tree, "app", b"#!/usr/bin/env node\n", 0o755);
        let starts = |tree: &RootTree, caller| check(tree, "app", caller).is_ok();
        let kernel = Caller::kernel(Platform::Amd64);
        assert!(!starts(&tree, kernel));
        assert!(starts(&tree, Caller::script(Platform::Amd64, &["usr/local/bin", "bin"])));
        assert!(!starts(&tree, Caller::script(Platform::Amd64, &["bin"])));
        add(&mut tree, "lib/ld-musl-x86_64.so.1", &elf(62, None), 0o755);
        assert!(starts(&tree, kernel));
    }

    /// The host's own programs, in a tree that is laid out: the kernel's word against ours.
    #[test]
    fn the_kernel_agrees() {
        if !is_root() || !have(&["busybox", "chroot"]) {
            return;
        }
        let busybox = std::fs::read(snug_process::program::find("busybox").unwrap()).unwrap();
        let mut tree = empty();
        let tree = &mut tree;
        add(tree, "static", &busybox, 0o755);
        add(tree, "plain", &busybox, 0o644);
        link(tree, "linked", "/static");
        link(tree, "gone", "/none");
        add(tree, "bin/sh", &busybox, 0o755);
        add(tree, "script", b"#! /bin/sh\nexit 0\n", 0o755);
        add(tree, "crlf", b"#!/bin/sh\r\nexit 0\r\n", 0o755);
        add(tree, "bash", b"#!/bin/bash\nexit 0\n", 0o755);
        add(tree, "of-script", b"#!/script\n", 0o755);
        add(tree, "itself", b"#!/itself\n", 0o755);
        add(tree, "env", &busybox, 0o755);
        // The host's, without its loader.
        add(tree, "true", &std::fs::read("/bin/true").unwrap(), 0o755);
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir(&root).unwrap();
        snug_rootfs::disk::materialise(tree, &root, |_| ()).unwrap();
        let starts = |root: &Path, name: &str| {
            let output = Command::new("chroot").arg(root).arg(format!("/{name}")).output().unwrap();
            !String::from_utf8_lossy(&output.stderr).contains("failed to run command")
        };
        let host = Platform::host().unwrap();
        for name in [
            "static",
            "plain",
            "linked",
            "gone",
            "script",
            "crlf",
            "bash",
            "of-script",
            "itself",
            "true",
            "bin",
            "none",
        ] {
            assert_eq!(check(tree, name, Caller::kernel(host)).is_ok(), starts(&root, name), "{name}");
        }
    }
}
