//! An image on Alpine from a registry, with `apk add` of a package that the test's own key signed.
//!
//! Alpine's own repositories are not needed: the root comes from a wheel on PyPI that contains a disk image of Alpine, and
//! the package is made in it by its own apk.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use snug_tests::{Mounted, have, is_root, succeed, xtask};

use crate::binaries::{AGENT, assert_agent_runs, write_workspace};
use crate::registry::Registry;
use crate::wheels::tar_of_alpine;

/// Makes a package and a signed index of a repository, as `abuild` would.
const MAKE_REPOSITORY: &str = r#"
mkdir -p /srv/repository/x86_64 /tmp/tree/usr/bin
printf '#!/bin/sh\necho hello from a signed package\n' > /tmp/tree/usr/bin/greeter
chmod 755 /tmp/tree/usr/bin/greeter
cd /srv/repository/x86_64
apk mkpkg --sign-key /root/test.rsa -F /tmp/tree -I name:greeter -I version:1.0-r0 -I arch:x86_64 \
    -I description:greets -I depends:busybox -o greeter-1.0-r0.apk
apk mkndx --sign-key /root/test.rsa -o Packages.adb greeter-1.0-r0.apk
"#;

/// A server of files over TLS; it ends with the value.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("registry").join(name)
}

/// Writes the layout of an image that holds Alpine as it is installed on the wheel's disk, without kernel and modules.
fn layout_of_alpine(folder: &Path) -> PathBuf {
    let tar = tar_of_alpine(folder);
    let layout = folder.join("alpine-layout");
    succeed(Command::new("python3").arg(script("make_layout.py")).arg(&layout).arg(&tar));
    fs::remove_file(&tar).expect("the file");
    layout
}

