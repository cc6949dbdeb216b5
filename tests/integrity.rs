//! What something else than a build has written to: noticed by `list`, `image` and `check`, and written again from the tree in
//! the cache.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use snug_tests::{Workshop, have, succeed};

const SPEC: &str = "run = [\"echo canary > /canary\"]";
const IMAGE_CHANGED: &str = "the image file was changed since it was built";
const LIST_CHANGED: &str = "the list of its contents was changed since it was built";
/// What is said where the times of the files do not settle it.
const READ: &str = "compare the image with its digest";

fn row(output: &Output) -> Value {
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    about["images"][0].clone()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The state and the reason that `list` shows, and what it said meanwhile.
fn listed(workshop: &Workshop) -> (String, String, String) {
    let output = succeed(&mut workshop.xtask(&["list", "--json"]));
    let word = |key: &str| row(&output)[key].as_str().unwrap_or_default().to_owned();
    (word("state"), word("reason"), said(&output))
}

fn built(workshop: &Workshop) -> (String, String) {
    let output = succeed(&mut workshop.xtask(&["image", "made", "--json"]));
    (row(&output)["state"].as_str().expect("a state").to_owned(), said(&output))
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).expect("a file");
    file.write_all_at(bytes, at).expect("written");
}

/// The image's tree in the cache.
fn cached_tree(workshop: &Workshop) -> PathBuf {
    let names = workshop.names("cache/snug/trees");
    let name = names.iter().find(|name| name.starts_with("made-")).expect("the tree");
    workshop.path("cache/snug/trees").join(name)
}

fn offset_of(path: &Path, wanted: &[u8]) -> u64 {
    let bytes = fs::read(path).expect("a file");
    bytes.windows(wanted.len()).position(|window| window == wanted).expect("the bytes") as u64
}

