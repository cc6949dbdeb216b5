//! Bases from a real registry on the loopback: docker-registry, filled and judged by skopeo and Podman.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use snug_rootfs::tar::{self, TarOptions};
use snug_tests::{CLOSED, have, is_root, succeed, xtask};

/// What every test here needs.
const TOOLS: [&str; 8] =
    ["docker-registry", "skopeo", "htpasswd", "python3", "zstd", "busybox", "newuidmap", "debugfs"];

/// How long a registry may take to listen.
const PATIENCE: Duration = Duration::from_secs(60);

/// A registry with its storage in a folder of the test's own; it ends with the value.
pub(crate) struct Registry {
    child: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Registry {
    /// Starts a registry for everybody, or for the user `snug` with the password `secret` alone.
    pub(crate) fn start(with_login: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        let storage = folder.path().join("storage");
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            storage.display()
        );
        if with_login {
            let accounts = folder.path().join("htpasswd");
            // -B: bcrypt, the only form that the registry takes.
            let line = succeed(Command::new("htpasswd").args(["-Bbn", "snug", "secret"]));
            fs::write(&accounts, line.stdout).expect("a file");
            config += &format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", accounts.display());
        }
        let file = folder.path().join("config.yml");
        fs::write(&file, config).expect("a file");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry starts");
        let registry = Registry { child, folder, port };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "the registry does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        let location = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.host());
        fs::write(registry.conf(), location).expect("a file");
        registry
    }

    /// `127.0.0.1:port`
    pub(crate) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A registries.conf that knows the registry, which speaks no TLS.
    pub(crate) fn conf(&self) -> PathBuf {
        self.folder.path().join("registries.conf")
    }

    /// Adds lines to the registries.conf.
    pub(crate) fn configure(&self, lines: &str) {
        let text = fs::read_to_string(self.conf()).expect("a file");
        fs::write(self.conf(), text + lines).expect("a file");
    }

    /// Pushes an OCI layout, byte for byte.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) {
        let mut command = self.skopeo();
        command.args(["copy", "--quiet", "--all", "--preserve-digests", "--dest-creds", "snug:secret"]);
        succeed(command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{}/{name}", self.host())));
    }

