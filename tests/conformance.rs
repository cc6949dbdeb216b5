//! One spec built by every engine: the same tree, entry by entry, and the same image, byte for byte.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use snug_tests::{have, is_root, succeed, workspace, xtask};

use crate::containers::{Dockerd, Podman};
use crate::registry::Registry;

/// Which registries there are, for the builds of one test.
const REGISTRIES: &str = "registries.conf";

/// Times are clamped to this, so that trees do not depend on when they were built.
const EPOCH: &str = "1700000000";

/// What a base may contain that engines lose: extended attributes, times before 1970, holes, devices, links.
const DRESS_THE_BASE: &str = r#"
    cd "$1"
    echo noted > srv/noted; setfattr -n user.note -v 'from the base' srv/noted; setfattr -n trusted.note -v deep srv/noted
    echo able > srv/able; setcap cap_net_bind_service=ep srv/able
    mkdir srv/folder; setfattr -n user.note -v folder srv/folder; chmod 1751 srv/folder
    echo old > srv/old; touch -d 1960-01-02T03:04:05Z srv/old
    echo listed > srv/listed; setfacl -m u:33:r srv/listed
    truncate -s 3M srv/sparse; printf tail >> srv/sparse
    echo linked > srv/link-a; ln srv/link-a srv/link-b
    mknod srv/tape c 9 128; chmod 640 srv/tape; chown 6:26 srv/tape; mknod srv/gone b 7 7
    mkfifo srv/pipe
    printf '#!/bin/sh\n' > srv/set-id; chown 5:60 srv/set-id; chmod 6755 srv/set-id
    echo odd > "$(printf 'srv/caf\351 \n name')"
    name=$(printf 'n%.0s' $(seq 200)); mkdir -p "srv/$name/$name"; echo deep > "srv/$name/$name/file"
    ln -sf ../proc/self/mounts etc/mtab
    chmod 0751 .
"#;

const SPEC: &str = r##"
packages = ["iputils-ping", "libcap2-bin"]
hostname = "conformance"
filesystem = "ext4"
env = { GREETING = "a \"quoted\" $word" }
run = [
    "env | sort > /srv/environment; umask > /srv/umask; id > /srv/id",
    "test -e /usr/sbin/policy-rc.d && test -c /dev/null && test \"$(stat -c %a /tmp)\" = 1777",
    "echo one > /srv/first; ln /srv/first /srv/second; mkfifo -m 600 /srv/queue",
    "getcap /usr/local/bin/tool | grep -q cap_net_raw && test -u /usr/local/bin/set-id",
    "printf '#!/bin/sh\\n' > /srv/mine; chmod 4711 /srv/mine; chown 7:8 /srv/mine; setcap cap_setgid=ep /srv/mine",
    "rm /srv/gone; echo more >> /srv/able; touch -d 1999-01-01T00:00:00Z /srv/able",
    """
        mkdir -p /srv/many
        for i in $(seq 50); do echo "$i" > "/srv/many/$i"; done
    """,
    "mv /srv/many /srv/moved; ln -s ../moved/1 /srv/folder/link",
]
exclude = ["/usr/share/doc/*", "/usr/share/man", "/srv/moved/4*"]

[[file]]
content = "#!/bin/sh\n"
to = "/usr/local/bin/tool"
mode = "0755"
capabilities = "cap_net_raw=ep"
xattrs = { "user.origin" = "the spec" }

[[file]]
content = "#!/bin/sh\n"
to = "/bin/set-id"
mode = "0644"

[[file]]
from = "files/tree"
to = "/usr/local"
owner = "games:nogroup"

[[file]]
content = "#!/bin/sh\n"
to = "/usr/local/bin/set-id"
mode = "4755"
owner = "daemon:daemon"

[[device]]
path = "/srv/devices/null"
type = "char"
major = 1
minor = 3
mode = "0666"
owner = "root:tty"
"##;

