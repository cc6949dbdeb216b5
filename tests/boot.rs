//! The image starts a machine: QEMU with Debian's kernel, watched over the serial console and reached over SSH.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snug::cache::Cache;
use snug::check::boot::{self, Accelerator, BootRequest, Disk, Guest, Kernel};
use snug::report::progress::Progress;
use snug_tests::{have, openclaw_image, succeed, workspace, xtask};

/// What `/init` says on its way, in order.
const STAGES: &[&str] = &[
    "init: mounts",
    "init: root writable",
    "init: clock",
    "init: entropy",
    "init: hostname openclaw",
    "init: network eth0 10.0.2.15/24 via 10.0.2.2",
    "init: host keys ed25519 ecdsa",
    "init: authorized keys 1",
    "init: sshd",
    "init: ready",
];

#[test]
fn openclaw_boots_lets_its_key_holder_in_and_switches_off() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "ssh-keygen"]) {
        return;
    }
    let Some(image) = openclaw_image() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (key, public_key) = throw_away_key(folder.path());
    let kernel = debians_kernel();
    let (report, mut guest) = boot::boot_and_keep(&BootRequest {
        kernel: &kernel,
        disks: &[Disk::discarding_writes(&image)],
        arguments: &[boot::authorized_key_argument(&public_key)],
        expectations: STAGES,
        ssh: true,
        accelerator: Accelerator::Tcg,
        budget: boot::DEFAULT_BUDGET,
        log: folder.path().join("serial.log"),
    })
    .unwrap_or_else(|error| panic!("{error:#}"));

    let times: Vec<_> = report.seen.iter().map(|(_, time)| time).collect();
    assert!(times.is_sorted(), "stages out of order: {:#?}", report.seen);
    assert!(report.ssh_banner.as_deref().is_some_and(|banner| banner.starts_with("SSH-2.0-")), "{report:#?}");

    // Both accounts, by key; nobody by password.
    assert_eq!(login(&guest, &key, "root", "cat /proc/1/comm").stdout, b"init\n");
    let account = login(&guest, &key, "node", "id -un; touch ~/written; stat -c %U ~ ~/written");
    assert_eq!(account.stdout, b"node\nnode\nnode\n");
    let mut refused = ssh(&guest, "root");
    refused.args(["-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive"]);
    let refused = refused.arg("true").output().expect("ssh runs");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied (publickey)"), "{refused:?}");

    // An orphan is process 1's to collect: it ends, and no zombie stays.
    let orphan =
        "sh -c 'sleep 0.1 & echo $!' >/tmp/orphan; sleep 1; test ! -e /proc/$(cat /tmp/orphan) && echo collected";
    assert_eq!(login(&guest, &key, "root", orphan).stdout, b"collected\n");

    // sshd is started again when it dies.
    login(&guest, &key, "root", "kill -KILL $(cat /run/sshd.pid)");
    guest.wait_for("init: sshd ended").unwrap_or_else(|error| panic!("{error}"));
    guest.read_ssh_banner().unwrap_or_else(|error| panic!("{error}"));

    // SIGTERM to process 1 is an orderly end.
    let _ = ssh_with(&guest, &key, "root").arg("kill -TERM 1").output().expect("ssh runs");
    guest.wait_for("init: stopped").unwrap_or_else(|error| panic!("{error}"));
    guest.wait_for_end().unwrap_or_else(|error| panic!("{error}"));
}

