//! Layers: a build runs only the steps that changed, and what comes out is what a build of everything gives.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use snug_tests::{Workshop, have, succeed};

/// Times are clamped to this, so that images do not depend on when they were built.
const EPOCH: &str = "1700000000";

/// Builds `name` in the workshop with the steps `run`, and returns what was said.
#[track_caller]
fn build(workshop: &Workshop, run: &[&str], cache: &str) -> String {
    build_with(workshop, &format!("run = {run:?}"), cache, true)
}

#[track_caller]
fn build_with(workshop: &Workshop, rest: &str, cache: &str, succeeds: bool) -> String {
    workshop.spec("layered", rest);
    let mut command = workshop.xtask(&["image", "layered"]);
    command.env("SOURCE_DATE_EPOCH", EPOCH).env("XDG_CACHE_HOME", workshop.path(cache));
    let output = command.output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), succeeds, "{said}");
    said
}

fn layers(workshop: &Workshop, cache: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(workshop.path(cache).join("snug/layers")).into_iter().flatten();
    let tars = entries.map(|entry| entry.expect("an entry").path());
    tars.filter(|path| path.extension().is_some_and(|extension| extension == "tar")).collect()
}

/// Which of the steps, told by a word of each, ran and which were taken from the cache.
fn fate(said: &str, words: &[&str]) -> Vec<&'static str> {
    let of = |word: &&str| {
        let line = said.lines().rfind(|line| line.starts_with('✓') && line.contains(": run: ") && line.contains(word));
        match line {
            Some(line) if line.ends_with(": cached") => "cached",
            Some(_) => "ran",
            None => "unseen",
        }
    };
    words.iter().map(of).collect()
}

#[test]
fn only_what_changed_runs_and_gives_what_everything_gives() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let first = "echo first > /first; mkdir -p /d/e; echo x > /d/e/x; ln /first /again";
    let second = "rm /d/e/x; rmdir /d/e; echo file > /d/e; echo more >> /again; rm -r /usr";
    let said = build(&workshop, &[first, second, "echo third > /third"], "cache");
    assert_eq!(fate(&said, &["mkdir -p", "rmdir", "third"]), ["ran", "ran", "ran"], "{said}");
    let said = build(&workshop, &[first, second, "echo 3rd > /third; mkdir /usr; ln -s first /d/link"], "cache");
    assert_eq!(fate(&said, &["mkdir -p", "rmdir", "3rd"]), ["cached", "cached", "ran"], "{said}");
    let warm = fs::read(workshop.image("layered")).expect("an image");
    fs::remove_dir_all(workshop.path("out")).expect("the image goes");
    let said = build(&workshop, &[first, second, "echo 3rd > /third; mkdir /usr; ln -s first /d/link"], "another");
    assert_eq!(fate(&said, &["mkdir -p", "rmdir", "3rd"]), ["ran", "ran", "ran"], "{said}");
    assert!(warm == fs::read(workshop.image("layered")).expect("an image"), "cold and warm differ");
    // A step between others: what comes after it runs again.
    let said = build(&workshop, &[first, "echo between > /between", second], "cache");
    assert_eq!(fate(&said, &["mkdir -p", "between", "rmdir"]), ["cached", "ran", "ran"], "{said}");
    // What only follows the steps runs none.
    let said = build_with(&workshop, &format!("run = [{first:?}]\nexclude = [\"/again\"]"), "cache", true);
    assert_eq!(fate(&said, &["mkdir -p"]), ["cached"], "{said}");
}

/// Of one fingerprint, a base may be another: what archives have moves on.
#[test]
fn what_stands_on_a_base_that_was_made_anew_is_made_anew() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.write_spec(
        "base",
        &format!(
            "base = {{ tar = \"{}\" }}\nrun = [\"busybox head -c 8 /dev/urandom | busybox od > /made\"]\n",
            workshop.path("base.tar").display()
        ),
    );
    let spec = |last: &str| {
        let steps = format!("run = [\"cp /made /seen\", \"{last}\"]");
        workshop.write_spec("child", &format!("base = {{ image = \"base\" }}\nfilesystem = \"ext4\"\n{steps}\n"));
    };
    let build = |words: &[&str]| {
        let output = workshop.xtask(words).output().expect("xtask runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };
    spec("true");
    build(&["image", "child"]);
    build(&["image", "base", "--refresh"]);
    spec("echo changed > /changed");
    let said = build(&["image", "child"]);
    assert_eq!(fate(&said, &["cp /made", "changed"]), ["ran", "ran"], "{said}");
    spec("echo changed again > /changed");
    let said = build(&["image", "child"]);
    assert_eq!(fate(&said, &["cp /made", "again"]), ["cached", "ran"], "{said}");
}

#[test]
fn what_succeeded_before_a_failure_does_not_run_again() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let said = build_with(&workshop, "run = [\"echo one > /one\", \"false\"]", "cache", false);
    assert!(said.contains("run: false"), "{said}");
    let said = build(&workshop, &["echo one > /one", "true"], "cache");
    assert_eq!(fate(&said, &["one", "true"]), ["cached", "ran"], "{said}");
}