/// Python's own reader lists an archive, one line an entry: everything about it, and a digest of its content.
const LIST: &str = r#"
import hashlib, sys, tarfile
kinds = {b"0": "file", b"1": "link", b"2": "symlink", b"3": "char", b"4": "block", b"5": "directory", b"6": "fifo"}
archive = tarfile.open(sys.argv[1])
for entry in archive:
    words = [ascii(entry.name), kinds[entry.type], "%04o" % entry.mode, "%d:%d" % (entry.uid, entry.gid), str(entry.mtime)]
    if entry.isreg():
        words += [str(entry.size), hashlib.sha256(archive.extractfile(entry).read()).hexdigest()]
    if entry.linkname:
        words += ["->", ascii(entry.linkname)]
    if entry.isdev():
        words += ["%d,%d" % (entry.devmajor, entry.devminor)]
    words += [ascii(key[13:]) + "=" + ascii(value) for key, value in sorted(entry.pax_headers.items()) if "xattr" in key]
    print(" ".join(words))
"#;

/// What is needed to dress a base and to build as somebody else.
const TOOLS: [&str; 7] = ["mmdebstrap", "newuidmap", "setfattr", "setcap", "setfacl", "python3", "runuser"];

#[test]
fn every_engine_gives_the_same_tree() {
    if !have(&TOOLS) || !is_root() {
        return;
    }
    let folder = dressed_folder();
    let folder = folder.path();
    fs::write(folder.join(REGISTRIES), "").expect("a file");
    engines(
        folder,
        &format!("tar = \"{}\"", folder.join("base.tar").display()),
        "t",
        &["podman", "rootless", "docker"],
    );
}

/// The same base as an image of a registry, by an engine of either kind.
#[test]
fn engines_give_the_same_tree_on_a_base_from_a_registry() {
    if !have(&TOOLS) || !have(&["docker-registry", "skopeo"]) || !is_root() {
        return;
    }
    let folder = dressed_folder();
    let folder = folder.path();
    let registry = Registry::start(false);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/make_layout.py");
    let layout = folder.join("layout");
    succeed(Command::new("python3").arg(script).arg(&layout).arg(folder.join("base.tar")));
    registry.push(&layout, "test", "debian/dressed:1");
    // Where everybody can read it.
    fs::copy(registry.conf(), folder.join(REGISTRIES)).expect("a file");
    // Every engine starts from the one tar of the merged layers, so that the other test has the rest.
    engines(folder, &format!("oci = \"{}/debian/dressed:1\"", registry.host()), "r", &["podman"]);
}

/// A folder that everybody may enter, with the base in it.
fn dressed_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new().prefix("conformance").tempdir().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    dress_base(folder.path());
    folder
}

/// Builds the spec on `base` by the builtin engine as root and as somebody else, and by those of `containers` that this host
/// has; `mark` tells this test's user from another's.
fn engines(folder: &Path, base: &str, mark: &str, containers: &[&str]) {
    write_spec(folder, base);

    let builtin = Built::by("builtin", folder, xtask, |_| {});
    assert!(builtin.said.contains("conformance: engine builtin, the default\n"), "{}", builtin.said);
    let user = User::make(folder, mark);
    let unprivileged = || user.xtask();
    Built::by("unprivileged", folder, unprivileged, |_| {}).must_equal(&builtin);

    if containers.contains(&"podman")
        && let Some(podman) = Podman::prepare(&own_folder(folder, "podman"), "overlay")
    {
        let built = Built::by("podman", folder, xtask, |command| {
            podman.tell(command.env("SNUG_ENGINE", "podman"));
        });
        assert!(built.said.contains("conformance: engine podman, SNUG_ENGINE asks for it\n"), "{}", built.said);
        built.must_equal(&builtin);
        nothing_left(&|| {
            let mut command = Command::new("podman");
            podman.tell(&mut command);
            command
        });
    }
    let rootless = own_folder(folder, "rootless");
    succeed(Command::new("chown").arg(&user.name).arg(&rootless));
    // Overlay mounts are not everybody's; copies are.
    if containers.contains(&"rootless")
        && let Some(podman) = Podman::prepare(&rootless, "vfs")
    {
        let tell = |command: &mut Command| {
            podman.tell(command.env("SNUG_ENGINE", "podman"));
        };
        Built::by("rootless", folder, unprivileged, tell).must_equal(&builtin);
        nothing_left(&|| {
            let mut command = user.command("podman");
            podman.tell(&mut command);
            command
        });
    }
    if containers.contains(&"docker")
        && let Some(dockerd) = Dockerd::start(folder)
    {
        let built = Built::by("docker", folder, xtask, |command| {
            command.args(["--engine", "docker"]).env("DOCKER_HOST", dockerd.host());
        });
        built.must_equal(&builtin);
        nothing_left(&|| dockerd.docker());
    }
}