#[test]
fn what_was_written_to_is_noticed_and_written_again_without_a_step() {
    if !have(&["busybox", "newuidmap", "debugfs", "e2fsck"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("made", SPEC);
    assert_eq!(built(&workshop).0, "built");
    let image = workshop.image("made");
    let (list, manifest) = (image.with_file_name("contents.mtree"), image.with_file_name("manifest.json"));
    let files = [&image, &list, &manifest];
    let original = files.map(|path| fs::read(path).expect("a file"));
    let tree = cached_tree(&workshop);
    let tree_before = fs::metadata(&tree).map(|about| (about.ino(), about.mtime())).expect("the tree");

    type Change<'a> = Box<dyn Fn() + 'a>;
    let debugfs = |request: &str| {
        succeed(Command::new("debugfs").args(["-w", "-R", request]).arg(&image));
    };
    let edit_manifest = |from: &str, to: &str| {
        let text = fs::read_to_string(&manifest).expect("the manifest");
        assert!(text.contains(from));
        fs::write(&manifest, text.replacen(from, to, 1)).expect("a manifest");
    };
    let cases: [(&str, Change, &str); 11] = [
        // As a machine does that was started from it.
        ("written to", Box::new(|| debugfs("mkdir /written")), IMAGE_CHANGED),
        (
            "written to, with its times set back",
            Box::new(|| {
                let mtime = fs::metadata(&image).and_then(|about| about.modified()).expect("a time");
                overwrite(&image, 0, b"boot sector");
                let file = fs::File::options().write(true).open(&image).expect("the image");
                file.set_times(fs::FileTimes::new().set_modified(mtime)).expect("a time");
            }),
            IMAGE_CHANGED,
        ),
        (
            "cut short",
            Box::new(|| {
                fs::File::options().write(true).open(&image).and_then(|file| file.set_len(4096)).expect("a length");
            }),
            IMAGE_CHANGED,
        ),
        ("removed", Box::new(|| fs::remove_file(&image).expect("the image")), "the image file is gone"),
        (
            "a dangling symlink",
            Box::new(|| {
                fs::remove_file(&image).expect("the image");
                symlink("../elsewhere", &image).expect("a symlink");
            }),
            "the image file is gone",
        ),
        ("another list", Box::new(|| overwrite(&list, 0, b"#changed")), LIST_CHANGED),
        ("no list", Box::new(|| fs::remove_file(&list).expect("the list")), "the list of its contents is gone"),
        (
            "half a manifest",
            Box::new(|| {
                fs::File::options().write(true).open(&manifest).and_then(|file| file.set_len(99)).expect("a length");
            }),
            "manifest.json is damaged: ",
        ),
        (
            "an edited manifest",
            Box::new(|| edit_manifest("\"platform\": \"linux/", "\"platform\": \"unix/")),
            "manifest.json is damaged: it was changed since it was written",
        ),
        (
            "a manifest without its digest",
            Box::new(|| {
                let text = fs::read_to_string(&manifest).expect("the manifest");
                let mut fields: Value = serde_json::from_str(&text).expect("JSON");
                fields.as_object_mut().and_then(|fields| fields.remove("manifest-sha256")).expect("a digest");
                fs::write(&manifest, fields.to_string()).expect("a manifest");
            }),
            "manifest.json is damaged: it was changed since it was written",
        ),
        ("no manifest", Box::new(|| fs::remove_file(&manifest).expect("the manifest")), ""),
    ];
    for (case, change, reason) in &cases {
        change();
        let (state, because, _) = listed(&workshop);
        if reason.is_empty() {
            assert_eq!(state, "never-built", "{case}");
        } else {
            assert_eq!(state, "changed", "{case}");
            assert!(because.starts_with(reason), "{case}: {because}");
            let output = workshop.xtask(&["check", "made", "--quick", "--json"]).output().expect("xtask runs");
            assert_eq!(output.status.code(), Some(4), "{case}: {}", said(&output));
            assert_eq!(row(&output)["passed"], false, "{case}");
            assert!(said(&output).contains("hint: cargo xtask image made writes it again"), "{case}");
        }
        let (state, notes) = built(&workshop);
        assert_eq!(state, "built", "{case}");
        assert!(notes.contains(reason) && !notes.contains("echo canary"), "{case}: {notes}");
        for (path, original) in files.iter().zip(&original) {
            assert!(fs::read(path).expect("a file") == *original, "{case}: {}", path.display());
        }
        let (state, _, notes) = listed(&workshop);
        assert!(state == "up-to-date" && !notes.contains(READ), "{case}: {state}, {notes}");
    }
    assert_eq!(fs::metadata(&tree).map(|about| (about.ino(), about.mtime())).expect("the tree"), tree_before);

    // A folder in the image's place is no file to replace: it is named before anything is built.
    fs::remove_file(&image).and_then(|()| fs::create_dir(&image)).expect("a folder");
    assert_eq!(listed(&workshop).0, "changed");
    let output = workshop.build("made");
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("is a folder, where a file of the image belongs\nhint: "), "{}", said(&output));
    fs::remove_dir(&image).expect("the folder");
    assert_eq!(built(&workshop).0, "built");
    succeed(&mut workshop.xtask(&["check", "made"]));
}

#[test]
fn what_was_only_touched_or_copied_is_read_once_and_stays() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("made", SPEC);
    assert_eq!(built(&workshop).0, "built");
    let image = workshop.image("made");
    let in_out = |script: &str| {
        succeed(Command::new("bash").args(["-ec", script]).current_dir(workshop.path("out")));
    };
    for case in [
        "touch made/rootfs.ext4",
        "touch -d 1999-12-31 made/rootfs.ext4 made/contents.mtree",
        "chmod 0400 made/rootfs.ext4",
        "cp -r made copy; rm -r made; mv copy made",
        "tar -cf made.tar made; rm -r made; tar -xf made.tar",
        "touch made/manifest.json",
        // Onto a larger disk.
        "mv made/rootfs.ext4 elsewhere; ln -s ../elsewhere made/rootfs.ext4",
    ] {
        in_out(case);
        let inode = fs::metadata(&image).expect("the image").ino();
        let (state, _, notes) = listed(&workshop);
        assert!(state == "up-to-date" && notes.contains(READ), "{case}: {state}, {notes}");
        let (state, notes) = built(&workshop);
        assert!(state == "up-to-date" && !notes.contains(READ), "{case}: {state}, {notes}");
        assert_eq!(fs::metadata(&image).expect("the image").ino(), inode, "{case}");
    }
    // What is written during the look is noticed by the next one: what is remembered is the time before it.
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).expect("a mode");
    assert_eq!(listed(&workshop).0, "up-to-date");
    overwrite(&image, 0, b"x");
    assert_eq!(listed(&workshop).0, "changed");
}

#[test]
fn a_damaged_tree_in_the_cache_is_made_again() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("made", SPEC);
    let built = || {
        // The steps run again, at another time.
        let output = succeed(workshop.xtask(&["image", "made", "--json"]).env("SOURCE_DATE_EPOCH", "1000000000"));
        (row(&output)["state"].as_str().expect("a state").to_owned(), said(&output))
    };
    assert_eq!(built().0, "built");
    let image = workshop.image("made");
    let original = fs::read(&image).expect("the image");
    let tree = cached_tree(&workshop);
    let cases: [(&str, &dyn Fn()); 3] = [
        ("another content, which no header tells", &|| overwrite(&tree, offset_of(&tree, b"canary\n"), b"CANARY\n")),
        ("cut short", &|| {
            fs::File::options().write(true).open(&tree).and_then(|file| file.set_len(5000)).expect("a length");
        }),
        ("gone", &|| fs::remove_file(&tree).expect("the tree")),
    ];
    for (case, damage) in cases {
        damage();
        overwrite(&image, 0, b"x");
        let (state, notes) = built();
        assert_eq!(state, "built", "{case}");
        assert!(case == "gone" || notes.contains("it is made again"), "{case}: {notes}");
        assert!(notes.contains("echo canary"), "{case}: {notes}");
        // Also where a first image was made of the damaged tree.
        assert_eq!(notes.matches("the image has no init").count(), 1, "{case}: {notes}");
        assert!(fs::read(&image).expect("the image") == original, "{case}: {notes}");
    }
}
