//! Caching: every input of an image makes it stale, nothing else does, and cached downloads are verified.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;
use snug_tests::{Workshop, have, is_root, succeed};

/// Returns the state that `list` reports, with its reason.
fn listed(workshop: &Workshop, name: &str) -> (String, String) {
    let output = succeed(&mut workshop.xtask(&["list", "--json"]));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let row = about["images"].as_array().expect("rows").iter().find(|row| row["name"] == name).expect("the image");
    let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    (word("state"), word("reason"))
}

/// Builds, and returns the state that the build reports.
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
    // Times do not count: every clone has others.
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

    // An image that was written or truncated by others is built again.
    let image = workshop.image("made");
    fs::OpenOptions::new().write(true).open(&image).and_then(|file| file.set_len(4096)).expect("a shorter image");
    let changed = |because: &str| {
        assert_eq!(listed(&workshop, "made"), ("changed".into(), because.into()));
        assert_eq!(built(&workshop, &[]), "built", "{because}");
        settled(because);
    };
    changed("the image file was changed since it was built");
    fs::remove_file(&image).expect("the image");
    changed("the image file is gone");

    assert_eq!(built(&workshop, &["--filesystem", "squashfs"]), "built");
    assert_eq!(built(&workshop, &["--filesystem", "squashfs"]), "up-to-date");
    assert_eq!(built(&workshop, &["--filesystem", "squashfs", "--refresh"]), "built");
}

/// What is made anew when a spec changes.
#[derive(Debug, PartialEq, Eq)]
enum Anew {
    Tree,
    Image,
    Nothing,
}

/// `[[binary]]` is missing here: by what it puts into the tree it is a file, and it must be built first (tests/binaries.rs).
#[test]
fn each_key_of_a_spec_makes_anew_what_depends_on_it() {
    if !have(&["busybox"]) {
        return;
    }
    let workshop = Workshop::new();
    // Keys and lines, so that each can be replaced alone.
    let start = [
        ("filesystem", "filesystem = { type = \"ext4\" }"),
        ("packages", "packages = { system = [\"one\"], npm = [\"one\"], pip = [\"one\"] }"),
        ("env", "env = { A = \"1\" }"),
        ("file", "file = [{ from = \"tool\", to = \"/tool\" }, { content = \"1\", to = \"/text\" }]"),
        ("run", "run = [\"true\"]"),
    ];
    let plan = |key: &str, line: &str, before: &str| {
        let kept = start.iter().filter(|(other, _)| *other != key).map(|(_, line)| *line);
        let lines: Vec<&str> = [before].into_iter().chain(kept).chain([line]).collect();
        let base = format!("base = {{ tar = \"{}\" }}", workshop.path("base.tar").display());
        let base = if key == "base" { line.to_owned() } else { base };
        let lines = if key == "base" { &lines[..lines.len() - 1] } else { &lines[..] };
        workshop.write_spec("made", &format!("{}\n{base}\n", lines.join("\n")));
        let mut command = workshop.xtask(&["image", "made", "--dry-run", "--json"]);
        let output = succeed(command.env_remove("SOURCE_DATE_EPOCH"));
        let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let word = |value: &Value| value.as_str().expect("a fingerprint").to_owned();
        let row = &about["images"][0];
        (word(&row["trees"][0]["fingerprint"]), word(&row["fingerprint"]))
    };
    workshop.write_spec("made", "");
    for (name, content) in [("tool", "one"), ("other", "one"), ("init", "#!/bin/sh\n")] {
        fs::write(workshop.path("images/made").join(name), content).expect("a file");
    }
    let base = workshop.path("base.tar").display().to_string();
    fs::copy(workshop.path("base.tar"), workshop.path("copy.tar")).expect("a copy");
    fs::write(workshop.path("other.tar"), [0; 10240]).expect("a tar");
    let copy = base.replace("base.tar", "copy.tar");
    let other = base.replace("base.tar", "other.tar");
    let original = plan("", "", "");
    let text = ", { content = \"1\", to = \"/text\" }]";
    let tool = |rest: &str| format!("file = [{{ from = \"tool\", to = \"/tool\"{rest} }}{text}");
    let ext4 = |rest: &str| format!("filesystem = {{ type = \"ext4\", {rest} }}");
    let cases = [
        ("base", format!("base = {{ tar = \"{other}\" }}"), Anew::Tree),
        ("base", format!("base = {{ tar = \"{copy}\" }}"), Anew::Nothing),
        ("packages", "packages = { system = [\"two\"], npm = [\"one\"], pip = [\"one\"] }".into(), Anew::Tree),
        ("packages", "packages = { system = [\"one\"], npm = [\"two\"], pip = [\"one\"] }".into(), Anew::Tree),
        ("packages", "packages = { system = [\"one\"], npm = [\"one\"], pip = [\"two\"] }".into(), Anew::Tree),
        ("env", "env = { A = \"2\" }".into(), Anew::Tree),
        ("hostname", "hostname = \"h\"".into(), Anew::Tree),
        ("init", "init = \"init\"".into(), Anew::Tree),
        ("file", tool(""), Anew::Nothing),
        ("file", tool(", mode = \"0600\""), Anew::Tree),
        ("file", tool(", owner = \"1:1\""), Anew::Tree),
        ("file", tool(", xattrs = { \"user.a\" = \"1\" }"), Anew::Tree),
        ("file", tool(", capabilities = \"cap_net_raw=ep\""), Anew::Tree),
        // The same bytes from another file are the same.
        ("file", format!("file = [{{ from = \"other\", to = \"/tool\" }}{text}"), Anew::Nothing),
        ("file", format!("file = [{{ from = \"init\", to = \"/tool\" }}{text}"), Anew::Tree),
        ("file", format!("file = [{{ from = \"tool\", to = \"/moved\" }}{text}"), Anew::Tree),
        ("file", tool("").replace("content = \"1\"", "content = \"2\""), Anew::Tree),
        (
            "device",
            "device = [{ path = \"/dev/x\", type = \"char\", major = 1, minor = 3, mode = \"0600\" }]".into(),
            Anew::Tree,
        ),
        ("secret", "secret = [{ id = \"token\", from = { env = \"TOKEN\" } }]".into(), Anew::Tree),
        ("run", "run = [\"false\"]".into(), Anew::Tree),
        ("run", "run = [{ shell = \"true\" }]".into(), Anew::Nothing),
        ("run", "run = [{ shell = \"true\", network = true }]".into(), Anew::Nothing),
        ("run", "run = [{ shell = \"true\", network = false }]".into(), Anew::Tree),
        ("exclude", "exclude = [\"/usr/share/doc\"]".into(), Anew::Tree),
        ("filesystem", "filesystem = \"squashfs\"".into(), Anew::Image),
        ("filesystem", ext4("label = \"x\""), Anew::Image),
        ("filesystem", ext4("verity = true"), Anew::Image),
        ("filesystem", ext4("overlay = \"16MiB\""), Anew::Image),
        ("filesystem", ext4("overlay-device = false"), Anew::Image),
        ("min-size", "min-size = \"1GiB\"".into(), Anew::Image),
        ("max-size", "max-size = \"1GiB\"".into(), Anew::Image),
        ("headroom", "headroom = 2.0".into(), Anew::Image),
        ("free-inodes", "free-inodes = 99".into(), Anew::Image),
        ("description", "description = \"words\"".into(), Anew::Nothing),
        ("tolerance", "tolerance = \"2%\"".into(), Anew::Nothing),
        ("engine", "engine = \"builtin\"".into(), Anew::Nothing),
        ("boot", "boot = { kernel = \"6.1\", arguments = [\"quiet\"] }".into(), Anew::Nothing),
        ("platforms", format!("platforms = [\"{}\"]", host_platform()), Anew::Nothing),
        ("", "# words".into(), Anew::Nothing),
    ];
    for (key, line, expected) in cases {
        let now = plan(key, &line, "");
        let anew = match (now.0 != original.0, now.1 != original.1) {
            (true, true) => Anew::Tree,
            (false, true) => Anew::Image,
            (false, false) => Anew::Nothing,
            (true, false) => panic!("the tree changes and its image does not: {line}"),
        };
        assert_eq!(anew, expected, "{line}");
    }
    // Lines that move change nothing.
    assert_eq!(plan("", "", "\n\n"), original);
}

