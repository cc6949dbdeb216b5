//! What a host lacks: told once and truly, with what this user can type, and without losing what could be done.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use snug_tests::{Workshop, have, is_root, succeed, xtask};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", said(output)))
}

/// A folder for PATH with every program of this host but those whose names begin with one of `without`. The folders of the
/// administrator's programs are searched whatever PATH says.
fn programs(folder: &Path, without: &[&str]) -> PathBuf {
    let place = folder.join("programs");
    fs::create_dir(&place).expect("a folder");
    let path = std::env::var_os("PATH").expect("a PATH");
    for program in std::env::split_paths(&path).filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten() {
        let name = program.file_name().into_string().expect("a name");
        if !without.iter().any(|start| name.starts_with(start)) {
            // The first on PATH counts.
            let _ = symlink(program.path(), place.join(name));
        }
    }
    place
}

#[test]
fn without_qemu_a_check_keeps_its_other_results_and_names_a_setup_that_exists() {
    if !have(&["busybox", "newuidmap", "e2fsck", "debugfs"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("made", "file = [{ content = \"#!/bin/sh\\n\", to = \"/sbin/init\", mode = \"0755\" }]");
    succeed(&mut workshop.xtask(&["image", "made"]));
    let programs = programs(&workshop.path(""), &["qemu-system"]);
    let output =
        workshop.xtask(&["check", "made", "--boot", "--json", "-q"]).env("PATH", &programs).output().expect("it runs");
    // The image may be sound: this is not the exit code of a check that failed.
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let report = json(&output)["images"][0].clone();
    assert_eq!(report["passed"], false);
    let checks = report["checks"].as_array().expect("checks").clone();
    let state = |question: &str| {
        let check = checks.iter().find(|check| check["question"] == question);
        check.unwrap_or_else(|| panic!("{question} in {report:#}"))["state"].clone()
    };
    for question in ["digest", "fsck", "tree", "fits"] {
        assert_eq!(state(question), "passed", "{question}");
    }
    assert_eq!(state("boot"), "failed");
    let lacks = "this host lacks qemu-system-x86_64 (to boot images)";
    let setup = "hint: run again with --setup to install what is missing";
    assert!(said(&output).contains(lacks) && said(&output).contains(setup), "{}", said(&output));
    let words = ["boot", "made", "--ssh", "--", "true"];
    let output = xtask_in(&workshop, &words[..2], &words[2..]).env("PATH", &programs).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(lacks) && said(&output).contains(setup), "{}", said(&output));
    // sudo is no word for root.
    assert_eq!(said(&output).contains("hint: apt-get install"), is_root(), "{}", said(&output));
    for verb in ["image", "pack", "export", "check", "boot", "report", "test"] {
        let help = succeed(xtask().args([verb, "--help"]));
        assert!(String::from_utf8_lossy(&help.stdout).contains("--setup"), "{verb}");
    }
}

/// The command on the workshop's specs, with words behind its options.
fn xtask_in(workshop: &Workshop, words: &[&str], rest: &[&str]) -> std::process::Command {
    let mut command = workshop.xtask(words);
    command.args(rest);
    command
}

#[test]
fn what_cannot_be_started_is_told_apart() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = format!("base = {{ tar = \"{}\" }}\n", workshop.path("base.tar").display());
    workshop.write_spec("ground", &base);
    workshop.write_spec("upon", "base = { image = \"ground\" }\nfilesystem = \"ext4\"\n");
    let refused = |verb: &str, name: &str, rest: &[&str]| {
        let output = xtask_in(&workshop, &[verb, name], rest).output().expect("xtask runs");
        assert_eq!(output.status.code(), Some(2), "{verb} {name}: {}", said(&output));
        said(&output)
    };
    let ssh = ["--ssh", "--", "true"];
    // `image ground` makes no image: to name it would lead in a circle.
    for (verb, rest) in [("boot", &ssh[..]), ("check", &[])] {
        let why = refused(verb, "ground", rest);
        assert!(why.contains("ground is a base of other images and has no image of its own"), "{why}");
        assert!(why.contains("hint: name an image that is based on it: upon"), "{why}");
    }
    assert!(refused("boot", "upon", &ssh).contains("hint: cargo xtask image upon"));
    let other = if cfg!(target_arch = "x86_64") { "linux/arm64" } else { "linux/amd64" };
    workshop.write_spec("foreign", &format!("{base}filesystem = \"ext4\"\nplatforms = [\"{other}\"]\n"));
    // Without a step nothing of it runs here.
    succeed(&mut workshop.xtask(&["image", "foreign"]));
    let why = refused("boot", "foreign", &ssh);
    assert!(why.contains(&format!("foreign is built for {other}, and only images for this machine's own")), "{why}");
}

#[test]
fn doctor_says_of_each_check_what_it_needs_alone() {
    if !have(&["e2fsck", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let programs = programs(folder.path(), &["unsquashfs"]);
    fs::create_dir(folder.path().join("images")).expect("a folder");
    let mut doctor = xtask();
    doctor.args(["doctor", "--json", "--images"]).arg(folder.path().join("images"));
    let output = doctor.env("PATH", &programs).env("XDG_CACHE_HOME", folder.path()).output().expect("xtask runs");
    let findings = json(&output)["findings"].clone();
    let can = |what: &str| {
        let row = findings.as_array().expect("rows").iter().find(|row| row["what"] == what);
        row.unwrap_or_else(|| panic!("{what} in {findings:#}"))["can"].clone()
    };
    assert_eq!(can("check of ext4"), true);
    assert_eq!(can("check of squashfs"), false);
}

#[test]
fn no_process_of_podman_is_left_behind() {
    if !is_root() || !have(&["busybox", "podman", "newuidmap", "unshare", "setpriv"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("any", "");
    let words = ["image", "any", "--dry-run", "--engine", "podman"];
    let mut command = workshop.xtask_as_user(&words, 65536);
    // Where podman notes the process, of which all tests would otherwise have one.
    let runtime = workshop.path("home/run");
    fs::create_dir(&runtime).expect("a folder");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o700)).expect("a mode");
    let user = fs::metadata(workshop.path("home")).expect("the user's home").uid();
    chown(&runtime, Some(user), Some(user)).expect("a folder of the user's");
    let output = succeed(command.env("XDG_RUNTIME_DIR", &runtime));
    let engine = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(engine.contains("engine podman, --engine asks for it"), "{engine}");
    // Of this run: by its home, since other tests have the same user.
    let home = format!("HOME={}", workshop.path("home").display());
    let is_of_the_run = |process: &fs::DirEntry| {
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == home.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("processes").flatten().filter(is_of_the_run);
    let left: Vec<String> =
        processes.filter_map(|process| fs::read_to_string(process.path().join("comm")).ok()).collect();
    assert!(left.is_empty(), "{left:?}");
}