    /// Pushes an OCI layout rewritten to Docker's own media types.
    fn push_as_docker(&self, layout: &Path, tag: &str, name: &str) {
        let mut command = self.skopeo();
        command.args(["copy", "--quiet", "--all", "--format", "v2s2"]);
        succeed(command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{}/{name}", self.host())));
    }

    fn skopeo(&self) -> Command {
        let mut command = Command::new("skopeo");
        command.arg("--registries-conf").arg(self.conf());
        command
    }

    /// The digest of what a name stands for, as skopeo finds it.
    fn digest(&self, name: &str) -> String {
        let raw = succeed(self.skopeo().args(["inspect", "--raw", &format!("docker://{}/{name}", self.host())]));
        sha256(&raw.stdout)
    }

    /// Where the registry keeps a blob.
    fn blob(&self, digest: &str) -> PathBuf {
        let digits = digest.trim_start_matches("sha256:");
        let blobs = self.folder.path().join("storage/docker/registry/v2/blobs/sha256");
        blobs.join(&digits[..2]).join(digits).join("data")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sha256(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bytes");
    fs::write(&file, bytes).expect("a file");
    let output = succeed(Command::new("sha256sum").arg(file));
    format!("sha256:{}", String::from_utf8_lossy(&output.stdout).split(' ').next().expect("a digest"))
}

/// A folder with specs, a cache of its own, and the layout of the image that every test uses.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/make_image.py");
        succeed(Command::new("python3").arg(script).arg(folder.path().join("layout")));
        Desk { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn layout(&self) -> PathBuf {
        self.path("layout")
    }

    /// The command that builds an image with nothing in it but its base.
    fn image(&self, registry: &Registry, name: &str, base: &str) -> Command {
        let folder = self.path("images").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        let spec = format!("base = {{ oci = \"{base}\" }}\nfilesystem = {{ type = \"ext4\", journal = false }}\n");
        fs::write(folder.join("image.toml"), spec).expect("a spec");
        let mut command = xtask();
        command.args(["image", name, "--images"]).arg(self.path("images")).arg("--output").arg(self.path("out"));
        command.env("XDG_CACHE_HOME", self.path("cache")).env("CONTAINERS_REGISTRIES_CONF", registry.conf());
        // Nobody's own login, and no time of the build.
        command.env("SOURCE_DATE_EPOCH", "1700000000");
        command.env("REGISTRY_AUTH_FILE", self.path("no-auth.json")).env_remove("DOCKER_CONFIG");
        command
    }

    fn manifest(&self, name: &str) -> Value {
        let text = fs::read(self.path("out").join(name).join("manifest.json")).expect("a manifest");
        serde_json::from_slice(&text).expect("JSON")
    }

    /// What the built image has at a path.
    fn cat(&self, name: &str, path: &str) -> String {
        let image = self.path("out").join(name).join("rootfs.ext4");
        let output = succeed(Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(image));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The base trees in the cache.
    fn base_trees(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("cache/snug/trees")).expect("the trees");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        paths.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("oci_"))).collect()
    }
}

/// Runs a command that must fail, and answers what it said.
#[track_caller]
fn refusal(command: &mut Command) -> String {
    let output = command.output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

#[test]
fn an_image_is_built_by_tag_and_by_digest_and_a_moved_tag_is_noticed_when_asked() {
    if !have(&TOOLS) {
        return;
    }
    let (registry, desk) = (Registry::start(false), Desk::new());
    registry.push(&desk.layout(), "test", "a/image:1");
    let base = format!("{}/a/image:1", registry.host());
    let index = registry.digest("a/image:1");

    // The plan knows the digest, and the manifest keeps it.
    let plan = succeed(desk.image(&registry, "tagged", &base).args(["--dry-run", "--json"]));
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    assert_eq!(plan["images"][0]["oci"]["index"], index.as_str());
    succeed(&mut desk.image(&registry, "tagged", &base));
    assert_eq!(desk.manifest("tagged")["oci"], plan["images"][0]["oci"]);
    assert_eq!(desk.manifest("tagged")["oci"]["platform"], "linux/amd64");
    assert_eq!(desk.cat("tagged", "/etc/hidden"), "back again");
    succeed(Command::new("e2fsck").arg("-fn").arg(desk.path("out/tagged/rootfs.ext4")));

    // The same by digest of the index, with and without the tag, and of the one platform's manifest.
    let manifest = plan["images"][0]["oci"]["manifest"].as_str().expect("a digest");
    let repository = format!("{}/a/image", registry.host());
    for (name, pinned) in [
        ("by-index", format!("{repository}@{index}")),
        ("by-both", format!("{repository}:1@{index}")),
        ("by-manifest", format!("{repository}@{manifest}")),
    ] {
        succeed(&mut desk.image(&registry, name, &pinned));
        assert_eq!(desk.manifest(name)["oci"]["manifest"], manifest);
        assert_eq!(desk.manifest(name)["sha256"], desk.manifest("tagged")["sha256"], "{name}");
    }

    // And the same with Docker's own media types, whose digests are not those of the OCI image.
    let docker = desk.path("docker-layout");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/make_image.py");
    succeed(Command::new("python3").arg(script).arg("--gzip").arg(&docker));
    registry.push_as_docker(&docker, "test", "a/docker:1");
    succeed(&mut desk.image(&registry, "docker", &format!("{}/a/docker:1", registry.host())));
    assert_eq!(desk.manifest("docker")["oci"]["index"], registry.digest("a/docker:1").as_str());
    assert_ne!(desk.manifest("docker")["oci"]["manifest"], manifest);
    assert_eq!(desk.manifest("docker")["sha256"], desk.manifest("tagged")["sha256"]);

    // The tag moves: builds go on with what it meant, until they are asked to look again.
    let other = desk.path("other");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/make_image.py");
    succeed(Command::new("python3").arg(script).arg(&other).arg("moved"));
    registry.push(&other, "test", "a/image:1");
    let again = succeed(&mut desk.image(&registry, "tagged", &base));
    assert!(String::from_utf8_lossy(&again.stdout).contains("up to date"));
    succeed(desk.image(&registry, "tagged", &base).arg("--refresh"));
    assert_eq!(desk.manifest("tagged")["oci"]["index"], registry.digest("a/image:1").as_str());
    assert_eq!(desk.cat("tagged", "/moved"), "moved");

    // Nothing of it needs the registry any more.
    drop(registry);
    let nowhere = Registry::start(false);
    fs::remove_dir_all(desk.path("out")).expect("the results");
    succeed(&mut desk.image(&nowhere, "tagged", &base));
    assert_eq!(desk.cat("tagged", "/moved"), "moved");
}

#[test]
fn a_login_is_taken_from_auth_json_and_a_mirror_from_registries_conf() {
    if !have(&TOOLS) {
        return;
    }
    let (registry, desk) = (Registry::start(true), Desk::new());
    registry.push(&desk.layout(), "test", "library/alpine:3.23");
    let host = registry.host();
    let base = format!("{host}/library/alpine:3.23");

    let said = refusal(&mut desk.image(&registry, "locked", &base));
    assert!(said.contains(&format!("the registry {host} does not give {base} without a valid login")), "{said}");
    assert!(said.contains(&format!("hint: skopeo login {host}")), "{said}");

    let auth = desk.path("auth.json");
    // snug:wrong, snug:secret
    for (secret, good) in [("c251Zzp3cm9uZw==", false), ("c251ZzpzZWNyZXQ=", true)] {
        fs::write(&auth, format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"{secret}\"}}}}}}")).expect("a file");
        let mut command = desk.image(&registry, "locked", &base);
        command.env("REGISTRY_AUTH_FILE", &auth);
        if good {
            succeed(&mut command);
        } else {
            assert!(refusal(&mut command).contains("without a valid login"));
        }
    }

    // Docker's own registry, as seen from here: by a mirror that asks for the same login.
    registry.configure(&format!(
        "[[registry]]\nlocation = \"docker.io\"\n[[registry.mirror]]\nlocation = \"{host}\"\ninsecure = true\n"
    ));
    succeed(desk.image(&registry, "mirrored", "docker.io/library/alpine:3.23").env("REGISTRY_AUTH_FILE", &auth));
    assert_eq!(desk.manifest("mirrored")["oci"]["reference"], "docker.io/library/alpine:3.23");
    assert_eq!(desk.manifest("mirrored")["sha256"], desk.manifest("locked")["sha256"]);
}

#[test]
fn what_cannot_be_had_is_said_in_words_that_help() {
    if !have(&TOOLS) {
        return;
    }
    let (registry, desk) = (Registry::start(false), Desk::new());
    registry.push(&desk.layout(), "test", "a/image:1");
    let host = registry.host();

    let said = refusal(&mut desk.image(&registry, "missing", &format!("{host}/a/image:2")));
    assert!(said.contains(&format!("the registry has no image {host}/a/image:2")), "{said}");
    assert!(
        said.contains(&format!(
            "hint: check the name, and list the repository's tags: skopeo list-tags docker://{host}/a/image"
        )),
        "{said}"
    );
    assert!(said.contains("missing/image.toml:1"), "{said}");
    assert!(!said.contains("level=fatal"), "{said}");

    let pin = format!("{host}/a/image@sha256:{}", "0".repeat(64));
    let said = refusal(&mut desk.image(&registry, "no-digest", &pin));
    assert!(said.contains("the registry has no image"), "{said}");

    let said =
        refusal(desk.image(&registry, "plain", &format!("{host}/a/image:1")).env_remove("CONTAINERS_REGISTRIES_CONF"));
    assert!(
        said.contains(&format!("the registry {host} has no TLS certificate that this host trusts"))
            && said.contains("insecure = true"),
        "{said}"
    );

    let said = refusal(&mut desk.image(&registry, "nobody", &format!("{CLOSED}/a/image:1")));
    assert!(said.contains(&format!("the registry {CLOSED} cannot be reached")), "{said}");

    // An image for one other platform, by an index and alone.
    let layout = desk.path("foreign");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("registry/make_image.py");
    succeed(Command::new("python3").arg(script).arg(&layout).args(["foreign", "riscv64"]));
    registry.push(&layout, "test", "a/foreign:1");
    let said = refusal(&mut desk.image(&registry, "foreign", &format!("{host}/a/foreign:1")));
    assert!(said.contains("has no image for linux/") && said.contains("only for linux/riscv64"), "{said}");
    let index: Value =
        serde_json::from_slice(&fs::read(registry.blob(&registry.digest("a/foreign:1"))).expect("the index"))
            .expect("JSON");
    let manifest = index["manifests"][0]["digest"].as_str().expect("a digest");
    let said = refusal(&mut desk.image(&registry, "alone", &format!("{host}/a/foreign@{manifest}")));
    assert!(said.contains("has no image for linux/") && said.contains("only for linux/riscv64"), "{said}");
}

#[test]
fn a_flipped_byte_is_refused_by_name_wherever_it_is() {
    if !have(&TOOLS) {
        return;
    }
    let (registry, desk) = (Registry::start(false), Desk::new());
    registry.push(&desk.layout(), "test", "a/image:1");
    let base = format!("{}/a/image:1", registry.host());
    let plan = succeed(desk.image(&registry, "damaged", &base).args(["--dry-run", "--json"]));
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("JSON");
    let manifest = registry.blob(plan["images"][0]["oci"]["manifest"].as_str().expect("a digest"));
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).expect("the manifest")).expect("JSON");
    let layer = |at: usize| manifest["layers"][at]["digest"].as_str().expect("a digest").to_owned();

    // On the registry's disk: packed with gzip, not packed, packed with zstd, and the configuration.
    let config = manifest["config"]["digest"].as_str().expect("a digest").to_owned();
    for digest in [layer(0), layer(1), layer(2), config] {
        let path = registry.blob(&digest);
        let whole = fs::read(&path).expect("the blob");
        flip(&path);
        let said = refusal(&mut desk.image(&registry, "damaged", &base));
        assert!(said.contains(&digest) && said.contains("is damaged in the registry"), "{said}");
        assert!(!desk.path("out/damaged/rootfs.ext4").exists());
        fs::write(&path, whole).expect("the blob");
    }
    succeed(&mut desk.image(&registry, "damaged", &base));

    // In the cache: said once, and downloaded again.
    for digest in [layer(1), layer(2)] {
        fs::remove_dir_all(desk.path("out")).expect("the results");
        fs::remove_dir_all(desk.path("cache/snug/trees")).expect("the trees");
        let found =
            succeed(Command::new("find").arg(desk.path("cache/snug/downloads/oci")).args(["-name", &digest[7..]]));
        flip(Path::new(String::from_utf8_lossy(&found.stdout).trim()));
        let output = succeed(&mut desk.image(&registry, "damaged", &base));
        let said = String::from_utf8_lossy(&output.stderr);
        let told = "the copy in the cache is damaged; it is downloaded again";
        assert_eq!(said.matches(told).count(), 1, "{said}");
    }
}

