//! Builds without root: the same tree, entry by entry, and helpful errors where the host does not allow them.

use std::fs;
use std::process::Command;

use snug_tests::{Workshop, have, is_root, succeed};

/// `SOURCE_DATE_EPOCH` of the builds: 2025-01-01.
const EPOCH: &str = "1735689600";

/// Accounts, modes, links, FIFOs, devices, capabilities, xattrs, and what `run` leaves as other users.
const EVERYTHING: &str = r##"
hostname = "everything"
run = [
    "echo svc:x:1000:1000::/home/svc:/bin/sh >> /etc/passwd",
    "mkdir -p /home/svc /deep/er; echo mine > /home/svc/file; busybox chown -R 1000:1000 /home/svc; chmod 4711 /home/svc/file",
    "echo nobody > /nobody; busybox chown 65534:65534 /nobody; chmod 0 /nobody",
    "ln /home/svc/file /deep/hard; ln -s ../home/svc /deep/soft; busybox mkfifo -m 0620 /deep/fifo",
    "busybox dd if=/dev/zero of=/deep/hole bs=1 count=1 seek=10M; busybox truncate -s 20M /deep/hole",
    "busybox touch -d @1000000000 /deep/old; echo gone > /gone",
]
exclude = ["/gone"]
file = [
    { content = "#!/bin/sh\n", to = "/bin/tool", mode = "0755", owner = "1000:1000", capabilities = "cap_net_raw=ep" },
    { content = "x", to = "/etc/attributes", xattrs = { "user.note" = "kept" } },
]
device = [{ path = "/srv/null", type = "char", major = 1, minor = 3, mode = "0666" }]
"##;

#[test]
fn a_user_without_rights_gets_the_same_tree_as_root_entry_by_entry() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv", "bsdtar"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("everything", EVERYTHING);
    let (roots, users) = (workshop.path("root.tar"), workshop.path("home/user.tar"));
    let export = |command: &mut Command, tar: &std::path::Path| {
        succeed(command.arg("--output").arg(tar).env("SOURCE_DATE_EPOCH", EPOCH));
        // One line an entry: type and mode, links, owner, size, time, name and target.
        String::from_utf8(succeed(Command::new("bsdtar").args(["--numeric-owner", "-tvf"]).arg(tar)).stdout)
            .expect("names")
    };
    let root = export(&mut workshop.xtask(&["export", "everything"]), &roots);
    let user = export(&mut workshop.xtask_as_user(&["export", "everything"], 65536), &users);
    assert_eq!(user, root);
    // The tree has entries of every kind, so that the comparison means something.
    for shape in ["-rws--x--x", "prw--w----", "crw-rw-rw-", "hrws--x--x", "lrwx", "----------  0 65534"] {
        assert!(root.contains(shape) || root.contains(&shape.replacen('h', "-", 1)), "no {shape} in\n{root}");
    }
    // And what the list does not show: bodies, attributes, capabilities, nanoseconds.
    assert!(fs::read(&users).expect("a tar") == fs::read(&roots).expect("a tar"), "the same names, other bytes");

    // The image as well, written and checked without root.
    succeed(workshop.xtask_as_user(&["image", "everything"], 65536).env("SOURCE_DATE_EPOCH", EPOCH));
    succeed(workshop.xtask(&["image", "everything"]).env("SOURCE_DATE_EPOCH", EPOCH));
    let users = workshop.path("home/out/everything/rootfs.ext4");
    assert!(fs::read(users).expect("an image") == fs::read(workshop.image("everything")).expect("an image"));
}

#[test]
fn missing_subordinate_ids_are_named_with_the_command_that_adds_them() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("any", "");
    // Ten ids are as good as none: they hold no user of any distribution.
    let output = workshop.xtask_as_user(&["image", "any"], 10).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("snugtest has no 65535 subordinate ids in /etc/subuid"), "{said}");
    assert!(said.contains("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 snugtest"), "{said}");
}

#[test]
fn forbidden_user_namespaces_are_named_with_the_setting_that_allows_them() {
    if !is_root() || !have(&["busybox", "newuidmap", "unshare", "setpriv"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("any", "");
    // Inside a user namespace of its own, the limit is of that namespace alone.
    let command = workshop.xtask(&["image", "any"]);
    let mut limited = Command::new("unshare");
    limited.args(["--user", "--map-root-user", "sh", "-c"]);
    limited.args(["echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"", "sh"]);
    limited.arg(command.get_program()).args(command.get_args()).env("XDG_CACHE_HOME", workshop.path("cache"));
    let output = limited.current_dir(snug_tests::workspace()).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot make a user namespace") && said.contains("hint: "), "{said}");
}