fn host_platform() -> &'static str {
    if cfg!(target_arch = "x86_64") { "linux/amd64" } else { "linux/arm64" }
}

/// The overlay belongs to the tool's first stage, which goes into the image and not into the cached tree.
#[test]
fn another_overlay_makes_a_new_image_of_the_same_tree() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let build = |overlay: &str| {
        let base = workshop.path("base.tar");
        workshop.write_spec(
            "made",
            &format!(
                "base = {{ tar = \"{}\" }}\nfilesystem = {{ type = \"ext4\", overlay = \"{overlay}\" }}\nrun = [\"true\"]\n",
                base.display()
            ),
        );
        let output = succeed(workshop.xtask(&["image", "made"]).env("TERM", "dumb"));
        let tree = fs::read_dir(workshop.path("cache/snug/trees")).expect("trees").count();
        (String::from_utf8_lossy(&output.stderr).contains("run: true"), tree)
    };
    let (ran, trees) = build("16MiB");
    assert!(ran);
    assert_eq!(build("32MiB"), (false, trees));
    assert_eq!(listed(&workshop, "made").0, "up-to-date");
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
    let folder = workshop.path("cache/snug/downloads/store/sha256");
    let find = || {
        let mut entries = fs::read_dir(&folder).expect("downloads").map(|entry| entry.expect("an entry").path());
        let is_hello = |path: &PathBuf| {
            let field =
                Command::new("dpkg-deb").arg("--field").arg(path).arg("Package").output().expect("dpkg-deb runs");
            field.stdout == b"hello\n"
        };
        entries.find(is_hello).expect("the package")
    };
    let package = find();
    let good = fs::read(&package).expect("a package");
    // Other bytes of the same length, deep in the packed data, which apt alone does not notice.
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0);
    fs::set_permissions(&package, fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::write(&package, &damaged).expect("a damaged package");
    // Another environment: the step runs again.
    spec("env = { TURN = \"2\" }");
    let output = succeed(workshop.xtask(&["image", "made"]).env("TERM", "dumb"));
    assert!(fs::read(find()).expect("a package") == good, "{}", String::from_utf8_lossy(&output.stderr));
    // And where nothing is wrong, nothing is fetched: the file is the same one.
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a file"));
    let before = inode(find());
    spec("env = { TURN = \"3\" }");
    assert_eq!(built(&workshop, &[]), "built");
    assert_eq!(inode(find()), before);
}

