//! Secrets of a build: steps read them, and neither image, cache nor output keeps them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use snug_tests::{have, is_root, succeed, xtask};

/// What must be found nowhere.
const CANARY: &str = "canary-c4f2f0a1-not-to-be-kept";

/// Builds a spec of `rest` with the canary as the secrets `token`, from the environment, and `key`, from a file.
fn build(folder: &Path, rest: &str) -> Output {
    build_by("builtin", folder, rest)
}

fn build_by(engine: &str, folder: &Path, rest: &str) -> Output {
    let image = folder.join("images/secretive");
    fs::create_dir_all(&image).expect("a folder");
    fs::write(folder.join("key"), format!("{CANARY}\n")).expect("a file");
    let spec = format!(
        "base = {{ tar = \"{0}/base.tar\" }}\nfilesystem = \"ext4\"\n{rest}\n\
         [[secret]]\nid = \"token\"\nfrom = {{ env = \"TOKEN_OF_THE_CALLER\" }}\n\
         [[secret]]\nid = \"key\"\nfrom = {{ file = \"{0}/key\" }}\n",
        folder.display()
    );
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", "secretive", "--json", "--engine", engine, "--images"]).arg(folder.join("images"));
    command.arg("--output").arg(folder.join("out"));
    command.env("TOKEN_OF_THE_CALLER", CANARY).env("XDG_CACHE_HOME", folder.join("cache"));
    command.output().expect("xtask runs")
}

/// Asserts that neither what a build said nor what it left below `folder` tells the canary.
#[track_caller]
fn assert_nothing_told(folder: &Path, output: &Output) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains(CANARY), "{output:?}");
    for place in ["out", "cache"] {
        let place = folder.join(place);
        if place.exists() {
            let found = Command::new("grep").args(["-rlF", CANARY]).arg(&place).output().expect("grep runs");
            // 1: looked everywhere and found nothing (grep(1)).
            assert_eq!(found.status.code(), Some(1), "{}", String::from_utf8_lossy(&found.stdout));
        }
    }
}

#[test]
fn steps_read_secrets_that_nothing_keeps() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let reading = format!(
        "run = [\n  'test \"$(cat /run/secrets/token)$(cat /run/secrets/key)\" = {0}{0}',\n  'cat /run/secrets/token',\n  \
         'wc -c < /run/secrets/key > /length',\n]",
        // The spec must not hold the canary either: the step puts it together.
        "$(echo canary-c4f2f0a1 | sed s/$/-not-to-be-kept/)"
    );
    let output = build(folder, &reading);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_nothing_told(folder, &output);
    let image = folder.join("out/secretive/rootfs.ext4");
    let length = succeed(Command::new("debugfs").args(["-R", "cat /length"]).arg(&image));
    assert_eq!(String::from_utf8_lossy(&length.stdout).trim(), format!("{}", CANARY.len() + 1));

    // podman shows them to its steps as well, and answers with the same tree; docker's classic builder cannot.
    if is_root() && have(&["podman"]) {
        let output = build_by("podman", folder, &reading.replace("/length", "/length-by-podman"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_nothing_told(folder, &output);
        let length = succeed(Command::new("debugfs").args(["-R", "cat /length-by-podman"]).arg(&image));
        assert_eq!(String::from_utf8_lossy(&length.stdout).trim(), format!("{}", CANARY.len() + 1));
    }
    let good = fs::read(&image).expect("an image");

    // A failing step's last lines.
    let output = build(folder, "run = [\"cat /run/secrets/token; exit 3\"]");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("exit status 3") && said.contains("| ***"), "{said}");
    assert_nothing_told(folder, &output);

    // A step that keeps one is refused, and the last image stays.
    let output = build(folder, "run = [\"mkdir /opt; cp /run/secrets/key /opt/key\"]");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("the secret `token` is in the image, at /opt/key"), "{said}");
    assert_nothing_told(folder, &output);
    assert!(fs::read(&image).expect("the image") == good);

    // Unless it is taken away again.
    let output = build(folder, "run = [\"mkdir /opt; cp /run/secrets/key /opt/key\"]\nexclude = [\"/opt/key\"]");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_nothing_told(folder, &output);
}

#[test]
fn a_secret_that_is_not_there_is_named() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let image = folder.join("images/missing");
    fs::create_dir_all(&image).expect("a folder");
    let spec = format!(
        "base = {{ tar = \"{}/base.tar\" }}\nfilesystem = \"ext4\"\nsecret = [{{ id = \"token\", from = {{ env = \"NOT_SET_ANYWHERE\" }} }}]\n",
        folder.display()
    );
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", "missing", "--images"]).arg(folder.join("images")).arg("--output").arg(folder.join("out"));
    let output = command.env("XDG_CACHE_HOME", folder.join("cache")).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the secret `token` is to come from $NOT_SET_ANYWHERE, which is not set"), "{said}");
}