/// What makes alpine-ssh of alpine-ssh-key, on a Debian root, which is at hand wherever tests run: a machine gets its
/// password at boot. The hash is what `openssl passwd -6 -salt snug 'hen sesame'` prints.
#[test]
fn a_password_given_at_boot_lets_in_and_another_does_not() {
    const HASH: &str = "JDYkc251ZyRTLzg0cXJOaElwVWpoMkw5RWpLOUxsbnFwLnBYWkZpYlh4LzRSczJpZmd6bS9jQkJoM01ld2F0LkExWGhFWWIzRE1MUkFra3hNaWFDbm1nZ25GYk1vMAo=";
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "ssh-keygen", "mmdebstrap", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = folder.path().join("images");
    std::fs::create_dir(&images).expect("a folder");
    for name in ["shared", "debian-ssh-key", "alpine-ssh"] {
        succeed(Command::new("cp").arg("-R").arg(workspace().join("images").join(name)).arg(&images));
    }
    let path = images.join("alpine-ssh/image.toml");
    let spec = std::fs::read_to_string(&path).expect("a spec");
    let on_debian = spec.replace("\"alpine-ssh-key\"", "\"debian-ssh-key\"").replace("max-size", "# max-size");
    assert_ne!(spec, on_debian);
    std::fs::write(&path, on_debian).expect("a spec");
    succeed(xtask().args(["image", "alpine-ssh", "--images"]).arg(&images).arg("--output").arg(folder.path()));

    let (key, public_key) = throw_away_key(folder.path());
    let (_, mut guest) = boot::boot_and_keep(&BootRequest {
        kernel: &debians_kernel(),
        disks: &[Disk::discarding_writes(&folder.path().join("alpine-ssh/rootfs.ext4"))],
        arguments: &[boot::authorized_key_argument(&public_key), format!("any.root_password_hash_b64={HASH}")],
        expectations: &["root password: set", "init: ready"],
        ssh: true,
        accelerator: Accelerator::Tcg,
        budget: 5 * boot::DEFAULT_BUDGET,
        log: folder.path().join("serial.log"),
    })
    .unwrap_or_else(|error| panic!("{error:#}"));

    let by_password = |password: &str| {
        let answer = folder.path().join("answer");
        std::fs::write(&answer, format!("#!/bin/sh\necho '{password}'\n")).expect("a script");
        succeed(Command::new("chmod").arg("0755").arg(&answer));
        let mut command = ssh_asking(&guest, "root");
        command.args(["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1", "echo $USER is in"]);
        command.env("SSH_ASKPASS", answer).env("SSH_ASKPASS_REQUIRE", "force").output().expect("ssh runs")
    };
    let right = by_password("hen sesame");
    assert_eq!(right.stdout, b"root is in\n", "{right:?}");
    let wrong = by_password("open sesame");
    assert!(!wrong.status.success(), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("Permission denied"), "{wrong:?}");
    // The shared rest of sshd's settings still holds, and a key opens as before.
    let settings = login(&guest, &key, "root", "sshd -T").stdout;
    let settings = String::from_utf8_lossy(&settings);
    for line in ["permitemptypasswords no", "maxauthtries 4", "x11forwarding no", "passwordauthentication yes"] {
        assert!(settings.contains(line), "{line} in {settings}");
    }
    let _ = ssh_with(&guest, &key, "root").arg("kill -TERM 1").output().expect("ssh runs");
    guest.wait_for_end().unwrap_or_else(|error| panic!("{error}"));
}

/// Kernels are 90 MB each and change rarely: they are kept where the tool keeps them.
pub(crate) fn debians_kernel() -> Kernel {
    let kernel = Cache::open().and_then(|cache| Kernel::fetch(&cache, &Progress::hidden()));
    kernel.expect("a kernel")
}

fn throw_away_key(folder: &Path) -> (PathBuf, String) {
    let key = folder.join("key");
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "throw-away", "-f"]).arg(&key));
    let public_key = std::fs::read_to_string(folder.join("key.pub")).expect("ssh-keygen wrote it");
    (key, public_key)
}

#[track_caller]
fn login(guest: &Guest, key: &Path, account: &str, command: &str) -> Output {
    succeed(ssh_with(guest, key, account).arg(command))
}

fn ssh_with(guest: &Guest, key: &Path, account: &str) -> Command {
    let mut command = ssh(guest, account);
    command.args(["-o", "IdentitiesOnly=yes", "-i"]).arg(key);
    command
}

/// Without a configuration of the person who runs the test, and without questions.
fn ssh(guest: &Guest, account: &str) -> Command {
    let mut command = ssh_asking(guest, account);
    command.args(["-o", "BatchMode=yes"]);
    command
}

/// As [`ssh`], with questions.
fn ssh_asking(guest: &Guest, account: &str) -> Command {
    let address = guest.ssh_address();
    let mut command = Command::new("ssh");
    command
        .args(["-F", "/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-p", &address.port().to_string()])
        .args(["-l", account, &address.ip().to_string()]);
    command
}
