//! The first process of an image: the image's own init or, where that needs one, a first stage before it: a script of the tool's
//! own that makes a read-only root writable by an overlay, and becomes the image's own init.
//!
//! It goes in only where it is needed and can run, so that an image whose init needs no shell keeps it as it is. What a machine
//! would not start, or not as it is meant to, is said when the image is built.
//!
//! It is put into the finished tree, not into what the steps see: trees are cached, and the script may change without
//! any of them being built again.

mod program;

use anyhow::{Context, Result, bail};
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::image_time;
use snug_rootfs::tree::{Inode, Kind, RootTree, Timestamp, TreePath};

use program::{Caller, NotExecutable, check};

/// The script, for `sh` of Debian and of Alpine.
pub const SCRIPT: &str = include_str!("init.sh");

/// What the kernel is told to start.
const ENTRY: &str = "init";
/// What runs the script.
const SHELL: &str = "bin/sh";
/// What the kernel starts if it is told nothing, and the script where the image has no `/init` (`init/main.c`).
const FALLBACKS: [&str; 3] = ["sbin/init", "etc/init", "bin/init"];
/// The folder that the script looks into. Only an image with the first stage has it.
pub const FOLDER: &str = "usr/lib/snug";
/// The image's own init, and the bytes that an overlay in memory may take.
const OWN_INIT: &str = "usr/lib/snug/init";
const OVERLAY_SIZE: &str = "usr/lib/snug/overlay";
/// Where this is, the script takes no disk for the overlay.
pub const OVERLAY_IN_MEMORY: &str = "usr/lib/snug/overlay-in-memory";
/// The line by which a first stage is known, whichever version of the tool put it there; and the most that one takes, in bytes.
const MARK: &str = "\nOWN=/usr/lib/snug\n";
const SCRIPT_MAX: u64 = 64 << 10;

/// The programs without which the script lays no overlay, those that it can do without in part, and its `PATH`.
const NEEDED: [&str; 4] = ["grep", "mkdir", "mount", "pivot_root"];
const USED: [&str; 9] = ["cat", "chmod", "chown", "sed", "sleep", "stat", "tail", "tr", "umount"];
const TOOL_FOLDERS: [&str; 6] = ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"];

/// Where the script mounts what it needs. On a read-only root they must be there.
const MOUNT_POINTS: [(&str, u16); 4] = [("dev", 0o755), ("proc", 0o555), ("run", 0o755), ("sys", 0o555)];

/// What an image asks of its first process.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Whose programs the kernel runs.
    pub platform: Platform,
    /// Whether the root cannot be written to, whatever it is mounted with: squashfs, erofs, anything under dm-verity.
    pub read_only: bool,
    /// Bytes that an overlay in memory may hold; `Some` where the spec asks for an overlay.
    pub overlay: Option<u64>,
    /// Whether the overlay may be on a disk that the kernel command line names.
    pub overlay_device: bool,
}

/// What a machine misses that starts the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missed {
    /// It does not start, or not as it was meant.
    Warning(String),
    /// It starts, and people may want to know how.
    Note(String),
}

