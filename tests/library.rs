//! The library crates alone: a program outside the workspace packs a tar with them, cargo packages them, their examples run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use snug_tests::{busybox_base, have, succeed, workspace};

/// A program that uses the crates as any other would: a tar in, an ext4 image out.
const PROGRAM: &str = r#"
use snug_ext4::{Ext4Options, NativeExt4, size::SizePolicy};
use snug_rootfs::tar::{Limits, read_file};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tree = read_file(std::fs::File::open("root.tar")?, &Limits::default(), &mut |_| {})?;
    let writer = NativeExt4::new(&Ext4Options::default())?;
    let census = writer.write(&tree, &SizePolicy::default(), "rootfs.ext4".as_ref(), &())?;
    println!("{}", census.size);
    Ok(())
}
"#;

/// A tar with a directory, a file, a link and owners.
#[track_caller]
fn sample(folder: &Path) -> PathBuf {
    let script = "mkdir -p root/etc root/bin; echo snug > root/etc/hostname; ln -s ../etc/hostname root/bin/name; \
                  tar -cf root.tar --owner 12 --group 34 -C root .";
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder));
    folder.join("root.tar")
}

/// e2fsck finds nothing to repair, and debugfs reads the file and its owner.
#[track_caller]
fn judge(image: &Path) {
    succeed(Command::new("e2fsck").arg("-fn").arg(image));
    let debugfs = |request: &str| {
        let output = succeed(Command::new("debugfs").args(["-R", request]).arg(image));
        String::from_utf8(output.stdout).expect("text")
    };
    assert_eq!(debugfs("cat /etc/hostname"), "snug\n");
    let inode = debugfs("stat /etc/hostname");
    assert!(inode.contains("User:    12   Group:    34"), "{inode}");
    assert!(debugfs("stat /bin/name").contains("Fast link dest: \"../etc/hostname\""));
}

#[test]
fn a_program_outside_the_workspace_packs_a_tar() {
    if !have(&["tar", "e2fsck", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    sample(folder.path());
    let crates = workspace().join("crates");
    let manifest = format!(
        "[package]\nname = \"packer\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         snug-ext4 = {{ path = {:?} }}\nsnug-rootfs = {{ path = {:?} }}\n",
        crates.join("ext4"),
        crates.join("rootfs")
    );
    fs::create_dir(folder.path().join("src")).expect("a folder");
    fs::write(folder.path().join("src/main.rs"), PROGRAM).expect("a source");
    fs::write(folder.path().join("Cargo.toml"), manifest).expect("a manifest");
    // Without it, cargo could choose versions of dependencies that are not downloaded.
    fs::copy(workspace().join("Cargo.lock"), folder.path().join("Cargo.lock")).expect("a lock file");
    let mut run = Command::new(env!("CARGO"));
    run.args(["run", "--offline", "--quiet"]).current_dir(folder.path());
    // Kept between runs of the tests: the dependencies are compiled once.
    let output = succeed(run.env("CARGO_TARGET_DIR", workspace().join("target/library")));
    let image = folder.path().join("rootfs.ext4");
    let size = fs::metadata(&image).expect("the image").len();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{size}\n"));
    judge(&image);
}

#[test]
fn the_library_crates_can_be_packaged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let crates = ["rootfs", "ext4", "formats", "spec", "process", "sandbox"].map(|name| format!("snug-{name}"));
    let mut package = Command::new(env!("CARGO"));
    package.args(["package", "--allow-dirty", "--no-verify", "--offline"]).current_dir(workspace());
    package.args(crates.iter().flat_map(|name| ["--package", name])).env("CARGO_TARGET_DIR", folder.path());
    succeed(&mut package);
    let packages = fs::read_dir(folder.path().join("package")).expect("packages");
    let packages: Vec<String> =
        packages.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    for name in crates {
        let made = |package: &&String| package.starts_with(&format!("{name}-")) && package.ends_with(".crate");
        assert!(packages.iter().any(|package| made(&package)), "{name} is not among {packages:?}");
    }
}

#[test]
fn the_example_of_the_ext4_writer_runs() {
    if !have(&["tar", "e2fsck", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tar, image) = (sample(folder.path()), folder.path().join("rootfs.ext4"));
    let output = succeed(example("pack").arg(&tar).arg(&image));
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("inode tables") && shown.contains("in all"), "{shown}");
    judge(&image);
}

#[test]
fn the_examples_of_the_other_crates_run() {
    if !have(&["tar", "busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let shown = |command: &mut Command| String::from_utf8(succeed(command).stdout).expect("text");
    let listing = shown(example("list").arg(sample(folder.path())));
    assert!(listing.starts_with("#mtree") && listing.contains("./etc/hostname"), "{listing}");
    let steps = shown(example("steps").arg(workspace().join("images/openclaw")));
    assert!(steps.starts_with("openclaw, from ") && steps.contains("install openssh-server"), "{steps}");
    assert_eq!(shown(example("run").args(["echo", "done"])), "done\n");
    fs::create_dir(folder.path().join("busybox")).expect("a folder");
    busybox_base(&folder.path().join("busybox"));
    let mut run = example("run_in_root");
    let said =
        shown(run.arg(folder.path().join("busybox/base.tar")).args(["/bin/sh", "-c", "echo $$ in $(ls /bin | wc -l)"]));
    // The second process of its own pid namespace, in the root of the tar.
    assert!(said.contains("2 in "), "{said}");
}

/// An example program of a library crate, ready for arguments. All are built with the features of the workspace's tests,
/// so that no dependency is compiled twice.
fn example(name: &str) -> Command {
    static BUILT: OnceLock<BTreeMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--workspace", "--examples", "--profile", "xtask", "--message-format", "json"]);
        let output = succeed(build.current_dir(workspace()));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| {
                let name = message["target"]["name"].as_str()?.to_owned();
                Some((name, PathBuf::from(message["executable"].as_str()?)))
            })
            .collect()
    });
    Command::new(built.get(name).unwrap_or_else(|| panic!("no example {name} in {built:?}")))
}
