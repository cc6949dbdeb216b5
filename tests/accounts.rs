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

/// A machine of images with accounts that have prepared something, in a mount namespace: `node` and `browser` run what root
/// handles for them, and `other` is nobody.
const MACHINE: &str = r#"
    set -e
    for folder in /run /home /var/log /usr/local/bin; do
        mount -t tmpfs -o mode=0755 tmpfs $folder
    done
    cat >etc-passwd <<ACCOUNTS
root:x:0:0::/root:/bin/sh
node:x:61301:61301::/home/node:/bin/sh
browser:x:61302:61302::/home/browser:/bin/sh
other:x:61303:61303::/:/bin/sh
ACCOUNTS
    cut -d : -f 1-3 etc-passwd | sed 's/$/:/' >etc-group
    mount --bind etc-passwd /etc/passwd
    mount --bind etc-group /etc/group
    install -d -o node -g node /home/node /home/node/.openclaw /home/node/.openclaw/logs
    install -d -o browser -g browser /home/browser /var/log/browser-session
    install -m 755 "$1/openclaw/files/systemctl" "$1/browser-chromium/files/browser-session" /usr/local/bin
    log=/home/node/.openclaw/logs/gateway.log
    mkdir /home/secret
    echo top-secret >/home/secret/shadow
    chmod 600 /home/secret/shadow
    echo kept >/home/secret/openclaw-gateway.service
    as() { own=$1; shift; setpriv --reuid "$own" --regid "$own" --clear-groups "$@"; }
    section() { printf '\n=== %s\n' "$1"; }
    cd /
"#;

/// Runs a script on that machine and returns what it said, by sections.
#[track_caller]
fn on_machine(script: &str) -> Option<Vec<(String, String)>> {
    if !have(&["setpriv", "setsid", "flock", "unshare", "timeout", "ps"]) || !is_root() {
        return None;
    }
    let folder = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
    let folder = folder.expect("a temporary folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "timeout", "120", "sh", "-c"]);
    command.arg(format!("{MACHINE}\nset +e\nexec 2>&1\n{script}\ntrue")).arg("sh").arg(workspace().join("images"));
    let output = command.current_dir(folder.path()).output().expect("unshare runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    let sections = said.split("\n=== ").skip(1).filter_map(|section| section.split_once('\n'));
    Some(sections.map(|(name, text)| (name.to_owned(), text.to_owned())).collect())
}

/// What `said` has under a title.
#[track_caller]
fn under<'said>(said: &'said [(String, String)], title: &str) -> &'said str {
    said.iter().find(|(name, _)| name == title).map(|(_, text)| text.as_str()).unwrap_or_else(|| panic!("{said:?}"))
}

#[test]
fn what_root_asks_of_the_gateway_is_done_as_its_account() {
    let Some(said) = on_machine(
        r#"
        section 'a log that is a link'
        as node ln -s /home/secret/shadow $log
        systemctl status openclaw-gateway
        rm $log
        section 'a log that speaks'
        printf 'title \033]0;owned\007\302\2332J\n' >$log
        chown node $log
        systemctl status openclaw-gateway
        section 'a pipe for a number'
        as node mkdir -p /run/openclaw 2>/dev/null || install -d -o node -g node /run/openclaw
        as node mkfifo /run/openclaw/keeper.pid
        timeout 20 systemctl is-active openclaw-gateway; echo "status $?"
        rm /run/openclaw/keeper.pid
        section 'links that lead to others'
        as node mkdir -p /home/node/.config/systemd/user
        as node ln -s /home/secret /home/node/.config/systemd/user/default.target.wants
        systemctl disable openclaw-gateway; echo "status $?"
        systemctl enable openclaw-gateway; echo "status $?"
        cat /home/secret/openclaw-gateway.service
        rm /home/node/.config/systemd/user/default.target.wants
        section 'a gateway'
        printf '#!/bin/sh\nps -o user= -o tty= -p $$ >/home/node/who; exec sleep 61301\n' >/usr/local/bin/openclaw
        chmod 755 /usr/local/bin/openclaw
        systemctl --now enable openclaw-gateway; echo "status $?"
        systemctl is-enabled openclaw-gateway
        systemctl is-active openclaw-gateway
        as other /usr/local/bin/systemctl is-active openclaw-gateway
        as other /usr/local/bin/systemctl stop openclaw-gateway; echo "status $?"
        sleep 0.5
        cat /home/node/who
        systemctl show --property=ActiveState,User openclaw-gateway
        systemctl stop openclaw-gateway; echo "status $?"
        systemctl is-active openclaw-gateway; echo "status $?"
        "#,
    ) else {
        return;
    };
    let text = under(&said, "a log that is a link");
    assert!(text.contains("Active: inactive (dead)") && !text.contains("top-secret"), "{text}");
    let text = under(&said, "a log that speaks");
    assert!(text.contains("title ?]0;owned??2J\n"), "{text:?}");
    assert_eq!(under(&said, "a pipe for a number").trim_end(), "inactive\nstatus 3");
    let text = under(&said, "links that lead to others");
    assert_eq!(text.matches("status 1\n").count(), 2, "{text}");
    assert!(text.ends_with("kept\n"), "{text}");
    let text = under(&said, "a gateway");
    let denied = "Access denied: only root and node handle openclaw-gateway.service\nstatus 1";
    let wanted = format!(
        "status 0\nenabled\nactive\nactive\n{denied}\nnode     ?\nActiveState=active\nUser=node\nstatus 0\ninactive\nstatus 3"
    );
    assert_eq!(text.trim_end(), wanted);
}

#[test]
fn what_a_page_logs_is_shown_to_root_and_never_obeyed() {
    let Some(said) = on_machine(
        r#"
        printf '#!/bin/sh\nexit 1\n' >/usr/local/bin/socat
        cat >/usr/local/bin/chromium <<'PROGRAM'
#!/bin/sh
ps -o user= -o tty= -p $$
printf 'console: \033]0;owned\007\302\2332J\n'
PROGRAM
        chmod 755 /usr/local/bin/*
        section start
        browser-session start; echo "status $?"
        section status
        browser-session status; echo "status $?"
        section other
        as other /usr/local/bin/browser-session status; echo "status $?"
        section interrupted
        printf '#!/bin/sh\nexec sleep 61302\n' >/usr/local/bin/chromium
        browser-session start & started=$!
        while ! [ -e /run/browser-session/chromium.pid ]; do sleep 0.1; done
        kill -TERM $started; wait $started; echo "status $?"
        browser-session status
        "#,
    ) else {
        return;
    };
    let text = under(&said, "start");
    assert!(text.contains("browser  ?\nconsole: ?]0;owned??2J\nstatus 1"), "{text:?}");
    assert_eq!(under(&said, "status").trim_end(), "mode none\nstatus 3");
    let text = under(&said, "other");
    assert!(text.contains("only root and browser handle the browser\nstatus 1"), "{text}");
    assert_eq!(under(&said, "interrupted").trim_end(), "status 1\nmode none");
}
