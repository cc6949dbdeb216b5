//! What is said to people: how much, once, with the place, and what to do.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;
use snug_tests::{CLOSED, Workshop, have, is_root, succeed, xtask};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_registry_out_of_reach_is_named_once_and_fails_no_image_of_all() {
    if !have(&["busybox", "newuidmap", "skopeo"]) {
        return;
    }
    let workshop = Workshop::new();
    for name in ["far", "farther"] {
        let text = format!("base = {{ oci = \"{CLOSED}/a/b:1\" }}\nfilesystem = \"ext4\"\n");
        workshop.write_spec(name, &text);
    }
    workshop.spec("here", "");
    let output = workshop.xtask(&["image", "--all", "--json"]).output().expect("xtask runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("cannot be reached").count(), 1, "{said}");
    assert_eq!(said.matches("hint: ").count(), 1, "{said}");
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let states: Vec<_> = about["images"].as_array().expect("rows").iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["cannot-build", "cannot-build", "built"]);
    assert_eq!(about["images"][1]["error"].as_str().expect("why").matches("cannot be reached").count(), 1);
    let dry = workshop.xtask(&["image", "--all", "--dry-run"]).output().expect("xtask runs");
    assert_eq!((dry.status.code(), stderr(&dry).matches("cannot be reached").count()), (Some(0), 1));
    // An image that was named has to be built, and `--setup` says that all of them have to.
    let named = workshop.xtask(&["image", "far", "here"]).output().expect("xtask runs");
    assert_eq!((named.status.code(), stderr(&named).matches("cannot be reached").count()), (Some(1), 1));
}

/// What no host could build is another matter than what this one cannot.
#[test]
fn what_is_wrong_with_an_image_or_its_place_fails_all() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("here", "");
    let all = || {
        let output = workshop.xtask(&["image", "--all", "--json"]).output().expect("xtask runs");
        let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let states =
            about["images"].as_array().expect("rows").iter().map(|row| row["state"].clone()).collect::<Vec<_>>();
        (output.status.code(), states, stderr(&output))
    };
    // A base as `docker save` writes it.
    let script = "mkdir save; touch save/manifest.json save/oci-layout save/index.json; tar -cf save.tar -C save .";
    succeed(Command::new("sh").args(["-ec", script]).current_dir(workshop.path("")));
    let saved = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n", workshop.path("save.tar").display());
    workshop.write_spec("saved", &saved);
    let (code, states, said) = all();
    assert_eq!((code, &states[1]), (Some(1), &"failed".into()), "{said}");
    assert!(said.contains("as `docker save` writes it") && !said.contains("on this host"), "{said}");
    // A filesystem that the guest's kernel does not know.
    workshop.write_spec("saved", "base = { debian = \"trixie\" }\nfilesystem = \"erofs\"\n[boot]\nkernel = \"4.19\"\n");
    let (code, states, said) = all();
    assert_eq!((code, &states[1]), (Some(1), &"failed".into()), "{said}");
    fs::remove_dir_all(workshop.path("images/saved")).expect("the image goes");
    // A folder, and a pipe, where the image belongs.
    for place in ["mkdir", "mkfifo"] {
        let image = workshop.image("here");
        succeed(Command::new("sh").args(["-ec", "rm -rf -- \"$2\"; \"$1\" -- \"$2\"", "sh", place]).arg(&image));
        let (code, states, said) = all();
        assert_eq!((code, &states[0]), (Some(1), &"failed".into()), "{place}: {said}");
    }
}

#[test]
fn a_missing_base_is_shown_at_its_place_in_the_spec() {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = folder.path().join("images/x/image.toml");
    fs::create_dir_all(spec.parent().expect("a folder")).expect("a folder");
    fs::write(&spec, "base = { tar = \"no-such.tar\" }\nfilesystem = \"ext4\"\n").expect("a spec");
    let build = |base: &str| {
        fs::write(&spec, format!("base = {base}\nfilesystem = \"ext4\"\n")).expect("a spec");
        let mut command = xtask();
        command.args(["image", "x", "--images"]).arg(folder.path().join("images"));
        command.arg("--output").arg(folder.path().join("out")).env("XDG_CACHE_HOME", folder.path().join("cache"));
        command.output().expect("xtask runs")
    };
    let output = build("{ tar = \"no-such.tar\" }");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("image.toml:1:16\n  |\n1 | base = { tar = \"no-such.tar\" }\n  |                ^^^"),
        "{said}"
    );
    fs::write(folder.path().join("images/x/a.tar"), "").expect("a file");
    let pinned = build(&format!("{{ tar = \"a.tar\", sha256 = \"{}\" }}", "0".repeat(64)));
    assert!(stderr(&pinned).contains("image.toml:1:16\n"), "{}", stderr(&pinned));
}