/// Makes sure that `/init` is what the image needs: the image's own, or the first stage with that behind it. Returns what a
/// machine would miss. The same tree comes out the same.
///
/// # Errors
///
/// If the root is read-only, the spec asks for an overlay, and the tree has nothing that could lay one.
pub fn install(tree: &mut RootTree, needs: Needs) -> Result<Vec<Missed>> {
    take_out(tree)?;
    let mut missed = Vec::new();
    let (kernel, script) = (Caller::kernel(needs.platform), Caller::script(needs.platform, &TOOL_FOLDERS));
    let shell = check(tree, SHELL, kernel);
    let entry = tree.get(&TreePath::new(ENTRY)?);
    let (has_entry, is_directory) = (entry.is_some(), entry.is_some_and(Inode::is_directory));
    let fallback_of = |tree: &RootTree, caller| FALLBACKS.into_iter().find(|path| check(tree, path, caller).is_ok());
    if let (false, None, Err(why)) = (has_entry, fallback_of(tree, kernel), &shell) {
        return Ok(vec![Missed::Warning(format!(
            "the image has no init (/init, /sbin/init, /etc/init or /bin/init), and /{SHELL} {why}: a machine \
             cannot start it"
        ))]);
    }
    // Where the image has no `/init`, it starts what the kernel would have started.
    let mut staged = !has_entry && shell.is_ok();
    // A directory cannot be started, nor moved aside as a file is.
    if (needs.read_only || needs.overlay.is_some()) && !is_directory {
        match lacking(tree, &shell, script) {
            None => {
                staged = true;
                let lacks = missing(tree, &USED, script);
                if !lacks.is_empty() {
                    missed.push(Missed::Warning(format!(
                        "the first stage has to do without {lacks}, which the image does not have"
                    )));
                }
            }
            Some(lack) if needs.read_only && needs.overlay.is_some() => bail!(
                "the image cannot have the overlay that its spec asks for: {lack}\n\
                 hint: add what is missing, or leave `overlay` out and let the image's own /init mount what it writes to"
            ),
            Some(lack) if needs.read_only => missed.push(Missed::Warning(format!(
                "the machine starts with a read-only root, without an overlay: {lack}\n\
                 hint: add what is missing, or let the image's own /init mount what it writes to"
            ))),
            Some(lack) => missed.push(Missed::Warning(format!(
                "`overlay=` on the kernel command line will have no effect: {lack}\n\
                 hint: add what is missing, or leave `overlay` out of the spec"
            ))),
        }
    }
    // What starts it has to find it: the script has a `PATH`, and the kernel has none.
    let caller = if staged { script } else { kernel };
    let (own, fallback) = (check(tree, ENTRY, caller), fallback_of(tree, caller));
    match (own, staged, fallback) {
        (Ok(()), ..) | (Err(NotExecutable::Missing), _, Some(_)) => {}
        // A shell takes a script without its first line.
        (Err(NotExecutable::UnknownFormat), true, _) => {}
        (Err(NotExecutable::Missing), _, None) => {
            missed.push(Missed::Note("the image has no init: a machine starts a shell".to_owned()));
        }
        // What it cannot even try, the script passes by; where the kernel refuses what it tries, it ends.
        (Err(why @ (NotExecutable::Mode(_) | NotExecutable::Dangling)), true, next) => {
            let instead = next.map_or("a shell".to_owned(), |path| format!("/{path}"));
            missed.push(Missed::Warning(format!("/init {why}: a machine starts {instead} instead")));
        }
        (Err(why), ..) => missed.push(Missed::Warning(format!("/init {why}: a machine cannot start it"))),
    }
    if staged {
        put(tree, needs)?;
    } else if let (false, Some(fallback)) = (has_entry, fallback) {
        let time = Timestamp::from_seconds(image_time(tree));
        let target = format!("/{fallback}").into_bytes().into();
        tree.insert(TreePath::new(ENTRY)?, Inode { mtime: time, ..Inode::new(Kind::Symlink(target), 0o777) })?;
    }
    Ok(missed)
}

/// Returns what the first stage lacks to lay an overlay.
fn lacking(tree: &RootTree, shell: &Result<(), NotExecutable>, script: Caller) -> Option<String> {
    if let Err(why) = shell {
        return Some(format!("the first stage is a script for /{SHELL}, which {why}"));
    }
    let lacks = missing(tree, &NEEDED, script);
    (!lacks.is_empty()).then(|| format!("the first stage needs {lacks}, which the image does not have"))
}

/// Returns which of the programs the script would not find, as a list for people.
fn missing(tree: &RootTree, tools: &[&str], script: Caller) -> String {
    let has = |tool: &&str| TOOL_FOLDERS.iter().any(|folder| check(tree, &format!("{folder}/{tool}"), script).is_ok());
    tools.iter().filter(|tool| !has(tool)).copied().collect::<Vec<_>>().join(", ")
}

