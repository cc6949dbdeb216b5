//! What is built again, and what is not: every ingredient of an image counts, and downloads are not trusted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::Value;
use snug_tests::{Workshop, have, succeed};

/// The state that `list` gives, with its reason.
fn listed(workshop: &Workshop, name: &str) -> (String, String) {
    let output = succeed(&mut workshop.xtask(&["list", "--json"]));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let row = about["images"].as_array().expect("rows").iter().find(|row| row["name"] == name).expect("the image");
    let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    (word("state"), word("reason"))
}

/// Builds and answers the state that the build gives.
#[track_caller]
fn built(workshop: &Workshop, options: &[&str]) -> String {
    let output = succeed(workshop.xtask(&["image", "made", "--json"]).args(options));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    about["images"][0]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn every_ingredient_of_an_image_makes_it_stale_and_nothing_else_does() {
    if !have(&["busybox", "newuidmap", "tar2sqfs"]) {
        return;
    }
    let workshop = Workshop::new();
    let spec = |rest: &str| workshop.spec("made", &format!("file = [{{ from = \"tool\", to = \"/tool\" }}]\n{rest}"));
    spec("");
    let tool = workshop.path("images/made/tool");
    fs::write(&tool, "one").expect("a file");
    assert_eq!(listed(&workshop, "made").0, "never-built");
    assert_eq!(built(&workshop, &[]), "built");
    let settled = |why: &str| {
        assert_eq!(built(&workshop, &[]), "up-to-date", "{why}");
        assert_eq!(listed(&workshop, "made"), ("up-to-date".into(), String::new()), "{why}");
    };
    settled("nothing changed");
    let stale = |because: &str| {
        assert_eq!(listed(&workshop, "made"), ("stale".into(), because.into()));
        assert_eq!(built(&workshop, &[]), "built", "{because}");
        settled(because);
    };

    // Bytes, then the one mode bit that is taken from a checkout.
    fs::write(&tool, "two").expect("a file");
    stale("the files changed");
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).expect("a mode");
    stale("the files changed");
    // A time is none: every clone has others.
    succeed(Command::new("touch").arg(&tool));
    settled("a time changed");

    spec("run = [\"echo > /more\"]");
    stale("the spec changed");
    spec("description = \"words\"\nrun = [\"echo > /more\"]");
    assert_ne!(listed(&workshop, "made").0, "never-built");
    built(&workshop, &[]);
    spec("headroom = 2.0\nrun = [\"echo > /more\"]");
    assert_eq!(built(&workshop, &[]), "built");
    settled("sizing");

    let base = workshop.path("base.tar");
    succeed(
        Command::new("bash")
            .args(["-ec", "echo x > root/more; tar -cf base.tar --owner 0 --group 0 -C root ."])
            .current_dir(workshop.path("")),
    );
    assert!(base.is_file());
    stale("the base changed");

    // An image that somebody else wrote or cut is none of ours.
    let image = workshop.image("made");
    fs::OpenOptions::new().write(true).open(&image).and_then(|file| file.set_len(4096)).expect("a shorter image");
    stale("the image file was changed");
    fs::remove_file(&image).expect("the image");
    stale("the image file is gone");

    assert_eq!(built(&workshop, &["--filesystem", "squashfs"]), "built");
    assert_eq!(built(&workshop, &["--filesystem", "squashfs"]), "up-to-date");
    assert_eq!(built(&workshop, &["--filesystem", "squashfs", "--refresh"]), "built");
}

#[test]
fn refresh_makes_bases_anew_too_and_each_once() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let count = workshop.path("count");
    fs::write(&count, "").expect("a file");
    workshop.write_spec(
        "base",
        &format!("base = {{ tar = \"{}\" }}\nrun = [\"true\"]\n", workshop.path("base.tar").display()),
    );
    for name in ["one", "two"] {
        workshop.write_spec(name, "base = { image = \"base\" }\nfilesystem = \"ext4\"\n");
    }
    succeed(&mut workshop.xtask(&["image", "--all"]));
    let output = succeed(&mut workshop.xtask(&["image", "--all", "--refresh"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("✓ base: run: true").count(), 1, "{said}");
}

#[test]
fn a_damaged_package_in_the_cache_is_fetched_anew() {
    if !have(&["busybox", "newuidmap", "mmdebstrap", "dpkg-deb", "debugfs"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = workshop.debian_base();
    let spec = |rest: &str| {
        let base = base.display();
        workshop.write_spec(
            "made",
            &format!("base = {{ tar = \"{base}\" }}\nfilesystem = \"ext4\"\npackages = [\"hello\"]\n{rest}"),
        );
    };
    spec("");
    assert_eq!(built(&workshop, &[]), "built");
    let folder = workshop.path("cache/snug/downloads/apt");
    let find = || {
        let mut entries = fs::read_dir(&folder).expect("downloads").map(|entry| entry.expect("an entry").path());
        entries.find(|path| path.to_string_lossy().contains("/hello_")).expect("the package")
    };
    let package = find();
    let good = fs::read(&package).expect("a package");
    // Other bytes of the same length, deep in the packed data: what apt alone would not see.
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0);
    fs::write(&package, &damaged).expect("a damaged package");
    spec("run = [\"hello\"]");
    let output = succeed(workshop.xtask(&["image", "made"]).env("TERM", "dumb"));
    assert!(fs::read(find()).expect("a package") == good, "{}", String::from_utf8_lossy(&output.stderr));
    // And where nothing is wrong, nothing is fetched: the file is the same one.
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a file"));
    let before = inode(find());
    spec("run = [\"hello again\"]".replace("hello again", "hello --version").as_str());
    assert_eq!(built(&workshop, &[]), "built");
    assert_eq!(inode(find()), before);
}

/// apt gives up at once where another build has its archives locked. `image --jobs` and two runs at a time share a cache.
#[test]
fn builds_at_once_wait_for_each_others_package_downloads() {
    if !have(&["busybox", "newuidmap", "mmdebstrap"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = workshop.debian_base();
    for name in ["one", "two", "three"] {
        let base = base.display();
        workshop.write_spec(
            name,
            &format!("base = {{ tar = \"{base}\" }}\nfilesystem = \"ext4\"\npackages = [\"hello\", \"ncal\"]\n"),
        );
    }
    let mut other = workshop.xtask(&["image", "three", "--no-check"]);
    let other = other.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command starts");
    succeed(&mut workshop.xtask(&["image", "one", "two", "--jobs", "2", "--no-check"]));
    let other = other.wait_with_output().expect("the command ends");
    assert!(other.status.success(), "{}", String::from_utf8_lossy(&other.stderr));
    for name in ["one", "two", "three"] {
        assert!(workshop.image(name).is_file(), "{name}");
    }
}