#[test]
fn little_or_much_is_said_on_demand() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "run = [\"echo printed\"]\nexclude = [\"/no/such\"]");
    workshop.spec("failing", "run = [\"echo printed; false\"]");
    let said = |words: &[&str]| stderr(&workshop.xtask(words).output().expect("xtask runs"));
    let quiet = said(&["image", "small", "-q"]);
    assert!(quiet.starts_with("warning: ") && quiet.lines().count() == 1, "{quiet}");
    assert!(said(&["image", "failing", "--quiet"]).starts_with("error: run: echo printed; false failed"));
    let normal = said(&["image", "small", "--refresh"]);
    assert!(normal.contains("✓ small: run: echo printed") && !normal.contains("| printed"), "{normal}");
    let verbose = said(&["image", "small", "--refresh", "-v"]);
    assert!(verbose.contains("small: $ /bin/sh -e -c 'echo printed'\nsmall: | printed\n"), "{verbose}");
    assert!(verbose.contains("e2fsck -f -n "), "{verbose}");
    // One line is no lines.
    assert!(said(&["image", "failing"]).contains("  its last line:\n  | printed\n"));
}

#[test]
fn results_go_with_those_of_other_platforms_and_a_dry_run_says_how_much() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "platforms = [\"linux/amd64\"]");
    succeed(&mut workshop.xtask(&["image", "small"]));
    let folder = workshop.path("out/small");
    assert!(folder.join("linux-amd64/rootfs.ext4").exists());
    succeed(Command::new("mkfifo").arg(folder.join("pipe")));
    let clean = |words: &[&str]| {
        let mut command = xtask();
        command.arg("clean").args(words).arg("--output").arg(workshop.path("out"));
        succeed(command.env("XDG_CACHE_HOME", workshop.path("cache")))
    };
    let about: Value = serde_json::from_slice(&clean(&["results", "--dry-run", "--json"]).stdout).expect("JSON");
    assert!(about["would-free-bytes"].as_u64().expect("bytes") > 1 << 20 && about["freed-bytes"] == 0, "{about}");
    let dry = stderr(&clean(&["results", "--dry-run"]));
    assert!(dry.starts_with("would free ") && !dry.starts_with("would free 0 B"), "{dry}");
    // A cache that nothing has filled is a cache.
    clean(&["results", "kernels"]);
    assert_eq!(workshop.names("out"), [""; 0]);
}

#[test]
fn a_cache_that_may_run_no_program_is_named() {
    if !have(&["busybox", "newuidmap"]) || !is_root() {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("small", "run = [\"true\"]");
    let cache = workshop.path("cache");
    fs::create_dir(&cache).expect("a folder");
    // The mount is of a namespace that ends with the command.
    let script = "mount -t tmpfs -o noexec none \"$XDG_CACHE_HOME\" && exec \"$@\"";
    let build = workshop.xtask(&["image", "small"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(build.get_program());
    command.args(build.get_args()).env("XDG_CACHE_HOME", &cache).current_dir(snug_tests::workspace());
    let output = command.output().expect("unshare runs");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let hint = format!("mount -o remount,exec {}", cache.display());
    assert!(said.contains("is mounted noexec\nhint: ") && said.contains(&hint), "{said}");
}

#[test]
fn the_help_is_broken_between_words_at_any_width() {
    let help = |columns: usize| {
        let mut command = xtask();
        let output = succeed(command.args(["image", "--help"]).env("COLUMNS", columns.to_string()));
        String::from_utf8(output.stdout).expect("text")
    };
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let wide = help(100);
    for columns in [50, 60, 80, 100, 200] {
        let text = help(columns);
        assert_eq!(words(&text), words(&wide), "{columns}");
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or_default();
        assert!(longest <= columns.min(100), "{columns}: {longest}\n{text}");
    }
}