fn own_folder(folder: &Path, name: &str) -> PathBuf {
    let own = folder.join(name);
    fs::create_dir(&own).expect("a folder");
    own
}

/// A Debian base as a tar, with what engines lose.
fn dress_base(folder: &Path) {
    let images = folder.join("images/debian");
    fs::create_dir_all(&images).expect("a folder");
    fs::write(images.join("image.toml"), "base = { debian = \"trixie\" }\n").expect("a spec");
    let plain = folder.join("plain.tar");
    let mut export = xtask();
    export.args(["export", "debian", "--images"]).arg(folder.join("images")).arg("--output").arg(&plain);
    succeed(export.env("SOURCE_DATE_EPOCH", EPOCH));
    let root = own_folder(folder, "root");
    let tar = || {
        let mut command = Command::new("tar");
        command.args(["--numeric-owner", "--xattrs", "--xattrs-include=*"]);
        command
    };
    succeed(tar().arg("--extract").arg("--file").arg(&plain).arg("--directory").arg(&root));
    succeed(Command::new("bash").args(["-ec", DRESS_THE_BASE, "dress"]).arg(&root));
    let base = folder.join("base.tar");
    succeed(tar().args(["--create", "--format=pax", "--sparse", "--file"]).arg(&base).arg("-C").arg(&root).arg("."));
    fs::remove_dir_all(&root).expect("the root goes");
}

fn write_spec(folder: &Path, base: &str) {
    let image = folder.join("images/conformance");
    fs::create_dir_all(image.join("files/tree/share/deep")).expect("a folder");
    fs::write(image.join("files/tree/share/deep/data"), "data\n").expect("a file");
    std::os::unix::fs::symlink("deep/data", image.join("files/tree/share/link")).expect("a link");
    fs::write(image.join("files/tree/run-me"), "#!/bin/sh\n").expect("a file");
    fs::set_permissions(image.join("files/tree/run-me"), fs::Permissions::from_mode(0o744)).expect("its mode");
    fs::write(image.join("image.toml"), format!("base = {{ {base} }}\n{SPEC}")).expect("a spec");
}

fn nothing_left(engine: &dyn Fn() -> Command) {
    for list in [["ps", "--all", "--quiet"], ["images", "--all", "--quiet"]] {
        let left = String::from_utf8_lossy(&succeed(engine().args(list)).stdout).into_owned();
        assert_eq!(left, "", "{list:?}");
    }
}

/// What one engine made of the spec.
struct Built {
    label: &'static str,
    said: String,
    /// The tree's listing, a line an entry.
    tree: Vec<String>,
    image: PathBuf,
}

