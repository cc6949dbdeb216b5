//! Images for another architecture, whose programs run under QEMU's user-mode emulation.

use std::fs;
use std::path::Path;
use std::process::Command;

use snug_tests::{Mounted, have, is_root, succeed, xtask};

/// Registers an emulator in a user namespace of the test's own, as the tool does, and runs a command in a root directory.
const EMULATED: &str = r#"
    mkdir "$1/binfmt" && mount -t binfmt_misc binfmt_misc "$1/binfmt"
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":test:M::$magic:$mask:$(command -v qemu-aarch64-static):OCPF" > "$1/binfmt/register"
    exec chroot "$2" uname -m
"#;

#[test]
fn an_arm64_debian_is_built_on_amd64() {
    if !is_root() || !have(&["mmdebstrap", "newuidmap", "e2fsck", "file", "qemu-aarch64-static"]) {
        return;
    }
    if std::env::consts::ARCH != "x86_64" {
        // On an arm64 machine the platform is the host's own, which the other tests build for.
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let image = folder.path().join("images/foreign");
    fs::create_dir_all(&image).expect("a folder");
    let spec = "base = { debian = \"trixie\", variant = \"essential\" }\nrun = [\"uname -m > /machine\"]\n\
                filesystem = \"ext4\"\n";
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let out = folder.path().join("out");
    let output = succeed(
        xtask()
            .args(["image", "foreign", "--platform", "linux/arm64", "--json", "--images"])
            .arg(folder.path().join("images"))
            .arg("--output")
            .arg(&out)
            .env("XDG_CACHE_HOME", folder.path().join("cache")),
    );
    let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let image = out.join("foreign/linux-arm64/rootfs.ext4");
    assert_eq!(Path::new(about["images"][0]["image"].as_str().expect("the image's path")), image);
    assert_eq!(about["images"][0]["manifest"]["platform"], "linux/arm64");

    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let mounted = Mounted::read_only(&image);
    let said = succeed(Command::new("file").arg("-b").arg(mounted.path().join("usr/bin/dash")));
    assert!(String::from_utf8_lossy(&said.stdout).contains("ARM aarch64"), "{said:?}");
    assert_eq!(fs::read_to_string(mounted.path().join("machine")).expect("what a step wrote"), "aarch64\n");
    let said = succeed(
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-ec", EMULATED, "emulated"])
            .arg(folder.path())
            .arg(mounted.path()),
    );
    assert_eq!(said.stdout, b"aarch64\n");
}
