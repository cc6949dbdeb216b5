//! `check`: sound images pass with every reader, and one changed byte is found and named.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use snug_tests::{have, is_root, openclaw_image, succeed, xtask};

/// A tree with every file type, long and short symlinks, names that need escaping, holes and extended attributes.
const SPEC: &str = r#"
hostname = "checked"
run = [
    "mkfifo /pipe; ln /bin/busybox /bin/again; ln -s /a/target/that/is/so/long/that/no/inode/holds/it/inside/itself /long",
    "echo canary > /etc/canary; echo spaces > '/etc/a \"name\" with \\ in it'",
    "mkdir -p /deep/er/and/deeper/still; for n in $(seq 200); do echo $n > /deep/$n; done",
    "dd if=/dev/zero of=/holes bs=1 count=1 seek=300000 2>/dev/null; chmod 4711 /holes; touch -d 1999-12-31 /holes",
]
file = [
    { content = "tool", to = "/bin/tool", mode = "0755", owner = "7:70000", capabilities = "cap_net_raw=ep", xattrs = { "user.note" = "a value" } },
]
device = [{ path = "/srv/null", type = "char", major = 1, minor = 3, mode = "0666" }]
"#;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = r#"
            mkdir -p root/bin root/etc root/dev root/srv
            cp "$(command -v busybox)" root/bin/busybox
            for name in sh mkfifo ln echo mkdir seq dd chmod touch; do ln -s busybox root/bin/$name; done
            tar -cf base.tar --owner 0 --group 0 -C root .
        "#;
        succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
        let image = folder.path().join("images/checked");
        fs::create_dir_all(&image).expect("a folder");
        let base = folder.path().join("base.tar");
        let spec = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{SPEC}", base.display());
        fs::write(image.join("image.toml"), spec).expect("a spec");
        Fixture { folder }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = xtask();
        command.args([verb, "checked", "--images"]).arg(self.folder.path().join("images"));
        command.arg("--output").arg(self.folder.path().join("out"));
        command.env("XDG_CACHE_HOME", self.folder.path().join("cache"));
        command
    }

    fn build(&self, kind: &str) -> PathBuf {
        succeed(self.command("image").args(["--filesystem", kind]));
        self.folder.path().join("out/checked").join(format!("rootfs.{kind}"))
    }

    fn check(&self, reader: &str) -> Output {
        self.command("check").args(["--json", "--reader", reader]).output().expect("xtask runs")
    }
}

/// The checks of the only image in a report, by their question.
fn checks(output: &Output) -> impl Fn(&str) -> Value {
    let reports: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    move |question| {
        let checks = reports["images"][0]["checks"].as_array().expect("checks");
        checks.iter().find(|check| check["question"] == question).unwrap_or_else(|| panic!("{question}")).clone()
    }
}

fn readers() -> &'static [&'static str] {
    if is_root() { &["kernel", "tools"] } else { &["tools"] }
}

/// Flips the lowest bit of the byte at `offset`.
fn flip(image: &Path, offset: u64) {
    let file = fs::File::options().read(true).write(true).open(image).expect("the image");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte");
    file.write_all_at(&[byte[0] ^ 1], offset).expect("written");
}

#[test]
fn every_reader_finds_a_sound_image_sound_and_a_flipped_byte_by_its_path() {
    if !have(&["busybox", "newuidmap", "e2fsck", "debugfs"]) {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.build("ext4");
    for reader in readers() {
        let output = fixture.check(reader);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let check = checks(&output);
        for question in ["digest", "fsck", "tree", "fits"] {
            assert_eq!(check(question)["state"], "passed", "{question}");
        }
        assert!(check("tree")["notes"].is_null(), "{}", check("tree"));
        assert!(check("fits")["said"].as_str().expect("words").contains("1 file with capabilities"));
    }
    // debugfs says where the content lies.
    let block = succeed(Command::new("debugfs").args(["-R", "blocks /etc/canary"]).arg(&image));
    let block: u64 = String::from_utf8_lossy(&block.stdout).trim().parse().expect("one block");
    flip(&image, block * 4096);
    for reader in readers() {
        let output = fixture.check(reader);
        assert_eq!(output.status.code(), Some(4));
        let check = checks(&output);
        let findings = check("tree")["findings"].clone();
        assert_eq!(findings.as_array().expect("findings").len(), 1, "{findings}");
        assert_eq!(findings[0]["place"], "/etc/canary");
        assert!(findings[0]["what"].as_str().expect("words").starts_with("its content differs"));
        // ext4 has no checksums of file content.
        assert_eq!(check("fsck")["state"], "passed");
        assert_eq!(check("digest")["state"], "failed");
    }
    // No mount and no loop device is left behind.
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(" /mnt ext4"), "{mounts}");
    let loops = succeed(Command::new("losetup").arg("--associated").arg(&image));
    assert!(loops.stdout.is_empty(), "{loops:?}");
}

