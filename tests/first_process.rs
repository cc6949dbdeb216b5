//! What a machine starts: an image's own init stays as it is where nothing has to come before it, and what a machine could not
//! start, or not as it is meant to, is said when the image is built.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use snug_tests::{have, succeed, xtask};

/// A base of one static program that is its own init, as images `FROM scratch` are; no shell.
const BASE: &str = r#"
    mkdir root
    cp "$(command -v busybox)" root/init
    tar --create --file base.tar --owner 0 --group 0 -C root init
    chmod 644 root/init
    tar --create --file plain.tar --owner 0 --group 0 -C root init
"#;

/// Builds a spec of these lines into `folder/out`.
fn build(folder: &Path, spec: &str) -> Output {
    let place = folder.join("images/one");
    fs::create_dir_all(&place).expect("a folder");
    fs::write(place.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    // Whoever wants to hear little still hears this.
    command.args(["image", "one", "-q", "--images"]).arg(folder.join("images")).arg("--output").arg(folder.join("out"));
    command.output().expect("xtask runs")
}

fn warnings(output: &Output) -> Vec<String> {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said.lines().filter(|line| line.contains("warning: ")).map(ToOwned::to_owned).collect()
}

#[test]
fn a_static_init_without_a_shell_is_started_as_it_is() {
    if !have(&["busybox", "debugfs", "tar2sqfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    succeed(Command::new("bash").args(["-ec", BASE]).current_dir(folder));
    let base = |name: &str| format!("base = {{ tar = \"{}\" }}\n", folder.join(name).display());
    let contents = || fs::read_to_string(folder.join("out/one/contents.mtree")).expect("a list");

    let output = build(folder, &(base("base.tar") + "filesystem = \"ext4\"\n"));
    assert!(warnings(&output).is_empty(), "{output:?}");
    let dump = folder.join("dumped");
    let words = format!("dump /init {}", dump.display());
    succeed(Command::new("debugfs").args(["-R", &words]).arg(folder.join("out/one/rootfs.ext4")));
    assert!(fs::read(&dump).expect("a file") == fs::read(folder.join("root/init")).expect("a file"));
    assert!(!contents().contains("usr/lib/snug"));

    // Read-only it starts just so, and nothing can make it writable.
    let output = build(folder, &(base("base.tar") + "filesystem = \"squashfs\"\n"));
    let said = warnings(&output);
    assert!(
        said.len() == 1
            && said[0].starts_with("warning: one: ")
            && said[0].contains("read-only root")
            && said[0].contains("/bin/sh"),
        "{said:?}"
    );
    assert!(!contents().contains("usr/lib/snug"));
    let image = fs::read(folder.join("out/one/rootfs.squashfs")).expect("an image");

    // What was asked for is not left out.
    let wanted = "filesystem = { type = \"squashfs\", overlay = \"32MiB\" }\n";
    let output = build(folder, &(base("base.tar") + wanted));
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the overlay that its spec asks for") && said.contains("hint: "), "{said}");
    assert!(fs::read(folder.join("out/one/rootfs.squashfs")).expect("the image before") == image);

    let output = build(folder, &(base("plain.tar") + "filesystem = \"ext4\"\n"));
    let said = warnings(&output);
    assert!(said.len() == 1 && said[0].contains("/init is not executable (mode 0644)"), "{said:?}");
}