/// apt gives up at once where another build has its archives locked. `image --jobs` and two runs at a time share a cache, and
/// here all begin with an empty one.
#[test]
fn builds_at_once_install_packages_side_by_side() {
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

/// A package manager that lists what it finds and leaves something wherever it can write.
const LEAVER: &str = r#"#!/bin/busybox sh
cd /run/build/cache || exit 1
busybox find . -type f -o -type l >/seen
plant() { busybox mkdir -p "${1%/*}" && busybox sh -c "echo poison >$1" && echo "$1" >>/planted; }
plant npm/_cacache/index-v5/11/22/poison
plant npm/_cacache/content-v2/sha512/11/22/poison
for manager in apt apk pip; do plant $manager/poison.deb; done
for algorithm in sha256 sha512; do plant store/$algorithm/poison 2>/dev/null || :; done
busybox rm -rf store/sha256/* 2>/dev/null
busybox ln -s / npm/_cacache/content-v2/sha512/way
busybox ln -s /etc/passwd apt/link.deb
busybox mkdir -p apt/partial
busybox sh -c 'echo linked >apt/linked.deb' && busybox ln apt/linked.deb apt/partial/left
busybox mkfifo apt/pipe.deb
busybox dd if=/dev/zero of=apt/hole.deb bs=1 count=1 seek=1000000000000 2>/dev/null
"#;

/// The digests of what is planted, and of what has a second name beside.
const POISON: &str = "e1bd750c5735ddf4c2f41f2d66e8184b40bbd998ffe1d9a6f1e231b6076d853f";
const LINKED: &str = "922e77203577a854eb6ac2e383bc9fb7b8fb19be37bba31c5d912a3adf1cd336";

#[test]
fn what_a_base_leaves_among_the_downloads_reaches_no_other() {
    if !is_root() || !have(&["busybox", "newuidmap", "debugfs", "unshare", "setpriv"]) {
        return;
    }
    leave_among_the_downloads(|workshop, name| (workshop.xtask(&["image", name]), workshop.image(name)));
    leave_among_the_downloads(|workshop, name| {
        let image = workshop.path("home/out").join(name).join("rootfs.ext4");
        (workshop.xtask_as_user(&["image", name], 65536), image)
    });
}

/// `command` returns the command that builds an image of the workshop, and where the image is then.
#[track_caller]
fn leave_among_the_downloads(command: impl Fn(&Workshop, &str) -> (Command, PathBuf)) {
    let workshop = Workshop::new();
    let file = format!("[[file]]\nto = \"/bin/npm\"\nmode = \"0755\"\ncontent = '''\n{LEAVER}'''\n");
    for base in ["base-of-one", "base-of-two"] {
        workshop.spec(base, &format!("hostname = \"{base}\"\n{file}"));
    }
    let build = |name: &str, rest: &str| {
        let base = format!("base = {{ image = \"base-of-{name}\" }}\nfilesystem = \"ext4\"\n");
        workshop.write_spec(name, &format!("{base}packages = {{ npm = [\"any\"] }}\n{rest}"));
        let (mut build, image) = command(&workshop, name);
        succeed(&mut build);
        ["seen", "planted"].map(|file| {
            let mut cat = Command::new("debugfs");
            let output = succeed(cat.args(["-R", &format!("cat /{file}")]).arg(&image));
            let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
            lines.sort();
            lines
        })
    };
    let everywhere = [
        "apk/poison.deb",
        "apt/poison.deb",
        "npm/_cacache/content-v2/sha512/11/22/poison",
        "npm/_cacache/index-v5/11/22/poison",
        "pip/poison.deb",
    ];
    let none: [&str; 0] = [];
    let [seen, planted] = build("one", "");
    assert_eq!(seen, none);
    assert_eq!(planted, everywhere);
    // The store has both under their true names alone.
    let [linked, poison] = [LINKED, POISON].map(|digest| format!("./store/sha256/{digest}"));
    let [seen, planted] = build("two", "");
    assert_eq!(seen, [linked.as_str(), &poison]);
    assert_eq!(planted, everywhere);
    // The image itself finds its index and its caches again, and no other name for what is in the store.
    let [seen, _] = build("one", "env = { TURN = \"2\" }");
    let own = ["./apk/poison.deb", "./npm/_cacache/index-v5/11/22/poison", "./pip/poison.deb"];
    assert_eq!(seen, [&own[..], &[&linked, &poison]].concat());
}
