//! The openclaw image, built from its spec and checked by e2fsck, dumpe2fs, the kernel's mount and the program itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use snug_tests::{Mounted, have, is_root, openclaw_image, succeed, tree_digest_without, workspace, xtask};

/// The version that the spec pins.
fn pinned() -> String {
    let spec = std::fs::read_to_string(workspace().join("images/openclaw/image.toml")).expect("the spec");
    let (_, rest) = spec.split_once("\"openclaw@").expect("a pin");
    rest.split('"').next().expect("a version").to_owned()
}

/// The numbers of `dumpe2fs -h`, by their names.
fn superblock(image: &Path) -> BTreeMap<String, u64> {
    let output = succeed(Command::new("dumpe2fs").arg("-h").arg(image));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

#[test]
fn the_image_is_sound_and_exactly_as_large_as_its_policy_asks() {
    if !have(&["e2fsck", "dumpe2fs"]) {
        return;
    }
    let Some(image) = openclaw_image() else { return };
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));

    let manifest = std::fs::read(image.with_file_name("manifest.json")).expect("a manifest beside the image");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let decision = &manifest["census"]["decision"];
    let number = |name: &str| decision[name].as_u64().unwrap_or_else(|| panic!("{name} in {decision}"));
    // Headroom decided, not `min-size`.
    assert_eq!(decision["rule"], "content");

    // docs/architecture.md, "Sizing", computed here from the content alone: ⌈0.4 · data⌉ and ⌈0.4 · inodes⌉ stay free.
    let superblock = superblock(&image);
    assert_eq!(superblock["Free blocks"], (number("data-blocks") * 2).div_ceil(5));
    let least_inodes = (number("inodes") * 2).div_ceil(5);
    // An inode table fills whole blocks (16 inodes) in every group, so that a few more may be free.
    let groups = superblock["Block count"].div_ceil(superblock["Blocks per group"]);
    let free_inodes = superblock["Free inodes"];
    assert!((least_inodes..least_inodes + 16 * groups).contains(&free_inodes), "{free_inodes} of {least_inodes}");
    assert_eq!(superblock["Block count"] * 4096, std::fs::metadata(&image).expect("the image").len());
    assert_eq!(superblock["Reserved block count"], 0);
    let parts = manifest["census"]["parts"].as_array().expect("parts");
    let sum: u64 = parts.iter().map(|part| part["bytes"].as_u64().expect("bytes")).sum();
    assert_eq!(sum, manifest["census"]["size"].as_u64().expect("a size"), "every byte is accounted for");
}

#[test]
fn the_program_answers_and_squashfs_holds_the_same_tree() {
    if !is_root() || !have(&["tar2sqfs"]) {
        return;
    }
    if openclaw_image().is_none() {
        return;
    }
    // Both of the tree that is in the cache now: the workspace's own image may be older than that. The best compression
    // would take a minute and show nothing more.
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = folder.path().join("images");
    succeed(Command::new("cp").arg("-R").arg(workspace().join("images")).arg(&images));
    let spec = images.join("openclaw/image.toml");
    let text = std::fs::read_to_string(&spec).expect("the spec");
    let quick =
        text.replace("filesystem = \"ext4\"\n", "filesystem = { type = \"squashfs\", compression = \"zstd:1\" }\n");
    assert_ne!(quick, text);
    let sizes = |line: &&str| line.starts_with("min-size") || line.starts_with("max-size");
    let quick: String = quick.split_inclusive('\n').filter(|line| !sizes(line)).collect();
    let [ext4, squashfs] = [("ext4", &text), ("squashfs", &quick)].map(|(kind, text)| {
        std::fs::write(&spec, text).expect("a spec");
        let output = folder.path().join(kind);
        succeed(xtask().args(["image", "openclaw", "--images"]).arg(&images).arg("--output").arg(&output));
        Mounted::read_only(&output.join(format!("openclaw/rootfs.{kind}")))
    });
    for root in [ext4.path(), squashfs.path()] {
        let output = succeed(Command::new("chroot").arg(root).args(["openclaw", "--version"]));
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&pinned()), "{said}");
    }
    // The one has its own init as it is, the other the first stage before it.
    let digest = |root: &Path| tree_digest_without(root, &["./init", "./usr/lib/snug"]);
    assert_eq!(digest(ext4.path()), digest(squashfs.path()));
    let init = |path: std::path::PathBuf| std::fs::read(path).expect("an init");
    assert_eq!(init(ext4.path().join("init")), init(squashfs.path().join("usr/lib/snug/init")));
}

#[test]
fn an_image_that_is_up_to_date_is_left_alone() {
    let Some(image) = openclaw_image() else { return };
    let modified = || std::fs::metadata(&image).and_then(|about| about.modified()).expect("the image");
    let before = modified();
    let output = succeed(xtask().args(["image", "openclaw", "--json"]));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(about["images"][0]["state"], "up-to-date");
    assert_eq!(modified(), before);
}

/// What writing openclaw may take at its peak, in bytes.
const PEAK_MEMORY: u64 = 96 << 20;

/// The fewest blocks that can hold a tar's tree: file content without holes, packed directories, exact inode tables
/// with ten inodes of the filesystem's own, two bitmaps a group, one superblock and one block of descriptors.
const FLOOR: &str = r#"
import collections, sys, tarfile
blocks, inodes, directories = 2, 10, collections.Counter()
for member in tarfile.open(sys.argv[1]):
    name = member.name.removeprefix("./").strip("/")
    if name not in ("", "."):
        parent, _, last = ("/" + name).rpartition("/")
        directories[parent.strip("/")] += 8 + (len(last.encode(errors="surrogateescape")) + 3) // 4 * 4
    if member.islnk():
        continue
    inodes += 1
    if member.isdir():
        directories["" if name == "." else name] += 0
    elif member.issym():
        blocks += len(member.linkname.encode(errors="surrogateescape")) >= 60
    elif member.issparse():
        blocks += sum((length + 4095) // 4096 for _, length in member.sparse)
    elif member.isreg():
        blocks += (member.size + 4095) // 4096
blocks += sum((size + 24 + 4083) // 4084 for size in directories.values())
blocks += (inodes + 15) // 16
print(blocks + 2 * ((blocks + 32767) // 32768))
"#;

#[test]
fn the_exact_fit_is_at_most_a_thousandth_above_the_floor() {
    if !have(&["python3", "e2fsck", "dumpe2fs"]) || openclaw_image().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tar, image) = (folder.path().join("openclaw.tar"), folder.path().join("openclaw.ext4"));
    succeed(xtask().args(["export", "openclaw", "-o"]).arg(&tar));
    let output = succeed(Command::new("python3").args(["-c", FLOOR]).arg(&tar));
    let floor: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number");
    let exact = ["--headroom", "1.0", "--no-journal"];
    succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&image).args(exact));
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let superblock = superblock(&image);
    let blocks = superblock["Block count"];
    println!("{blocks} blocks, and the floor is {floor}");
    assert_eq!((superblock["Free blocks"], superblock["Reserved block count"]), (0, 0));
    assert!(blocks >= floor && (blocks - floor) * 1000 <= floor, "{blocks} blocks, and the floor is {floor}");
}

#[test]
fn writing_it_takes_little_memory() {
    if openclaw_image().is_none() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = folder.path().join("openclaw.tar");
    succeed(xtask().args(["export", "openclaw", "-o"]).arg(&tar));
    for (name, peak) in crate::memory::peaks(&tar, &folder.path().join("cache")) {
        println!("{name}: {peak} bytes of memory");
        assert!(peak <= PEAK_MEMORY, "{name}: {peak} bytes of memory");
    }
}
