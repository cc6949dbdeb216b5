//! The verbs around a build: `new`, `doctor`, `clean`, `completions`, `image --all`, `--keep` and `--shell`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use snug_tests::{Workshop, have, succeed, workspace, xtask};

/// The object that a verb printed: `schema` first, and kebab-case keys.
fn json(output: &std::process::Output) -> Value {
    assert!(output.stdout.starts_with(b"{\n  \"schema\": 1,\n"), "{output:?}");
    let about = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    assert_kebab_case(&about);
    about
}

fn assert_kebab_case(value: &Value) {
    match value {
        // A manifest is a file of its own schema, and has the filesystem's options as the spec's model names them.
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| !["manifest", "filesystem"].contains(&key.as_str()))
            .for_each(|(key, value)| {
                assert!(!key.contains(|c: char| c == '_' || c.is_ascii_uppercase()), "{key}");
                assert_kebab_case(value);
            }),
        Value::Array(values) => values.iter().for_each(assert_kebab_case),
        _ => {}
    }
}

#[test]
fn all_builds_what_can_be_built_here_and_names_why_for_the_rest() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("fine", "");
    let other = if cfg!(target_arch = "x86_64") { "linux/arm64" } else { "linux/amd64" };
    // A type that nothing here writes: no program of that name is on this PATH.
    workshop.write_spec(
        "packed",
        &format!("base = {{ tar = \"{}\" }}\nfilesystem = \"squashfs\"\n", workshop.path("base.tar").display()),
    );
    let everything = |workshop: &Workshop| {
        let mut command = workshop.xtask(&["image", "--all", "--json"]);
        // Programs to build with, and none that writes squashfs.
        let programs = workshop.path("programs");
        fs::create_dir_all(&programs).expect("a folder");
        for name in ["newuidmap", "newgidmap", "cargo", "rustc", "rustup"] {
            let found = Command::new("which").arg(name).output().expect("which runs");
            let found = String::from_utf8(found.stdout).expect("a path");
            if !found.is_empty() {
                let _ = std::os::unix::fs::symlink(found.trim_end(), programs.join(name));
            }
        }
        command.env("PATH", programs);
        command
    };
    let _ = other;
    let output = everything(&workshop).output().expect("xtask runs");
    let rows = json(&output);
    let state = |name: &str| {
        let row = rows["images"].as_array().expect("rows").iter().find(|row| row["name"] == name).expect("the image");
        row["state"].as_str().expect("a state").to_owned()
    };
    assert_eq!(state("fine"), "built");
    // Where the administrator's folders hold the program, it is found without PATH.
    if !["/usr/sbin/tar2sqfs", "/usr/local/sbin/tar2sqfs", "/sbin/tar2sqfs"]
        .iter()
        .any(|path| fs::metadata(path).is_ok())
    {
        assert_eq!(state("packed"), "cannot-build", "{rows:#}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot build packed on this host") && said.contains("squashfs-tools-ng"), "{said}");
        assert_eq!(output.status.code(), Some(0), "what is none of this host's business fails nothing: {said}");
    }

    // What should build and does not is a failure, and the others are built all the same.
    workshop.spec("wrong", "run = [\"false\"]");
    let output = everything(&workshop).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(1));
    let rows = json(&output);
    let states: Vec<&str> = rows["images"]
        .as_array()
        .expect("rows")
        .iter()
        .filter(|row| row["name"] != "packed")
        .filter_map(|row| row["state"].as_str())
        .collect();
    assert_eq!(states, ["up-to-date", "failed"]);
}

