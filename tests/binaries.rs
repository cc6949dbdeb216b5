//! `[[binary]]`: programs of Cargo packages in images.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use snug_tests::{Mounted, Workshop, busybox_base, have, is_root, succeed, xtask};

/// The `[[binary]]` of a spec that installs the workspace's program.
pub(crate) const AGENT: &str = "[[binary]]\npackage = \"agent\"\nto = \"/usr/local/bin/agent\"\n";

/// Makes `folder` a workspace that commands started there take for the tool's own: a program, and a library that it uses.
/// The program prints which system it runs on.
pub(crate) fn write_workspace(folder: &Path) {
    let package = |name: &str, more: &str| {
        fs::create_dir_all(folder.join(name).join("src")).expect("a folder");
        let manifest = format!("[package]\nname = \"{name}\"\nversion = \"1.0.0\"\nedition = \"2024\"\n{more}");
        fs::write(folder.join(name).join("Cargo.toml"), manifest).expect("a manifest");
    };
    fs::write(folder.join("Cargo.toml"), "[workspace]\nresolver = \"3\"\nmembers = [\"agent\", \"words\"]\n")
        .expect("a manifest");
    package("words", "");
    fs::write(folder.join("words/src/lib.rs"), "pub const GREETING: &str = \"hello from a workspace\";\n")
        .expect("a library");
    package("agent", "\n[dependencies]\nwords = { path = \"../words\" }\n");
    let program = r#"
        fn main() {
            let release = std::fs::read_to_string("/etc/os-release").expect("a system");
            let id = release.lines().find_map(|line| line.strip_prefix("ID=")).expect("its name");
            println!("{} on {id}", words::GREETING);
        }
    "#;
    fs::write(folder.join("agent/src/main.rs"), program).expect("a program");
}

/// Runs the workspace's program in a root.
#[track_caller]
pub(crate) fn assert_agent_runs(root: &Path, system: &str) {
    let said = succeed(Command::new("chroot").arg(root).arg("/usr/local/bin/agent"));
    assert_eq!(String::from_utf8_lossy(&said.stdout), format!("hello from a workspace on {system}\n"));
}

/// A package without dependencies, whose build script and program see the environment that cargo gives them.
fn write_package(folder: &Path, program: &str) {
    let package = folder.join("agent");
    fs::create_dir_all(package.join("src")).expect("a folder");
    let manifest = "[package]\nname = \"agent\"\nversion = \"1.2.3\"\nedition = \"2024\"\n\n[features]\nloud = []\n\n[workspace]\n";
    fs::write(package.join("Cargo.toml"), manifest).expect("a manifest");
    fs::write(package.join("build.rs"), "fn main() {}\n").expect("a build script");
    fs::write(package.join("src/main.rs"), program).expect("a program");
}

fn build(folder: &Path) -> Output {
    let image = folder.join("images/with-agent");
    fs::create_dir_all(&image).expect("a folder");
    let spec = format!(
        "base = {{ tar = \"{}/base.tar\" }}\nfilesystem = \"ext4\"\nrun = [\"/usr/sbin/agent > /said\"]\n\n[[binary]]\n\
         package = \"agent\"\nmanifest-path = \"../../agent/Cargo.toml\"\nfeatures = [\"loud\"]\nto = \"/usr/sbin/agent\"\n\
         mode = \"0750\"\n",
        folder.display()
    );
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", "with-agent", "--json", "--images"]).arg(folder.join("images"));
    command.arg("--output").arg(folder.join("out")).env("XDG_CACHE_HOME", folder.join("cache"));
    // What would break a build that takes the caller's flags over.
    command.env("RUSTFLAGS", "--cfg nonsense_of_the_caller").env("CARGO_BUILD_TARGET", "no-such-target");
    command.output().expect("xtask runs")
}

