//! What `/init` of the images does for the accounts of a machine: it is root, and what is in an account's folder may have been
//! put there to have root write somewhere else. The functions are those of the script, run in a mount namespace with accounts
//! of its own, by the programs of Debian and of Alpine (busybox).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use snug_tests::{have, is_root, workspace};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKnot+a+real+one test";

/// Makes a folder of a machine: accounts, each with what it has prepared.
const PREPARE: &str = r#"
    umask 022
    mkdir -p etc root homes/mallory secret programs
    echo 'root:*:1:0:99999:7:::' >secret/shadow
    chmod 600 secret/shadow
    cp -p secret/shadow secret/before
    account() {
        echo "$1:x:$2:$2::$PWD/homes/$1:/bin/sh" >>etc/passwd
        mkdir -p homes/$1
        chown $2:$2 homes/$1
    }
    as() { own=$1; shift; setpriv --reuid $own --regid $own --clear-groups "$@"; }
    echo "root:x:0:0::$PWD/root:/bin/sh" >etc/passwd
    account link 1001
    as 1001 mkdir homes/link/.ssh
    as 1001 ln -s "$PWD/secret/shadow" homes/link/.ssh/authorized_keys
    account folder 1002
    as 1002 ln -s "$PWD/secret" homes/folder/.ssh
    # Where the kernel lets it, or from before the machine was this one's.
    account second 1003
    mkdir homes/second/.ssh
    ln secret/shadow homes/second/.ssh/authorized_keys
    chown 1003:1003 homes/second/.ssh
    account pipe 1004
    as 1004 mkdir homes/pipe/.ssh
    as 1004 mkfifo homes/pipe/.ssh/authorized_keys
    account dangling 1005
    as 1005 mkdir homes/dangling/.ssh
    as 1005 ln -s "$PWD/secret/new" homes/dangling/.ssh/authorized_keys
    account endless 1006
    as 1006 mkdir homes/endless/.ssh
    as 1006 truncate -s 1T homes/endless/.ssh/authorized_keys
    # An account whose home is another's.
    echo "thief:x:1007:1007::$PWD/secret:/bin/sh" >>etc/passwd
    account honest 1010
    account again 1011
    as 1011 mkdir -m 755 homes/again/.ssh
    as 1011 sh -c 'printf %s "by hand, without an end" >homes/again/.ssh/authorized_keys'
    account daemon 101
    # Only what a test wants of this host: setpriv stays out, and chroot of coreutils is in.
    for name in sh cat chmod chown chroot grep head id mkdir stat tail true; do
        ln -s "$(command -v $name)" programs/$name
    done
    # Alpine's, with and without su.
    for kind in busybox-su busybox; do
        mkdir $kind
        for name in $(busybox --list); do
            [ $name = busybox ] || ln -s "$(command -v busybox)" $kind/$name
        done
    done
    rm busybox/su
"#;

/// Runs the script's functions on those accounts.
const AUTHORIZE: &str = r#"
    set -e
    mount --bind etc/passwd /etc/passwd
    sed '/^main$/d' "$1" >functions
    timeout 60 $2 -c '. ./functions; PATH=$1; authorize "$2"; authorize "$2"' sh "$3" "$4"
"#;

fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
    let about = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    (about.mode() & 0o7777, about.uid(), about.gid())
}

#[test]
fn keys_are_added_with_no_more_rights_than_the_account_has() {
    if !have(&["busybox", "setpriv", "unshare", "timeout"]) || !is_root() {
        return;
    }
    let init = workspace().join("images/shared/init");
    let all = "/usr/sbin:/usr/bin:/sbin:/bin";
    for (kind, shell, programs) in [
        ("setpriv", "dash", all),
        ("chroot", "dash", "programs"),
        ("busybox with su", "busybox ash", "busybox-su"),
        ("busybox without su", "busybox ash", "busybox"),
    ] {
        let folder =
            tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
        let folder = folder.expect("a temporary folder");
        let folder = folder.path();
        let output = Command::new("bash").args(["-ec", PREPARE]).current_dir(folder).output().expect("bash runs");
        assert!(output.status.success(), "{kind}: {output:?}");
        let programs = if programs == all { programs.into() } else { folder.join(programs).display().to_string() };
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", AUTHORIZE, "sh"]).arg(&init);
        let output: Output =
            command.arg(shell).arg(programs).arg(KEY).current_dir(folder).output().expect("unshare runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{kind}: {output:?}");

        // Nothing of root's was written, given away or made.
        let secret = folder.join("secret");
        assert_eq!(mode_and_owner(&secret), (0o755, 0, 0), "{kind}");
        assert_eq!(mode_and_owner(&secret.join("shadow")), (0o600, 0, 0), "{kind}");
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(read(&secret.join("shadow")), read(&secret.join("before")), "{kind}");
        let mut left: Vec<_> =
            fs::read_dir(&secret).expect("a folder").map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["before", "shadow"], "{kind}");
        for refused in ["link", "folder", "second", "pipe", "dangling"] {
            assert_eq!(said.matches(&format!("/homes/{refused}/.ssh")).count(), 2, "{kind}, {refused}: {said}");
        }
        assert!(said.contains(&format!("{} is not the folder of user 1007", secret.display())), "{kind}: {said}");

        // And those who wanted nothing else have their key, once.
        for (account, uid, before) in
            [("honest", 1010, ""), ("again", 1011, "by hand, without an end\n"), ("../root", 0, "")]
        {
            let folder = folder.join("homes").join(account).join(".ssh");
            assert_eq!(mode_and_owner(&folder), (0o700, uid, uid), "{kind}, {account}");
            let file = folder.join("authorized_keys");
            assert_eq!(mode_and_owner(&file), (0o600, uid, uid), "{kind}, {account}");
            assert_eq!(read(&file), format!("{before}{KEY}\n"), "{kind}, {account}");
        }
        assert!(!folder.join("homes/daemon/.ssh").exists(), "{kind}");
    }
}
