//! `boot --print`: a shell starts the machine by what was printed, and its key's holder logs in.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use snug_tests::{have, image, succeed, xtask};

/// More than a machine needs that is emulated on a busy host: what takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(300);

/// A shell and all that it started, killed when dropped.
struct Shell(Child);

impl Drop for Shell {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.0.wait();
    }
}

fn printed(options: &[&str], key: &Path, port: u16) -> Vec<u8> {
    let mut command = xtask();
    command.args(["boot", "debian-ssh-key", "--print", "--accel", "tcg", "--port", &port.to_string(), "--key"]);
    succeed(command.arg(key).args(options).stdin(Stdio::null())).stdout
}

#[test]
fn a_shell_starts_what_was_printed_and_the_key_opens_it() {
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh", "ssh-keygen"]) {
        return;
    }
    let Some(image) = image("debian-ssh-key") else { return };
    let before = fs::metadata(&image).and_then(|about| about.modified()).expect("the image");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("it's a key");
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).expect("a free port").port();
    // The private key stands for the public one beside it.
    let about: Value = serde_json::from_slice(&printed(&["--json"], &key, port)).expect("JSON");
    let words = |field: &str| -> Vec<String> {
        let words = about[field].as_array().unwrap_or_else(|| panic!("{field} in {about:#}"));
        words.iter().map(|word| word.as_str().expect("a word").to_owned()).collect()
    };
    assert!(Path::new(about["initramfs"].as_str().expect("a path")).is_file(), "{about:#}");
    let text = String::from_utf8(printed(&[], &key, port)).expect("text");
    assert!(text.lines().count() > 10 && text.contains("snapshot=on"), "{text}");
    let console = folder.path().join("console");
    let output = File::create(&console).expect("a file");
    let mut shell = Command::new("sh");
    shell.args(["-c", &text]).stdin(Stdio::null()).stdout(output.try_clone().expect("a file")).stderr(output);
    let mut shell = Shell(shell.process_group(0).spawn().expect("a shell"));
    let said = || String::from_utf8_lossy(&fs::read(&console).expect("the console")).into_owned();

    let login = words("ssh");
    let started = Instant::now();
    let answer = loop {
        let mut ssh = Command::new(&login[0]);
        ssh.args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]).args(&login[1..]);
        let answer = ssh.args(["id -un; touch /written && sync"]).stdin(Stdio::null()).output().expect("ssh runs");
        if answer.status.success() {
            break answer;
        }
        let ended = shell.0.try_wait().expect("the shell");
        assert!(ended.is_none(), "the machine ended: {ended:?}\n{}", said());
        assert!(started.elapsed() < PATIENCE, "nobody could log in within {PATIENCE:?}: {answer:?}\n{}", said());
        std::thread::sleep(Duration::from_millis(500));
    };
    assert_eq!(answer.stdout, b"root\n");
    drop(shell);
    assert_eq!(fs::metadata(&image).and_then(|about| about.modified()).expect("the image"), before);
}

#[test]
fn what_is_no_public_key_and_options_without_print_are_refused() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("key");
    fs::write(&key, "-----BEGIN OPENSSH PRIVATE KEY-----\n").expect("a file");
    let refused = |words: &[&str]| {
        let output = xtask().args(words).stdin(Stdio::null()).output().expect("xtask runs");
        assert_eq!(output.status.code(), Some(2), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for words in [["--json", "--ssh"], ["--port", "2222"], ["--print", "--ssh"]] {
        refused(&[&["boot", "debian-ssh-key"], &words[..]].concat());
    }
    if !have(&["qemu-system-x86_64", "apt-get", "dpkg-deb", "ssh"]) || image("debian-ssh-key").is_none() {
        return;
    }
    let key = key.to_str().expect("a path");
    let why = refused(&["boot", "debian-ssh-key", "--print", "--accel", "tcg", "--key", key]);
    assert!(why.contains("holds no public SSH key\nhint: name the file that ends in .pub"), "{why}");
}