fn state(output: &Output) -> String {
    let about: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    about["images"][0]["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_program_of_a_package_runs_on_a_root_without_a_c_library() {
    if !is_root() || !have(&["busybox", "newuidmap", "file"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    busybox_base(folder);
    write_package(folder, "fn main() { println!(\"hello {}\", env!(\"CARGO_PKG_VERSION\")) }\n");
    let output = build(folder);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let image = folder.join("out/with-agent/rootfs.ext4");
    {
        let mounted = Mounted::read_only(&image);
        assert_eq!(fs::read_to_string(mounted.path().join("said")).expect("the step's output"), "hello 1.2.3\n");
        let said = succeed(Command::new("chroot").arg(mounted.path()).arg("/usr/sbin/agent"));
        assert_eq!(said.stdout, b"hello 1.2.3\n");
        let said = succeed(Command::new("file").arg("-b").arg(mounted.path().join("usr/sbin/agent")));
        assert!(String::from_utf8_lossy(&said.stdout).contains("static"), "{said:?}");
    }

    // The program is part of what the image is made from.
    assert_eq!(state(&build(folder)), "up-to-date");
    write_package(
        folder,
        "fn main() { println!(\"{}\", if cfg!(feature = \"loud\") { \"HELLO\" } else { \"hello\" }) }\n",
    );
    let output = build(folder);
    assert_eq!(state(&output), "built");
    let good = fs::read(&image).expect("an image");
    assert_eq!(
        fs::read_to_string(Mounted::read_only(&image).path().join("said")).expect("the step's output"),
        "HELLO\n"
    );

    // One that does not compile names its line of the spec, shows what the compiler says, and costs nothing.
    write_package(folder, "fn main() { no_such_function() }\n");
    let output = build(folder);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("with-agent/image.toml:5") && said.contains("cannot find function `no_such_function`"),
        "{said}"
    );
    assert!(fs::read(&image).expect("the image") == good);
}

/// Both are compiled before an image is made, in one target folder of cargo's.
#[test]
fn images_with_one_program_in_two_ways_get_each_its_own() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let workshop = Workshop::new();
    let program = "fn main() { println!(\"{}\", if cfg!(feature = \"loud\") { \"HELLO\" } else { \"hello\" }) }\n";
    write_package(&workshop.path(""), program);
    for (name, features) in [("loud", "\"loud\""), ("quiet", "")] {
        let binary = "[[binary]]\npackage = \"agent\"\nmanifest-path = \"../../agent/Cargo.toml\"\nto = \"/agent\"\n";
        workshop.spec(name, &format!("run = [\"/agent > /said\"]\n{binary}features = [{features}]\n"));
    }
    succeed(&mut workshop.xtask(&["image", "loud", "quiet"]));
    for (name, expected) in [("loud", "HELLO\n"), ("quiet", "hello\n")] {
        let said = succeed(Command::new("debugfs").args(["-R", "cat /said"]).arg(workshop.image(name)));
        assert_eq!(String::from_utf8_lossy(&said.stdout), expected);
    }
    // A plan of what is built finds each again.
    let output = succeed(&mut workshop.xtask(&["list"]));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("up to date").count(), 2, "{said}");
}

#[test]
fn a_program_of_the_workspace_runs_on_debian() {
    if !is_root() || !have(&["mmdebstrap", "newuidmap", "e2fsck"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    write_workspace(folder);
    let image = folder.join("images/with-agent");
    fs::create_dir_all(&image).expect("a folder");
    let spec = "base = { debian = \"trixie\" }\nfilesystem = \"ext4\"\nrun = [\"agent > /said\"]\n";
    fs::write(image.join("image.toml"), [spec, AGENT].concat()).expect("a spec");
    // No folder is named: the specs and the results are the workspace's.
    succeed(xtask().args(["image", "with-agent"]).current_dir(folder));
    let image = folder.join("target/images/with-agent/rootfs.ext4");
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let mounted = Mounted::read_only(&image);
    assert_agent_runs(mounted.path(), "debian");
    let said = fs::read_to_string(mounted.path().join("said")).expect("what the step's run said");
    assert_eq!(said, "hello from a workspace on debian\n");
}
