//! New images without code: specs of four and of twelve lines, in a folder outside the workspace.

use std::fs;
use std::path::Path;
use std::process::Command;

use snug_tests::{have, succeed, xtask};

const FOUR_LINES: &str = r#"
base = { debian = "trixie" }
packages = ["openssh-server", "iproute2"]
min-size = "256MiB"
filesystem = "ext4"
"#;

const TWELVE_LINES: &str = r##"
description = "What a spec can do in twelve lines"
base = { image = "four" }
hostname = "twelve"
env = { GREETING = "hello" }
run = ["echo \"$GREETING\" > /greeting", "mkfifo /pipe", "ln /greeting /again", "! env | grep -q ^CARGO"]
exclude = ["/usr/share/doc/*", "/usr/share/man"]
headroom = 1.1
filesystem = { type = "ext4", journal = false, label = "twelve" }
file = [
    { content = "#!/bin/sh\n", to = "/bin/tool", mode = "4755", owner = "daemon:daemon", capabilities = "cap_net_raw=ep" },
]
device = [{ path = "/srv/null", type = "char", major = 1, minor = 3, mode = "0666" }]
"##;

fn debugfs(image: &Path, command: &str) -> String {
    let output = succeed(Command::new("debugfs").args(["-R", command]).arg(image));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn specs_of_four_and_twelve_lines_build_with_no_code() {
    if !have(&["mmdebstrap", "newuidmap", "e2fsck", "debugfs", "dumpe2fs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = folder.path().join("images");
    for (name, spec) in [("four", FOUR_LINES), ("twelve", TWELVE_LINES)] {
        fs::create_dir_all(images.join(name)).expect("a folder");
        fs::write(images.join(name).join("image.toml"), spec.trim_start()).expect("a spec");
    }
    // With an empty cache, everything is built.
    let mut command = xtask();
    command.env("XDG_CACHE_HOME", folder.path().join("cache"));
    succeed(command.args(["image", "--all", "--images"]).arg(&images).arg("--output").arg(folder.path().join("out")));

    let four = folder.path().join("out/four/rootfs.ext4");
    let twelve = folder.path().join("out/twelve/rootfs.ext4");
    for image in [&four, &twelve] {
        succeed(Command::new("e2fsck").arg("-fn").arg(image));
    }
    assert!(fs::metadata(&four).expect("an image").len() >= 256 << 20);
    assert!(debugfs(&four, "stat /usr/sbin/sshd").contains("Type: regular"));
    // Nothing of the build is left: no host keys, no package lists, no policy-rc.d, no machine-id.
    for gone in ["/etc/ssh/ssh_host_ed25519_key", "/usr/sbin/policy-rc.d", "/run/build", "/dev/null"] {
        assert!(!debugfs(&four, &format!("stat {gone}")).contains("Inode:"), "{gone}");
    }
    assert_eq!(debugfs(&four, "cat /etc/machine-id"), "");
    assert_eq!(debugfs(&four, "cat /etc/resolv.conf"), "");

    assert_eq!(debugfs(&twelve, "cat /greeting"), "hello\n");
    assert_eq!(debugfs(&twelve, "cat /etc/hostname"), "twelve\n");
    assert!(debugfs(&twelve, "stat /again").contains("Links: 2"));
    assert!(debugfs(&twelve, "stat /pipe").contains("Type: FIFO"));
    let tool = debugfs(&twelve, "stat /usr/bin/tool");
    assert!(tool.contains("Mode:  04755") && tool.contains("User:     1   Group:     1"), "{tool}");
    assert!(debugfs(&twelve, "ea_get /usr/bin/tool security.capability").contains("= 01 00 00 02 00 20"), "{tool}");
    assert!(debugfs(&twelve, "stat /srv/null").contains("Device major/minor number: 01:03"));
    assert!(!debugfs(&twelve, "stat /usr/share/man").contains("Inode:"));
    let superblock = succeed(Command::new("dumpe2fs").arg("-h").arg(&twelve));
    let superblock = String::from_utf8_lossy(&superblock.stdout);
    assert!(superblock.contains("Filesystem volume name:   twelve") && !superblock.contains("has_journal"));
}