/// Changes one byte in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x20;
    fs::write(path, bytes).expect("the file");
}

#[test]
fn the_merged_tree_is_what_podman_exports() {
    if !have(&TOOLS) || !have(&["podman"]) || !is_root() {
        return;
    }
    let (registry, desk) = (Registry::start(false), Desk::new());
    registry.push(&desk.layout(), "test", "a/image:1");
    let base = format!("{}/a/image:1", registry.host());
    succeed(&mut desk.image(&registry, "merged", &base));
    // Without what the cache adds to it.
    let cached = fs::File::open(desk.base_trees().pop().expect("the base's tree")).expect("a tar");
    let tree = tar::read_own(cached, &tar::Limits::default(), &mut |_| {}).expect("a tree");
    let ours = desk.path("ours.tar");
    let file = fs::File::create_new(&ours).expect("a file");
    tar::write(&tree, file, TarOptions::FAITHFUL, &mut |_| {}).expect("a tar");

    // The vfs driver unpacks layer over layer, and works wherever the tests do.
    let podman = |words: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(desk.path("podman")).arg("--runroot").arg(desk.path("podman-run"));
        command.args(["--storage-driver", "vfs"]).args(words).env("CONTAINERS_REGISTRIES_CONF", registry.conf());
        succeed(&mut command).stdout
    };
    podman(&["pull", "--quiet", &base]);
    let container = String::from_utf8(podman(&["create", &base])).expect("an id").trim().to_owned();
    fs::write(desk.path("podman.tar"), podman(&["export", &container])).expect("a tar");
    podman(&["rm", &container]);

    let list = |tar: &Path| {
        let script = r#"
import hashlib, sys, tarfile
# What a container engine adds for its own use.
added = {".", "dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}
rows = {}
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        name = member.name.removeprefix("./").rstrip("/")
        if name in added or name.startswith(("dev/", "proc/", "sys/", "run/")):
            continue
        if member.islnk():
            rows[name] = rows[member.linkname.removeprefix("./")].replace("links=1", "links=many")
            rows[member.linkname.removeprefix("./")] = rows[name]
            continue
        body = archive.extractfile(member).read() if member.isfile() else b""
        device = (member.devmajor, member.devminor) if member.ischr() or member.isblk() else ()
        note = member.pax_headers.get("SCHILY.xattr.user.note")
        # A directory's time changes as layers are unpacked into it.
        time = "" if member.isdir() else int(member.mtime)
        rows[name] = f"{member.type} {member.mode & 0o7777:o} {member.uid}:{member.gid} {time} {member.linkname} {device} {note} links=1 {hashlib.sha256(body).hexdigest()}"
for name in sorted(rows):
    print(name, rows[name])
"#;
        let output = succeed(Command::new("python3").args(["-c", script]).arg(tar));
        String::from_utf8(output.stdout).expect("text")
    };
    let (ours, theirs) = (list(&ours), list(&desk.path("podman.tar")));
    assert!(ours.lines().count() > 20, "{ours}");
    assert_eq!(ours, theirs);
}
