//! What is checked is what is used: whatever changes between a look and the next one is noticed, and nothing of it is kept.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

use snug_tests::{Workshop, have, succeed};

const WAITING: &str = "another build makes it; waiting";

/// Begins to build `name`, does `meanwhile` once all is planned and hashed, and returns the exit code and what was said.
fn build_while(workshop: &Workshop, name: &str, meanwhile: impl FnOnce()) -> (Option<i32>, String) {
    let locks = workshop.path("cache/snug/locks");
    fs::create_dir_all(&locks).expect("a folder");
    // As another run that makes this tree: this one is planned by then, and has done nothing yet.
    let lock = File::create(locks.join(format!("{name}.lock"))).expect("a lock");
    lock.lock().expect("a lock");
    let mut running = workshop.xtask(&["image", name]);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("xtask runs");
    let mut stderr = running.stderr.take().expect("a pipe");
    let (mut said, mut byte) = (Vec::new(), [0]);
    while !String::from_utf8_lossy(&said).contains(WAITING) {
        assert!(stderr.read(&mut byte).expect("read") > 0, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    meanwhile();
    lock.unlock().expect("unlocked");
    stderr.read_to_end(&mut said).expect("read");
    (running.wait().expect("a child").code(), String::from_utf8_lossy(&said).into_owned())
}

/// Writes `evil.tar`, the base with one more program.
fn evil(workshop: &Workshop) {
    let script = "mkdir -p root && touch root/evil && tar -cf evil.tar --owner 0 --group 0 -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(workshop.path("")));
}

fn digest(path: &Path) -> String {
    let output = succeed(Command::new("sha256sum").arg(path));
    String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a digest").to_owned()
}

#[test]
fn a_base_that_is_swapped_or_written_to_after_its_hash_was_taken_is_refused() {
    if !have(&["busybox", "newuidmap", "sha256sum"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = workshop.path("base.tar");
    let good = fs::read(&base).expect("the base");
    evil(&workshop);
    let spec = |step: &str| {
        workshop.write_spec(
            "made",
            &format!(
                "base = {{ tar = \"{}\", sha256 = \"{}\" }}\nfilesystem = \"ext4\"\nrun = [\"{step}\"]\n",
                base.display(),
                digest(&base)
            ),
        );
    };
    spec("true");
    assert!(workshop.build("made").status.success());
    let image = fs::read(workshop.image("made")).expect("an image");
    spec("test -e /evil && echo > /owned; true");
    let swap = || fs::rename(workshop.path("evil.tar"), &base).expect("swapped");
    let write = || {
        // In place, with its time set back.
        let file = File::options().write(true).open(&base).expect("the base");
        let time = file.metadata().and_then(|about| about.modified()).expect("a time");
        fs::write(&base, fs::read(workshop.path("evil.tar")).expect("a tar")).expect("written");
        file.set_times(fs::FileTimes::new().set_modified(time)).expect("a time");
    };
    for (what, change) in [("written to", &write as &dyn Fn()), ("swapped", &swap)] {
        let (code, said) = build_while(&workshop, "made", change);
        assert_eq!(code, Some(1), "{what}: {said}");
        assert!(said.contains("base.tar was changed after it was checked"), "{what}: {said}");
        assert!(said.contains("hint: build again"), "{what}: {said}");
        assert!(fs::read(workshop.image("made")).expect("the image") == image, "{what}");
        assert_eq!(workshop.names("cache/snug/trees").len(), 1, "{what}");
        fs::write(&base, &good).expect("the base");
    }
    assert!(workshop.build("made").status.success());
}

#[test]
fn a_file_of_a_spec_that_is_edited_while_it_builds_is_refused() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("made", "file = [{ from = \"tools\", to = \"/tools\", owner = \"7:7\" }]");
    let tools = workshop.path("images/made/tools");
    fs::create_dir(&tools).expect("a folder");
    for name in ["one", "two"] {
        fs::write(tools.join(name), "planned").expect("a file");
    }
    let (code, said) = build_while(&workshop, "made", || fs::write(tools.join("two"), "changed").expect("a file"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("tools/two was changed since the build began\nhint: build again"), "{said}");
    assert_eq!(workshop.names("cache/snug/trees"), [""; 0]);
    // What comes in meanwhile is of the next build.
    let (code, said) = build_while(&workshop, "made", || fs::write(tools.join("three"), "late").expect("a file"));
    assert_eq!(code, Some(0), "{said}");
    let list = || {
        let output = succeed(Command::new("debugfs").args(["-R", "ls -p /tools"]).arg(workshop.image("made")));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(list().contains("/two/") && !list().contains("/three/"), "{}", list());
    assert!(workshop.build("made").status.success());
    assert!(list().contains("/three/"), "{}", list());
}

#[test]
fn a_damaged_base_in_the_cache_is_made_again_and_said_once() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = workshop.path("base.tar").display().to_string();
    workshop.write_spec("base", &format!("base = {{ tar = \"{base}\" }}\nrun = [\"echo canary > /canary\"]\n"));
    let spec = |name: &str, step: &str| {
        workshop
            .write_spec(name, &format!("base = {{ image = \"base\" }}\nfilesystem = \"ext4\"\nrun = [\"{step}\"]\n"));
    };
    spec("one", "true");
    assert!(workshop.build("one").status.success());
    let tree = workshop.names("cache/snug/trees").into_iter().find(|name| name.starts_with("base-")).expect("a tree");
    let tree = workshop.path("cache/snug/trees").join(tree);
    let mut bytes = fs::read(&tree).expect("a tree");
    let at = bytes.windows(7).position(|window| window == b"canary\n").expect("the content");
    bytes[at] ^= 1;
    fs::write(&tree, bytes).expect("damaged");
    for name in ["one", "two"] {
        spec(name, "cat /canary > /copy");
    }
    let output = succeed(&mut workshop.xtask(&["image", "one", "two"]));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("base: the tree in the cache is damaged; it is made again").count(), 1, "{said}");
    for name in ["one", "two"] {
        let output = succeed(Command::new("debugfs").args(["-R", "cat /copy"]).arg(workshop.image(name)));
        assert_eq!(output.stdout, b"canary\n", "{name}");
    }
}
