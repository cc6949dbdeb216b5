//! Digests of images and of their files, compared with those of sha256sum and bsdtar.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snug_tests::{have, succeed, xtask};

/// What sha256sum says of files, by their names as they were given.
fn sums(folder: &Path, files: &[&str]) -> BTreeMap<String, String> {
    let output = succeed(Command::new("sha256sum").args(files).current_dir(folder));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name.to_owned(), sum.to_owned()))
        .collect()
}

/// A root with a hole, two names of one file, and names that need escaping; and its tar.
fn sample(folder: &Path) {
    let script = r#"
        mkdir -p root/etc root/var
        echo 127.0.0.1 localhost > root/etc/hosts
        ln root/etc/hosts root/etc/again
        ln -s ../etc/hosts root/var/link
        truncate -s 3M root/var/sparse; echo end >> root/var/sparse
        seq 200000 > root/var/large
        echo odd > "root/var/a name = with #marks"
        tar --create --file root.tar --format pax --sparse --sort name --numeric-owner -C root .
    "#;
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder));
}

#[test]
fn digests_are_those_that_sha256sum_finds() {
    if !have(&["bsdtar"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    sample(path);
    for (image, more) in [("image.ext4", [].as_slice()), ("full.ext4", &["--headroom", "1.0", "--no-journal"])] {
        let mut command = xtask();
        command.arg("pack").arg(path.join("root.tar")).arg("-o").arg(path.join(image)).args(more);
        command.arg("--json").arg("--contents").arg(path.join("contents.mtree"));
        let about: Value = serde_json::from_slice(&succeed(&mut command).stdout).expect("JSON");
        assert_eq!(about["sha256"], sums(path, &[image])[image].as_str());
    }

    let list = fs::read_to_string(path.join("contents.mtree")).expect("text");
    let digest = |name: &str| {
        let line = list.lines().find(|line| line.split(' ').next() == Some(name)).expect(name);
        line.split(' ').find_map(|word| word.strip_prefix("sha256digest=")).expect("a digest").to_owned()
    };
    let names = ["etc/hosts", "etc/again", "var/sparse", "var/large", "var/a name = with #marks"];
    let sums = sums(&path.join("root"), &names);
    for name in &names[..4] {
        assert_eq!(digest(&format!("./{name}")), sums[*name]);
    }
    assert_eq!(digest(r"./var/a\040name\040\075\040with\040\043marks"), sums[names[4]]);

    // The list is one that others read.
    let output = succeed(Command::new("bsdtar").arg("-tvf").arg(path.join("contents.mtree")));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.lines().count(), 9, "{said}");
    assert!(said.lines().any(|line| line.ends_with("./var/a name = with #marks")), "{said}");
    assert!(said.lines().any(|line| line.ends_with("./var/link -> ../etc/hosts")), "{said}");
}

#[test]
fn without_digests_the_image_is_the_same() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path();
    sample(path);
    let pack = |image: &str, more: &[&str]| {
        succeed(xtask().arg("pack").arg(path.join("root.tar")).arg("-o").arg(path.join(image)).args(more));
    };
    pack("with.ext4", &[]);
    pack("without.ext4", &["--no-digest", "--no-sync"]);
    assert!(fs::read(path.join("with.ext4")).unwrap() == fs::read(path.join("without.ext4")).unwrap());
}