/// Makes `/init` the image's own again where the tree was exported with a first stage, of this version or another: it is put
/// in anew where this image needs one. A first stage behind a first stage would start itself for ever.
fn take_out(tree: &mut RootTree) -> Result<()> {
    let entry = TreePath::new(ENTRY)?;
    let Some(Kind::File(body)) = tree.get(&entry).map(|inode| &inode.kind) else { return Ok(()) };
    if body.size > SCRIPT_MAX {
        return Ok(());
    }
    let content = tree.bodies().read_to_vec(body).context("cannot read /init")?;
    if !content.windows(MARK.len()).any(|bytes| bytes == MARK.as_bytes()) {
        return Ok(());
    }
    let [folder, own, size, in_memory] = [FOLDER, OWN_INIT, OVERLAY_SIZE, OVERLAY_IN_MEMORY]
        .map(|path| TreePath::new(path).map(|path| tree.resolve_parent(&path)));
    let (folder, own, size, in_memory) = (folder?, own?, size?, in_memory?);
    tree.remove(&entry);
    if tree.get(&own).is_some_and(|inode| !inode.is_directory()) {
        tree.link(entry, &own).context("/init cannot be the image's own init")?;
        tree.remove(&own);
    }
    tree.remove(&size);
    tree.remove(&in_memory);
    if tree.subtree(&folder).count() == 1 {
        tree.remove(&folder);
    }
    Ok(())
}