#[test]
fn a_kept_tree_outlives_the_next_run_and_goes_with_clean() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("failing", "run = [\"echo found > /marker; false\"]");
    workshop.spec("other", "");
    let output = workshop.xtask(&["image", "failing", "--keep"]).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(1));
    let kept = workshop.path("cache/snug/kept/failing/root");
    assert!(String::from_utf8_lossy(&output.stderr).contains(&kept.display().to_string()));
    assert!(workshop.build("other").status.success());
    assert!(fs::symlink_metadata(kept.join("marker")).is_ok());

    let clean = |words: &[&str]| {
        let mut command = xtask();
        command.arg("clean").args(words).arg("--json").arg("--output").arg(workshop.path("out"));
        json(&succeed(command.env("XDG_CACHE_HOME", workshop.path("cache"))))
    };
    let state = |about: &Value, cache: &str| {
        let row =
            about["caches"].as_array().expect("rows").iter().find(|row| row["cache"] == cache).expect("the cache");
        (row["state"].as_str().expect("a state").to_owned(), row["freed-bytes"].as_u64().expect("bytes") > 0)
    };
    let rows = clean(&["--dry-run"]);
    assert_eq!(state(&rows, "kept"), ("would-be-removed".into(), false));
    assert_eq!(state(&rows, "trees"), ("kept".into(), false));
    assert!(kept.exists());
    let rows = clean(&[]);
    assert_eq!(state(&rows, "kept"), ("removed".into(), true));
    assert!(!kept.exists() && workshop.image("other").exists());

    // What a running build uses stays.
    workshop.spec("slow", "run = [\"sleep 1000\"]");
    let mut build = workshop.xtask(&["image", "slow"]);
    let mut build = build.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("xtask runs");
    while workshop.names("cache/snug/work").is_empty() {
        assert!(build.try_wait().expect("a child").is_none(), "the build ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let download = workshop.path("cache/snug/downloads/store/sha256/00");
    fs::create_dir_all(download.parent().expect("a folder")).expect("a store");
    fs::write(&download, "of another image").expect("a download");
    let rows = clean(&["--all"]);
    assert_eq!(state(&rows, "downloads").0, "in-use");
    assert!(download.exists());
    assert!(!workshop.names("cache/snug/work").is_empty(), "the work of a running build is gone");
    build.kill().expect("a child");
    build.wait().expect("a child");

    clean(&["--all"]);
    assert!(!download.exists());
    assert_eq!(workshop.names("cache/snug/work"), [""; 0]);
    assert_eq!(workshop.names("cache/snug/trees"), [""; 0]);
    assert_eq!(workshop.names("out"), [""; 0]);
}

/// `script` of util-linux gives the command a terminal and types what it reads.
#[test]
fn a_shell_opens_in_the_failed_tree_on_a_terminal_and_nowhere_else() {
    if !have(&["busybox", "newuidmap", "script"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("failing", "env = { GREETING = \"hello\" }\nrun = [\"echo found > /marker; false\"]");
    let output = workshop.xtask(&["image", "failing", "--shell"]).stdin(Stdio::null()).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--shell needs a terminal"));

    let command = workshop.xtask(&["image", "failing", "--shell"]);
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]).current_dir(workspace());
    script.env("XDG_CACHE_HOME", workshop.path("cache")).env("SHELL", "/bin/sh").env("TERM", "dumb");
    let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script runs");
    // Typed before the shell is there: the terminal keeps it.
    let typed = "echo said: $(cat /marker) $GREETING $((40 + 2)); ls /home; exit\n";
    std::io::Write::write_all(script.stdin.as_mut().expect("its input"), typed.as_bytes()).expect("typing");
    let output = script.wait_with_output().expect("a child");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("said: found hello 42"), "{said}");
    assert!(said.contains("failed with exit status 1"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{said}");
}

#[test]
fn a_new_spec_is_sound_and_never_written_over_another() {
    let workshop = tempfile::tempdir().expect("a folder");
    let images = workshop.path().join("images");
    succeed(Command::new("cp").arg("-R").arg(workspace().join("images")).arg(&images));
    let new = |words: &[&str]| {
        let mut command = xtask();
        command.arg("new").args(words).arg("--images").arg(&images);
        command.output().expect("xtask runs")
    };
    let plan = |name: &str| {
        let mut command = xtask();
        command.args(["image", name, "--dry-run", "--json", "--images"]).arg(&images);
        json(&succeed(&mut command))
    };
    for words in [&["fresh"][..], &["copy", "--from", "openclaw"], &["on-node", "--from", "node-24"]] {
        let output = new(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(images.join(words[0]).join("image.toml").is_file());
    }
    assert_eq!(plan("fresh")["images"][0]["trees"][0]["base"], "Debian trixie, minbase");
    // A copy has the files of its own, and the same steps.
    assert!(images.join("copy/files/device-approver").is_file());
    let steps = |name: &str| plan(name)["images"][0]["trees"][1]["steps"].as_array().expect("steps").len();
    assert_eq!(steps("copy"), steps("openclaw"));
    assert!(fs::read_to_string(images.join("copy/image.toml")).expect("a spec").contains("hostname = \"copy\""));
    // A base is built on.
    assert_eq!(plan("on-node")["images"][0]["trees"][1]["base"], "image node-24");

    let before = fs::read_to_string(images.join("openclaw/image.toml")).expect("a spec");
    for (words, says) in [
        (&["openclaw"][..], "already exists"),
        (&["Upper"], "is not a name for an image"),
        (&["../escape"], "is not a name for an image"),
        (&["shared"], "folder of files that images share"),
        (&["x", "--from", "openclow"], "did you mean `openclaw`?"),
    ] {
        let output = new(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(said.contains(says), "{words:?}: {said}");
    }
    assert_eq!(fs::read_to_string(images.join("openclaw/image.toml")).expect("a spec"), before);
}

#[test]
fn doctor_proves_what_the_host_can_do_and_names_what_mends_the_rest() {
    let workshop = tempfile::tempdir().expect("a folder");
    let mut command = xtask();
    command.args(["doctor", "--json"]).env("XDG_CACHE_HOME", workshop.path());
    let findings = json(&command.output().expect("xtask runs"));
    let finding = |what: &str| {
        let rows = findings["findings"].as_array().expect("findings");
        rows.iter().find(|row| row["what"] == what).unwrap_or_else(|| panic!("{what} in {findings:#}")).clone()
    };
    assert_eq!(finding("filesystem ext4")["can"], true);
    if have(&["tar2sqfs"]) {
        assert!(finding("filesystem squashfs")["detail"].as_str().expect("words").contains("tar2sqfs"));
    }
    // A host without anything: the same tool on an empty PATH.
    let mut bare = xtask();
    bare.args(["doctor", "--json"]).env("XDG_CACHE_HOME", workshop.path());
    let programs = workshop.path().join("programs");
    fs::create_dir(&programs).expect("a folder");
    let cargo = Command::new("which").arg("cargo").output().expect("which runs");
    let cargo = String::from_utf8(cargo.stdout).expect("a path");
    std::os::unix::fs::symlink(cargo.trim_end(), programs.join("cargo")).expect("a link");
    let output = bare.env("PATH", &programs).output().expect("xtask runs");
    let findings = json(&output);
    let base = findings["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .find(|row| row["what"] == "base debian")
        .expect("a row")
        .clone();
    if !["/usr/local/sbin/mmdebstrap", "/usr/sbin/mmdebstrap"].iter().any(|path| fs::metadata(path).is_ok()) {
        assert_eq!(base["can"], false, "{base:#}");
        assert!(
            base["fix"].as_str().expect("a command").contains("apt-get install --no-install-recommends mmdebstrap")
        );
        // An image of the workspace cannot be built.
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn bash_and_fish_complete_the_names_of_images() {
    let folder = tempfile::tempdir().expect("a folder");
    // The scripts ask the tool where cargo builds it.
    let checkout = folder.path().join("checkout");
    fs::create_dir_all(checkout.join("target/xtask")).expect("a folder");
    fs::create_dir_all(checkout.join(".cargo")).expect("a folder");
    fs::create_dir_all(checkout.join("images/one")).expect("a folder");
    fs::create_dir_all(checkout.join("below")).expect("a folder");
    fs::write(checkout.join(".cargo/config.toml"), "").expect("a file");
    fs::write(checkout.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\n").expect("a file");
    fs::write(checkout.join("images/one/image.toml"), "base = { debian = \"trixie\" }\n").expect("a file");
    std::os::unix::fs::symlink(
        fs::canonicalize(xtask().get_program()).expect("the tool"),
        checkout.join("target/xtask/xtask"),
    )
    .expect("a link");
    let script = |shell: &str| {
        let path = folder.path().join(format!("script.{shell}"));
        fs::write(&path, succeed(xtask().args(["completions", shell])).stdout).expect("a script");
        path
    };
    let bash = r#"
        _before() { COMPREPLY=(before); }
        complete -F _before cargo
        . "$1"
        . "$1"
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _cargo_xtask cargo; echo "${COMPREPLY[*]}"; }
        ask cargo xtask ima
        ask cargo xtask image o
        ask cargo xtask image --filesystem sq
        ask cargo xtask image --platform = linux/ar
        ask cargo xtask clean t
        ask cargo bui
    "#;
    let mut command = Command::new("bash");
    command.args(["--norc", "-c", bash, "bash"]).arg(script("bash")).current_dir(checkout.join("below"));
    let said = succeed(command.env_remove("CARGO_TARGET_DIR"));
    assert_eq!(
        String::from_utf8_lossy(&said.stdout),
        "image\none\nsquashfs squashfs+verity\nlinux/arm64\ntools trees\nbefore\n"
    );

    if !have(&["fish", "zsh"]) {
        return;
    }
    let fish = "source $argv[1]; complete -C 'cargo xtask image o'; complete -C 'cargo xtask boot x --accel k'; \
                complete -C 'cargo xtask image --platform=linux/ar'";
    let mut command = Command::new("fish");
    command.args(["--no-config", "-c", fish]).arg(script("fish")).current_dir(checkout.join("below"));
    // rustup's cargo finds no toolchain in another home.
    command.env_remove("CARGO_TARGET_DIR").env("HOME", folder.path()).env("CARGO", env!("CARGO"));
    let said = succeed(&mut command);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "one\nkvm\n--platform=linux/arm64\n");

    // zsh completes only at a prompt: its functions are replaced by ones that print what they are given.
    let zsh = r#"
        typeset -A _comps; _comps=(cargo _before)
        compdef() { }
        _before() { echo before }
        _files() { echo files }
        _describe() { local name=$2; echo "${(P)name[@]}" }
        . $1
        . $1
        ask() { words=("$@"); CURRENT=$#; _cargo_xtask }
        ask cargo xtask image o
        ask cargo xtask image --output ''
        ask cargo xtask bench --only snug-p
        ask cargo bui
    "#;
    let mut command = Command::new("zsh");
    command.args(["-f", "-c", zsh, "zsh"]).arg(script("zsh")).current_dir(checkout.join("below"));
    let said = succeed(command.env_remove("CARGO_TARGET_DIR"));
    assert_eq!(String::from_utf8_lossy(&said.stdout), "one\nfiles\nsnug-pipe\nbefore\n");
}