impl Built {
    /// Builds the image and exports the tree, with a cache of its own: the tree's fingerprint does not tell engines
    /// apart. `tell` names the engine.
    fn by(label: &'static str, folder: &Path, xtask: impl Fn() -> Command, tell: impl Fn(&mut Command)) -> Self {
        let own = folder.join("by").join(label);
        fs::create_dir_all(&own).expect("a folder");
        fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).expect("its mode");
        let tar = own.join("tree.tar");
        let run = |verb: &str, output: &Path| {
            let mut command = xtask();
            command.args([verb, "conformance", "--images"]).arg(folder.join("images")).arg("--output").arg(output);
            command.env("SOURCE_DATE_EPOCH", EPOCH).env("XDG_CACHE_HOME", own.join("cache"));
            command.env("CONTAINERS_REGISTRIES_CONF", folder.join(REGISTRIES));
            tell(&mut command);
            String::from_utf8_lossy(&succeed(&mut command).stderr).into_owned()
        };
        let said = run("image", &own.join("out"));
        run("export", &tar);
        let list = succeed(Command::new("python3").args(["-c", LIST]).arg(&tar));
        let tree = String::from_utf8_lossy(&list.stdout).lines().map(ToOwned::to_owned).collect();
        Built { label, said, tree, image: own.join("out/conformance/rootfs.ext4") }
    }

    #[track_caller]
    fn must_equal(&self, other: &Built) {
        let missing = |of: &Built, from: &Built| -> String {
            of.tree.iter().filter(|line| !from.tree.contains(line)).map(|line| format!("\n  {line}")).collect()
        };
        let (ours, theirs) = (missing(self, other), missing(other, self));
        assert!(
            ours.is_empty() && theirs.is_empty(),
            "only by {}:{ours}\nonly by {}:{theirs}\n{}",
            self.label,
            other.label,
            self.said
        );
        let same = fs::read(&self.image).expect("an image") == fs::read(&other.image).expect("an image");
        assert!(same, "the images by {} and {} differ", self.label, other.label);
    }
}

/// An unprivileged user of the test's own, who goes when this is dropped.
struct User {
    name: String,
    folder: PathBuf,
}

impl User {
    /// With a copy of the tool, and what cargo says of this workspace: neither may be where others can read.
    fn make(folder: &Path, mark: &str) -> Self {
        let name = format!("snug{mark}{}", std::process::id());
        succeed(Command::new("useradd").args(["--create-home", "--shell", "/bin/sh", &name]));
        let user = User { name, folder: own_folder(folder, "user") };
        let ids = fs::read_to_string("/etc/subuid").unwrap_or_default();
        if !ids.lines().any(|line| line.starts_with(&format!("{}:", user.name))) {
            let range = ["--add-subuids", "700000-765535", "--add-subgids", "700000-765535"];
            succeed(Command::new("usermod").args(range).arg(&user.name));
        }
        let metadata = succeed(
            Command::new(env!("CARGO"))
                .args(["metadata", "--no-deps", "--format-version", "1"])
                .current_dir(workspace()),
        );
        fs::write(user.folder.join("metadata.json"), metadata.stdout).expect("a file");
        let cargo = format!("#!/bin/sh\nexec cat {}\n", user.folder.join("metadata.json").display());
        for (name, content) in
            [("cargo", cargo.into_bytes()), ("xtask", fs::read(xtask().get_program()).expect("the tool"))]
        {
            let path = user.folder.join(name);
            fs::write(&path, content).expect("a file");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("its mode");
        }
        user
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("runuser");
        command.args(["--user", &self.name, "--", program]).current_dir(&self.folder);
        command.env("HOME", format!("/home/{}", self.name)).env("NO_COLOR", "1");
        command
    }

    fn xtask(&self) -> Command {
        let mut command = self.command(&self.folder.join("xtask").to_string_lossy());
        command.env("CARGO", self.folder.join("cargo"));
        command
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // Rootless podman leaves a process that holds its namespace. These are all that this user may signal.
        let _ = self.command("kill").args(["-KILL", "-1"]).output();
        let _ = Command::new("userdel").args(["--force", "--remove", &self.name]).output();
    }
}
