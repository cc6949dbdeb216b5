//! The image starts a machine: QEMU with Debian's kernel, watched over the serial console and reached over SSH.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snug::check::boot::{self, Accelerator, BootRequest, Disk, Guest, Kernel};
use snug_tests::{have, openclaw_image, succeed};

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
    let kernel = Kernel::fetch(&cache()).expect("a kernel");
    let (report, mut guest) = boot::boot_and_keep(&BootRequest {
        kernel: &kernel,
        disks: &[Disk::kept_as_it_is(&image)],
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

/// Kernels are 90 MB each and change rarely: they are kept where the tool keeps them.
pub fn cache() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    cache
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .expect("HOME is set")
        .join("snug")
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
    let address = guest.ssh_address();
    let mut command = Command::new("ssh");
    command
        .args(["-F", "/dev/null", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=30", "-p", &address.port().to_string()])
        .args(["-l", account, &address.ip().to_string()]);
    command
}