#[test]
fn a_changed_attribute_is_named_and_a_damaged_inode_fails() {
    if !have(&["busybox", "newuidmap", "e2fsck", "debugfs"]) {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.build("ext4");
    let script = fixture.folder.path().join("script");
    let commands = "set_inode_field /etc/canary mode 0100755\nset_inode_field /pipe uid 3\nunlink /long\n\
                    ea_rm /bin/tool user.note\n";
    fs::write(&script, commands).expect("a script");
    succeed(Command::new("debugfs").args(["-w", "-f"]).arg(&script).arg(&image));
    for reader in readers() {
        let output = fixture.check(reader);
        assert_eq!(output.status.code(), Some(4));
        let findings = checks(&output)("tree")["findings"].clone();
        let said: Vec<String> = findings
            .as_array()
            .expect("findings")
            .iter()
            .map(|finding| format!("{}: {}", finding["place"].as_str().unwrap(), finding["what"].as_str().unwrap()))
            .collect();
        insta::allow_duplicates! {
            insta::assert_snapshot!(said.join("\n"), @r"
            /bin/tool: the extended attribute user.note is missing
            /etc/canary: mode 0755 instead of 0644
            /long: this symlink is missing
            /pipe: owner 3:0 instead of 0:0
            ");
        }
    }
}

#[test]
fn squashfs_is_compared_name_by_name_and_byte_by_byte() {
    if !have(&["busybox", "newuidmap", "tar2sqfs", "sqfs2tar", "unsquashfs"]) {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.build("squashfs");
    for reader in readers() {
        let output = fixture.check(reader);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert!(checks(&output)("tree")["notes"].is_null());
    }
    // The compressed content of files follows the superblock.
    flip(&image, 96 + 2000);
    for reader in readers() {
        let output = fixture.check(reader);
        assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(checks(&output)("tree")["state"], "failed", "{reader}");
    }
}

#[test]
fn a_changed_block_of_a_sealed_image_is_named() {
    if !have(&["busybox", "newuidmap", "e2fsck", "debugfs", "veritysetup"]) {
        return;
    }
    let fixture = Fixture::new();
    fixture.build("ext4+verity");
    let image = fixture.folder.path().join("out/checked/rootfs.ext4");
    let output = fixture.check("tools");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let verity = checks(&output)("verity");
    // Every judge was asked.
    assert!(verity["judge"].as_str().expect("words").contains("veritysetup") && verity["notes"].is_null(), "{verity}");
    // An unused block: only the hash tree covers it.
    let block = 1000;
    flip(&image, block * 4096 + 5);
    let output = fixture.check("tools");
    assert_eq!(output.status.code(), Some(4));
    let check = checks(&output);
    assert_eq!(check("verity")["findings"][0]["place"], format!("block {block} (byte {})", block * 4096));
    assert_eq!(check("tree")["state"], "passed");
}

#[test]
fn an_image_that_is_not_what_it_should_be_is_not_published() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let fixture = Fixture::new();
    let image = fixture.build("ext4");
    let good = fs::read(&image).expect("an image");
    let spec = fixture.folder.path().join("images/checked/image.toml");
    let step = "run = [\n    \"mkdir -p /root/.ssh; echo key > /root/.ssh/id_ed25519\",";
    let text = fs::read_to_string(&spec).expect("the spec").replace("run = [", step);
    fs::write(&spec, text).expect("a spec");
    let output = fixture.command("image").output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(4));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("fits: /root/.ssh/id_ed25519: a private SSH key"), "{said}");
    assert!(fs::read(&image).expect("the good image") == good, "the last good image was touched");
    succeed(fixture.command("image").arg("--no-check"));
    assert_eq!(fixture.check("tools").status.code(), Some(4));
}

#[test]
fn a_console_without_a_terminal_is_refused() {
    let output = xtask().args(["boot", "openclaw"]).stdin(Stdio::null()).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("needs a terminal") && said.contains("hint: "), "{said}");
}

/// Two boots: one after the other on the same disk.
#[test]
fn a_command_runs_in_the_guest_and_what_it_writes_can_be_kept() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "ssh-keygen"]) {
        return;
    }
    let Some(image) = openclaw_image() else { return };
    let before = fs::metadata(&image).and_then(|about| about.modified()).expect("the image");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk = folder.path().join("kept.ext4");
    let boot = |command: &str| {
        let mut boot = xtask();
        boot.args(["boot", "openclaw", "--accel", "tcg", "--ssh", "--persist"]).arg(&disk).args(["--", command]);
        boot.stdin(Stdio::null()).output().expect("xtask runs")
    };
    let output = boot("echo kept > /root/kept; exit 7");
    assert_eq!(output.status.code(), Some(7), "{}", String::from_utf8_lossy(&output.stderr));
    let output = boot("cat /root/kept");
    assert_eq!(output.stdout, b"kept\n", "{}", String::from_utf8_lossy(&output.stderr));
    succeed(Command::new("e2fsck").arg("-fn").arg(&disk));
    assert_eq!(fs::metadata(&image).and_then(|about| about.modified()).expect("the image"), before);
}

/// Two boots, by the command line of the documentation.
#[test]
fn openclaw_passes_every_check_and_boots() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "ssh-keygen", "e2fsck", "debugfs"]) {
        return;
    }
    if openclaw_image().is_none() {
        return;
    }
    let output =
        xtask().args(["check", "openclaw", "--boot", "--accel", "tcg", "--json"]).output().expect("xtask runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let check = checks(&output);
    for question in ["digest", "fsck", "tree", "fits", "boot", "commands", "power-off", "state"] {
        assert_eq!(check(question)["state"], "passed", "{question}");
    }
    let reports: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let boot = &reports["images"][0]["boot"];
    let time = |name: &str| boot[name].as_f64().unwrap_or_else(|| panic!("{name} in {boot}"));
    assert!(
        time("to-init-seconds") < time("to-network-seconds") && time("to-network-seconds") < time("to-ssh-seconds"),
        "{boot}"
    );
    assert!(boot["banner"].as_str().expect("a banner").starts_with("SSH-2.0-"));
    let commands = boot["commands"].as_array().expect("commands");
    assert!(commands.iter().any(|command| command["run"] == "openclaw --version"), "{boot}");
}

#[test]
fn what_was_not_built_is_told() {
    let fixture = Fixture::new();
    let output = fixture.check("auto");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("checked has not been built in") && said.contains("hint: cargo xtask image checked"),
        "{said}"
    );
}