/// Makes the script the tree's `/init`. What was called so before becomes the image's own init.
fn put(tree: &mut RootTree, needs: Needs) -> Result<()> {
    let time = Timestamp::from_seconds(image_time(tree));
    let entry = TreePath::new(ENTRY)?;
    for (name, mode) in MOUNT_POINTS {
        let path = TreePath::new(name)?;
        if tree.get(&path).is_none() {
            tree.insert(path, Inode { mtime: time, ..Inode::directory(mode) })?;
        }
    }
    // Links on the way, as from /usr/lib, are followed as they will be in the image.
    let at = |tree: &RootTree, path: &str| -> Result<TreePath> { Ok(tree.resolve_parent(&TreePath::new(path)?)) };
    let (folder, size, in_memory) = (at(tree, FOLDER)?, at(tree, OVERLAY_SIZE)?, at(tree, OVERLAY_IN_MEMORY)?);
    if tree.get(&folder).is_none() {
        tree.insert(folder, Inode { mtime: time, ..Inode::directory(0o755) })?;
    }
    if tree.get(&entry).is_some() {
        let own = at(tree, OWN_INIT)?;
        tree.link(own.clone(), &entry).context("/init cannot be the image's own init")?;
        tree.remove(&entry);
        if let Some(Kind::Symlink(target)) = tree.get_mut(&own).map(|inode| &mut inode.kind)
            && target.first() != Some(&b'/')
        {
            // It was relative to the root.
            *target = [b"/", &**target].concat().into();
        }
    }
    let mut put = |path: TreePath, content: &[u8], mode: u16| -> Result<()> {
        let body = tree.add_body(content);
        tree.insert(path, Inode { mtime: time, ..Inode::new(Kind::File(body), mode) })?;
        Ok(())
    };
    put(entry, SCRIPT.as_bytes(), 0o755)?;
    if let Some(bytes) = needs.overlay {
        put(size, format!("{bytes}\n").as_bytes(), 0o644)?;
    }
    if !needs.overlay_device {
        put(in_memory, b"", 0o644)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::program::elf;
    use super::*;
    use snug_rootfs::tree::BodySource;
    use snug_tests::have;

    fn path(raw: &str) -> TreePath {
        TreePath::new(raw).unwrap()
    }

    fn content(tree: &RootTree, name: &str) -> String {
        match &tree.get(&path(name)).unwrap_or_else(|| panic!("no {name}")).kind {
            Kind::File(body) => String::from_utf8(tree.bodies().read_to_vec(body).unwrap()).unwrap(),
            Kind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
            kind => kind.noun().to_owned(),
        }
    }

    const WRITABLE: Needs = Needs { platform: Platform::Amd64, read_only: false, overlay: None, overlay_device: true };
    const READ_ONLY: Needs = Needs { read_only: true, ..WRITABLE };

    fn empty() -> RootTree {
        RootTree::new(BodySource::new(Vec::new()))
    }

    fn add(tree: &mut RootTree, name: &str, content: &[u8], mode: u16) {
        let body = tree.add_body(content);
        let mtime = Timestamp::from_seconds(77);
        tree.insert(path(name), Inode { mtime, ..Inode::new(Kind::File(body), mode) }).unwrap();
    }

    fn link(tree: &mut RootTree, name: &str, target: &str) {
        tree.insert(path(name), Inode::new(Kind::Symlink(target.as_bytes().into()), 0o777)).unwrap();
    }

    /// A tree with a shell and all that the script calls.
    fn with_shell() -> RootTree {
        let mut tree = empty();
        add(&mut tree, "usr/bin/busybox", &elf(62, None), 0o755);
        link(&mut tree, "bin", "usr/bin");
        for tool in NEEDED.iter().chain(&USED).chain(&["sh"]) {
            link(&mut tree, &format!("usr/bin/{tool}"), "busybox");
        }
        tree
    }

    /// Installs it, and returns what is missed as it is told.
    fn said(tree: &mut RootTree, needs: Needs) -> Vec<String> {
        let told = |missed| match missed {
            Missed::Warning(what) => format!("warning: {what}"),
            Missed::Note(what) => format!("note: {what}"),
        };
        install(tree, needs).unwrap().into_iter().map(told).collect()
    }

    fn names(tree: &RootTree) -> Vec<String> {
        tree.entries().map(|entry| entry.path.to_string()).collect()
    }

    #[test]
    fn on_a_read_only_root_the_script_takes_the_place_of_the_images_own_init() {
        let mut tree = with_shell();
        add(&mut tree, "init", b"#!/bin/sh\nits own", 0o700);
        let before = names(&tree);
        let missed = said(&mut tree, Needs { overlay: Some(1 << 20), ..READ_ONLY });
        assert_eq!(missed, [""; 0]);
        assert_eq!(content(&tree, "init"), SCRIPT);
        assert_eq!(content(&tree, "usr/lib/snug/init"), "#!/bin/sh\nits own");
        assert_eq!(content(&tree, "usr/lib/snug/overlay"), "1048576\n");
        assert_eq!(tree.get(&path("usr/lib/snug/init")).unwrap().mode, 0o700);
        let new: Vec<String> = names(&tree).into_iter().filter(|name| !before.contains(name)).collect();
        assert_eq!(
            new,
            [
                "/dev",
                "/proc",
                "/run",
                "/sys",
                "/usr/lib",
                "/usr/lib/snug",
                "/usr/lib/snug/init",
                "/usr/lib/snug/overlay"
            ]
        );
        assert_eq!(tree.get(&path("init")).unwrap().mtime, Timestamp::from_seconds(77));
    }

    /// As when an exported tree is the base of another image. The script of an earlier version is known, too.
    #[test]
    fn a_first_stage_is_never_put_before_another() {
        type Change = fn(&mut RootTree);
        let changes: [Change; 4] = [
            |tree| add(tree, "init", b"#!/bin/sh\nits own", 0o700),
            |tree| {
                link(tree, "init", "sbin/init");
                add(tree, "sbin/init", &elf(62, None), 0o755);
            },
            |tree| add(tree, "sbin/init", &elf(62, None), 0o755),
            |_| (),
        ];
        for change in changes {
            let mut plain = with_shell();
            change(&mut plain);
            let mut exported = plain.clone();
            install(&mut exported, Needs { overlay: Some(1 << 20), ..READ_ONLY }).unwrap();
            let earlier = SCRIPT.replacen("of images", "of all images", 1);
            add(&mut exported, "init", earlier.as_bytes(), 0o755);
            let in_memory = Needs { overlay_device: false, ..READ_ONLY };
            install(&mut exported, in_memory).unwrap();
            for needs in [READ_ONLY, Needs { overlay: Some(1 << 30), ..READ_ONLY }, in_memory, WRITABLE] {
                let (mut once, mut twice) = (plain.clone(), exported.clone());
                let said = install(&mut once, needs).unwrap();
                assert_eq!(install(&mut twice, needs).unwrap(), said);
                // The mount points stay.
                let of_stage = |name: &String| name.contains("init") || name.contains("snug");
                let files = |tree: &RootTree| -> Vec<(String, String)> {
                    let told = |name: String| {
                        let content = match tree.get(&path(&name)).unwrap().kind {
                            Kind::Directory => String::new(),
                            // A link to the same place may be written from the root on.
                            _ => content(tree, &name).replace("-> /", "-> "),
                        };
                        (name, content)
                    };
                    names(tree).into_iter().filter(of_stage).map(told).collect()
                };
                assert_eq!(files(&twice), files(&once), "{needs:?}");
            }
        }
    }

    #[test]
    fn a_link_to_an_init_still_leads_there() {
        let mut tree = with_shell();
        link(&mut tree, "init", "sbin/init");
        add(&mut tree, "sbin/init", &elf(62, None), 0o755);
        install(&mut tree, READ_ONLY).unwrap();
        assert_eq!(content(&tree, "usr/lib/snug/init"), "-> /sbin/init");
        assert!(tree.get(&path("usr/lib/snug/overlay")).is_none());
        assert!(tree.get(&path(OVERLAY_IN_MEMORY)).is_none());
        install(&mut tree, Needs { overlay_device: false, ..READ_ONLY }).unwrap();
        assert_eq!(content(&tree, OVERLAY_IN_MEMORY), "");
    }

    #[test]
    fn what_needs_no_first_stage_stays_as_it_is() {
        // With a shell and without, and whatever is wrong with it.
        for (mut tree, init, missed) in [
            (with_shell(), &b"#!/bin/sh"[..], &[][..]),
            (with_shell(), &elf(62, None), &[]),
            (empty(), &elf(62, None), &[]),
            (
                empty(),
                b"#!/bin/sh",
                &["warning: /init is started by /bin/sh, which does not exist: a machine cannot start it"],
            ),
            (
                with_shell(),
                &elf(183, None),
                &["warning: /init is a program for arm64, and the image is for linux/amd64: a machine cannot start it"],
            ),
        ] {
            add(&mut tree, "init", init, 0o755);
            let before = names(&tree);
            assert_eq!(said(&mut tree, WRITABLE), missed);
            assert_eq!(names(&tree), before);
            assert_eq!(tree.bodies().read_to_vec(body_of(&tree, "init")).unwrap(), init);
        }
    }

    fn body_of<'tree>(tree: &'tree RootTree, name: &str) -> &'tree snug_rootfs::tree::Body {
        match &tree.get(&path(name)).unwrap().kind {
            Kind::File(body) => body,
            other => panic!("{other:?}"),
        }
    }

    /// Each tree with what it misses, and with what `/init` is.
    #[test]
    fn what_a_machine_would_miss_is_said() {
        type Change = fn(&mut RootTree);
        let own: Change = |tree| add(tree, "init", &elf(62, None), 0o755);
        let trees: [(&str, RootTree, Change); 12] = [
            ("a static init and no shell", empty(), own),
            ("a shell of another machine", empty(), |tree| {
                add(tree, "init", &elf(62, None), 0o755);
                add(tree, "bin/sh", &elf(183, None), 0o755);
            }),
            ("a shell without its loader", empty(), |tree| {
                add(tree, "init", &elf(62, None), 0o755);
                add(tree, "bin/sh", &elf(62, Some("/lib64/ld-linux-x86-64.so.2")), 0o755);
            }),
            ("a shell, and no mount", with_shell(), |tree| {
                add(tree, "init", &elf(62, None), 0o755);
                tree.remove(&path("usr/bin/mount"));
                tree.remove(&path("usr/bin/mkdir"));
            }),
            ("a shell, and no stat", with_shell(), |tree| {
                add(tree, "init", &elf(62, None), 0o755);
                tree.remove(&path("usr/bin/stat"));
            }),
            ("a dangling init", with_shell(), |tree| link(tree, "init", "sbin/init")),
            ("an init that is not executable", with_shell(), |tree| {
                add(tree, "init", b"#!/bin/sh\n", 0o644);
                add(tree, "sbin/init", &elf(62, None), 0o755);
            }),
            ("an init by env and /usr/local/bin", with_shell(), |tree| {
                link(tree, "usr/bin/env", "busybox");
                add(tree, "usr/local/bin/node", &elf(62, None), 0o755);
                add(tree, "init", b"#!/usr/bin/env node\n", 0o755);
            }),
            ("an init without its interpreter", with_shell(), |tree| {
                add(tree, "init", b"#!/bin/bash\n", 0o755);
                add(tree, "sbin/init", &elf(62, None), 0o755);
            }),
            ("an empty init", with_shell(), |tree| add(tree, "init", b"", 0o755)),
            ("a shell and no init", with_shell(), |_| ()),
            ("/sbin/init alone", empty(), |tree| add(tree, "sbin/init", &elf(62, None), 0o755)),
        ];
        let mut table = String::new();
        for (name, tree, change) in trees {
            for (kind, needs) in [("writable", WRITABLE), ("read-only", READ_ONLY)] {
                let mut tree = tree.clone();
                change(&mut tree);
                let missed = said(&mut tree, needs);
                let entry = match tree.get(&path("init")).map(|inode| &inode.kind) {
                    Some(Kind::File(_)) if content(&tree, "init") == SCRIPT => "the first stage".to_owned(),
                    Some(Kind::Symlink(target)) => format!("-> {}", String::from_utf8_lossy(target)),
                    Some(_) => "its own".to_owned(),
                    None => "none".to_owned(),
                };
                table += &format!("{name}, {kind}: /init is {entry}\n");
                for line in missed.iter().flat_map(|missed| missed.lines()) {
                    table += &format!("    {line}\n");
                }
            }
        }
        for needs in [WRITABLE, READ_ONLY] {
            table += "nothing at all:\n";
            table += &format!("    {}\n", said(&mut empty(), needs).join("\n    "));
        }
        table += "a directory:\n";
        let mut tree = with_shell();
        tree.insert(path("init"), Inode::directory(0o755)).unwrap();
        table += &format!("    {}\n", said(&mut tree, READ_ONLY).join("\n    "));
        insta::assert_snapshot!(table, @r"
        a static init and no shell, writable: /init is its own
        a static init and no shell, read-only: /init is its own
            warning: the machine starts with a read-only root, without an overlay: the first stage is a script for /bin/sh, which does not exist
            hint: add what is missing, or let the image's own /init mount what it writes to
        a shell of another machine, writable: /init is its own
        a shell of another machine, read-only: /init is its own
            warning: the machine starts with a read-only root, without an overlay: the first stage is a script for /bin/sh, which is a program for arm64, and the image is for linux/amd64
            hint: add what is missing, or let the image's own /init mount what it writes to
        a shell without its loader, writable: /init is its own
        a shell without its loader, read-only: /init is its own
            warning: the machine starts with a read-only root, without an overlay: the first stage is a script for /bin/sh, which is started by /lib64/ld-linux-x86-64.so.2, which does not exist
            hint: add what is missing, or let the image's own /init mount what it writes to
        a shell, and no mount, writable: /init is its own
        a shell, and no mount, read-only: /init is its own
            warning: the machine starts with a read-only root, without an overlay: the first stage needs mkdir, mount, which the image does not have
            hint: add what is missing, or let the image's own /init mount what it writes to
        a shell, and no stat, writable: /init is its own
        a shell, and no stat, read-only: /init is the first stage
            warning: the first stage has to do without stat, which the image does not have
        a dangling init, writable: /init is -> sbin/init
            warning: /init is a symlink that leads nowhere: a machine cannot start it
        a dangling init, read-only: /init is the first stage
            warning: /init is a symlink that leads nowhere: a machine starts a shell instead
        an init that is not executable, writable: /init is its own
            warning: /init is not executable (mode 0644): a machine cannot start it
        an init that is not executable, read-only: /init is the first stage
            warning: /init is not executable (mode 0644): a machine starts /sbin/init instead
        an init by env and /usr/local/bin, writable: /init is its own
            warning: /init is started by node, which does not exist: a machine cannot start it
        an init by env and /usr/local/bin, read-only: /init is the first stage
        an init without its interpreter, writable: /init is its own
            warning: /init is started by /bin/bash, which does not exist: a machine cannot start it
        an init without its interpreter, read-only: /init is the first stage
            warning: /init is started by /bin/bash, which does not exist: a machine cannot start it
        an empty init, writable: /init is its own
            warning: /init is empty: a machine cannot start it
        an empty init, read-only: /init is the first stage
            warning: /init is empty: a machine cannot start it
        a shell and no init, writable: /init is the first stage
            note: the image has no init: a machine starts a shell
        a shell and no init, read-only: /init is the first stage
            note: the image has no init: a machine starts a shell
        /sbin/init alone, writable: /init is -> /sbin/init
        /sbin/init alone, read-only: /init is -> /sbin/init
            warning: the machine starts with a read-only root, without an overlay: the first stage is a script for /bin/sh, which does not exist
            hint: add what is missing, or let the image's own /init mount what it writes to
        nothing at all:
            warning: the image has no init (/init, /sbin/init, /etc/init or /bin/init), and /bin/sh does not exist: a machine cannot start it
        nothing at all:
            warning: the image has no init (/init, /sbin/init, /etc/init or /bin/init), and /bin/sh does not exist: a machine cannot start it
        a directory:
            warning: /init is a directory: a machine cannot start it
        ");
    }

    #[test]
    fn an_overlay_that_was_asked_for_and_cannot_be_laid_is_an_error() {
        let needs = Needs { overlay: Some(1 << 20), ..READ_ONLY };
        let mut tree = empty();
        add(&mut tree, "init", &elf(62, None), 0o755);
        let error = install(&mut tree.clone(), needs).unwrap_err().to_string();
        let lack = "the first stage is a script for /bin/sh, which does not exist\nhint: ";
        assert!(error.contains(lack), "{error}");
        let mut shell = with_shell();
        shell.remove(&path("usr/bin/pivot_root"));
        let error = install(&mut shell, needs).unwrap_err().to_string();
        assert!(error.contains("needs pivot_root, which the image does not have\nhint: "), "{error}");
        // On a writable root it is for `overlay=` on the kernel command line, and nothing is lost without it.
        let needs = Needs { read_only: false, ..needs };
        let missed = said(&mut tree, needs);
        assert!(missed.len() == 1 && missed[0].contains(lack), "{missed:?}");
        let mut tree = with_shell();
        add(&mut tree, "init", &elf(62, None), 0o755);
        assert_eq!(said(&mut tree, needs), [""; 0]);
        assert_eq!(content(&tree, "init"), SCRIPT);
    }

    #[test]
    fn every_shell_and_the_linter_accept_the_script() {
        if !have(&["shellcheck", "dash", "busybox"]) {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("init");
        fs::write(&script, SCRIPT).unwrap();
        for words in [&["shellcheck", "--shell=sh"][..], &["dash", "-n"], &["busybox", "ash", "-n"]] {
            let output = Command::new(words[0]).args(&words[1..]).arg(&script).output().unwrap();
            assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
        }
    }
}