/// What a step leaves outside the tree reaches no later one, whether it ran before it or was taken from the cache.
#[test]
fn every_step_begins_alike() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let first = "echo seen | busybox tee /tmp/x /run/x /dev/x /dev/shm/x /run/lock/x; echo 10.0.0.1 far >> /etc/hosts";
    let second = "ls /tmp /run /run/lock /dev /dev/shm > /found; cat /etc/hosts >> /found; busybox stat -c %a /tmp /run/lock >> /found";
    build(&workshop, &[first, second], "cache");
    let cold = fs::read(workshop.image("layered")).expect("an image");
    build(&workshop, &[first, "true"], "cache");
    fs::remove_dir_all(workshop.path("cache/snug/trees")).expect("the trees go");
    let said = build(&workshop, &[first, &format!(": again; {second}")], "cache");
    assert_eq!(fate(&said, &["tee", "again"]), ["cached", "ran"], "{said}");
    assert!(cold == fs::read(workshop.image("layered")).expect("an image"), "cold and warm differ");
    let found = succeed(Command::new("debugfs").args(["-R", "cat /found"]).arg(workshop.image("layered")));
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert!(!found.lines().any(|line| line == "x") && !found.contains("far"), "{found}");
}

#[test]
fn a_name_that_means_something_else_in_layers_is_told_by_its_place() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let said = build_with(&workshop, "run = [\"true\", \"echo > /.wh.x\"]", "cache", false);
    assert!(said.contains("/.wh.x has a name that means something else") && said.contains("image.toml:3"), "{said}");
}

#[test]
fn a_damaged_layer_is_made_again() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    build(&workshop, &["echo one > /one", "echo two > /two"], "cache");
    let good = fs::read(workshop.image("layered")).expect("an image");
    assert_eq!(layers(&workshop, "cache").len(), 2);
    for content in [b"one\n", b"two\n"] {
        // Those of the turn before, too, which stand on another one.
        for layer in layers(&workshop, "cache") {
            let mut bytes = fs::read(&layer).expect("a layer");
            if let Some(at) = bytes.windows(4).position(|window| window == content) {
                bytes[at] ^= 1;
                fs::write(&layer, bytes).expect("a layer");
            }
        }
        fs::remove_dir_all(workshop.path("cache/snug/trees")).expect("the trees go");
        fs::remove_dir_all(workshop.path("out")).expect("the image goes");
        let said = build(&workshop, &["echo one > /one", "echo two > /two"], "cache");
        assert!(said.contains("is damaged; it is made again"), "{said}");
        assert!(fs::read(workshop.image("layered")).expect("an image") == good);
    }
}

#[test]
fn a_layer_with_a_secret_is_not_kept() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    fs::write(workshop.path("key"), "hen sesame opens").expect("a secret");
    let secret = format!("[[secret]]\nid = \"key\"\nfrom = {{ file = \"{}\" }}\n", workshop.path("key").display());
    let rest = format!("run = [\"true\", \"cat /run/secrets/key > /key\", \"rm /key; echo done > /done\"]\n{secret}");
    let said = build_with(&workshop, &rest, "cache", true);
    assert_eq!(fate(&said, &["true", "cat", "done"]), ["ran", "ran", "ran"], "{said}");
    let kept = layers(&workshop, "cache");
    assert_eq!(kept.len(), 1, "{kept:?}");
    fs::remove_dir_all(workshop.path("cache/snug/trees")).expect("the trees go");
    fs::remove_dir_all(workshop.path("out")).expect("the image goes");
    let said = build_with(&workshop, &rest, "cache", true);
    assert_eq!(fate(&said, &["true", "cat", "done"]), ["cached", "ran", "ran"], "{said}");
}