#[test]
fn a_real_alpine_takes_a_signed_package_and_becomes_ext4_and_squashfs() {
    let tools = [
        "docker-registry",
        "skopeo",
        "htpasswd",
        "python3",
        "qemu-img",
        "openssl",
        "newuidmap",
        "tar2sqfs",
        "unsquashfs",
    ];
    if !have(&tools) || !is_root() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    // Its program is linked on this host, whose C library is not Alpine's.
    write_workspace(folder);
    let registry = Registry::start(false);
    registry.push(&layout_of_alpine(folder), "test", "library/alpine:3.23");
    registry.configure(&format!(
        "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.host()
    ));

    let openssl = |words: &[&str]| succeed(Command::new("openssl").args(words).current_dir(folder));
    openssl(&["genrsa", "-out", "test.rsa", "2048"]);
    openssl(&["rsa", "-in", "test.rsa", "-pubout", "-out", "test.rsa.pub"]);
    // The repository speaks TLS by an authority that only the host's bundle knows, as in a company's network.
    let name = ["-subj", "/CN=snug-test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"];
    let request =
        ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "tls.key", "-out", "tls.crt"];
    openssl(&[&request[..], &name].concat());

    let spec = |name: &str, text: String| {
        let place = folder.join("images").join(name);
        fs::create_dir_all(&place).expect("a folder");
        fs::write(place.join("image.toml"), text).expect("a spec");
        place
    };
    let alpine = "base = { oci = \"docker.io/library/alpine:3.23\" }\n";
    let command = |verb: &[&str]| {
        let mut command = xtask();
        command.args(verb).arg("--images").arg(folder.join("images")).current_dir(folder);
        command.env("XDG_CACHE_HOME", folder.join("cache")).env("CONTAINERS_REGISTRIES_CONF", registry.conf());
        command.env("SSL_CERT_FILE", folder.join("tls.crt"));
        command
    };

    let place = spec(
        "maker",
        format!(
            "{alpine}run = ['''{MAKE_REPOSITORY}''']\n\
             [[file]]\nfrom = \"test.rsa\"\nto = \"/root/test.rsa\"\n\
             [[file]]\nfrom = \"test.rsa.pub\"\nto = \"/etc/apk/keys/test.rsa.pub\"\n"
        ),
    );
    for key in ["test.rsa", "test.rsa.pub"] {
        fs::copy(folder.join(key), place.join(key)).expect("a key");
    }
    succeed(command(&["export", "maker"]).arg("--output").arg(folder.join("maker.tar")));
    succeed(Command::new("tar").arg("-xf").arg(folder.join("maker.tar")).arg("-C").arg(folder).arg("srv/repository"));
    let server = Command::new("python3")
        .arg(script("serve_tls.py"))
        .args(["srv/repository", "tls.crt", "tls.key"])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut server = Server(server.expect("python3 starts"));
    let mut port = String::new();
    BufReader::new(server.0.stdout.take().expect("a pipe")).read_line(&mut port).expect("a port");

    let place = spec(
        "alpine-local",
        format!(
            "{alpine}[[file]]\nfrom = \"test.rsa.pub\"\nto = \"/etc/apk/keys/test.rsa.pub\"\n\
             [[file]]\ncontent = \"v3 https://localhost:{}\\n\"\nto = \"/etc/apk/repositories\"\n",
            port.trim()
        ),
    );
    fs::copy(folder.join("test.rsa.pub"), place.join("test.rsa.pub")).expect("a key");
    let greeter = "base = { image = \"alpine-local\" }\npackages = [\"greeter=1.0-r0\"]\nfilesystem = \"ext4\"\n";
    spec("greeter", [greeter, AGENT].concat());
    let output = folder.join("out");
    succeed(command(&["image", "greeter"]).arg("--output").arg(&output));
    succeed(command(&["image", "greeter", "--filesystem", "squashfs"]).arg("--output").arg(&output));
    let text = fs::read(output.join("greeter/manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("JSON");
    let installed = manifest["packages"].as_array().expect("packages").iter().find(|one| one["name"] == "greeter");
    assert_eq!(installed.expect("the package")["version"], "1.0-r0");
    // What apk downloaded is kept for the next build, outside of the image.
    let kept =
        succeed(Command::new("find").arg(folder.join("cache/snug/downloads")).args(["-name", "greeter-1.0-r0.*.apk"]));
    assert!(!kept.stdout.is_empty());

    let image = output.join("greeter/rootfs.ext4");
    succeed(Command::new("e2fsck").arg("-fn").arg(&image));
    let mounted = Mounted::read_only(&image);
    assert_is_alpine_with_greeter(mounted.path());
    let unpacked = folder.join("unpacked");
    succeed(
        Command::new("unsquashfs")
            .args(["-quiet", "-no-progress", "-dest"])
            .arg(&unpacked)
            .arg(output.join("greeter/rootfs.squashfs")),
    );
    assert_is_alpine_with_greeter(&unpacked);

    // A version that the repository has not.
    let other = "base = { image = \"alpine-local\" }\npackages = [\"greeter=1.1-r0\"]\nfilesystem = \"ext4\"\n";
    spec("no-such-version", other.to_owned());
    let refused = command(&["image", "no-such-version"]).arg("--output").arg(&output).output().expect("xtask runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("no-such-version/image.toml:2") && said.contains("greeter-1.0-r0"), "{said}");

    // A package that the key did not sign stays out.
    openssl(&["genrsa", "-out", "other.rsa", "2048"]);
    openssl(&["rsa", "-in", "other.rsa", "-pubout", "-out", "other.rsa.pub"]);
    fs::copy(folder.join("other.rsa.pub"), place.join("test.rsa.pub")).expect("a key");
    let refused = command(&["image", "greeter"]).arg("--output").arg(&output).output().expect("xtask runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("UNTRUSTED signature"), "{said}");
}

/// Asks programs of the tree itself.
#[track_caller]
fn assert_is_alpine_with_greeter(root: &Path) {
    let inside = |words: &[&str]| {
        let output = succeed(Command::new("chroot").arg(root).args(words).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(inside(&["greeter"]), "hello from a signed package\n");
    assert_agent_runs(root, "alpine");
    assert!(inside(&["cat", "/etc/alpine-release"]).starts_with("3.23"));
    assert_eq!(inside(&["apk", "info", "--installed", "greeter"]), "greeter\n");
    assert!(inside(&["cat", "/etc/apk/world"]).contains("greeter=1.0-r0\n"));
    // Nothing of the build: no cache, no lock, no log, no bundle of the host's.
    let left = inside(&["find", "/run", "/tmp", "/var/cache/apk", "-mindepth", "1"]);
    assert_eq!(left, "", "{left}");
    assert!(!root.join("var/log/apk.log").exists() && !root.join("lib/apk/db/lock").exists());
}
