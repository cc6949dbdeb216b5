//! Secrets of a build: steps can read them, and neither image, cache nor output contains them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snug_tests::{have, is_root, succeed, xtask};

use crate::containers::{Dockerd, Podman};

/// What must be found nowhere.
const CANARY: &str = "canary-c4f2f0a1-not-to-be-kept";

/// Builds a spec of `rest` with the canary as the secrets `token`, from the environment, and `key`, from a file.
fn build(folder: &Path, rest: &str) -> Output {
    build_by("builtin", folder, rest, |_| {})
}

/// Each engine has a cache of its own: the tree's fingerprint does not tell engines apart.
fn build_by(engine: &str, folder: &Path, rest: &str, tell: impl Fn(&mut Command)) -> Output {
    let image = folder.join("images/secretive");
    fs::create_dir_all(&image).expect("a folder");
    fs::write(folder.join("key"), format!("{CANARY}\n")).expect("a file");
    let spec = format!(
        "base = {{ tar = \"{0}/base.tar\" }}\nfilesystem = \"ext4\"\n{rest}\n\
         [[secret]]\nid = \"token\"\nfrom = {{ env = \"TOKEN_OF_THE_CALLER\" }}\n\
         [[secret]]\nid = \"key\"\nfrom = {{ file = \"{0}/key\" }}\n",
        folder.display()
    );
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", "secretive", "--json", "--engine", engine, "--images"]).arg(folder.join("images"));
    let own = folder.join("by").join(engine);
    command.arg("--output").arg(own.join("out")).env("XDG_CACHE_HOME", own.join("cache"));
    command.env("TOKEN_OF_THE_CALLER", CANARY).env("SOURCE_DATE_EPOCH", "1700000000");
    tell(&mut command);
    command.output().expect("xtask runs")
}

fn image_by(engine: &str, folder: &Path) -> PathBuf {
    folder.join("by").join(engine).join("out/secretive/rootfs.ext4")
}

/// Asserts that neither what a build said nor what it left below `folder` tells the canary.
#[track_caller]
fn assert_nothing_told(folder: &Path, output: &Output) {
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    assert!(!String::from_utf8_lossy(&said).contains(CANARY), "{output:?}");
    assert_holds_nothing(&folder.join("by"));
}

#[track_caller]
fn assert_holds_nothing(folder: &Path) {
    let found = Command::new("grep").args(["-rlF", CANARY]).arg(folder).output().expect("grep runs");
    // 1: looked everywhere and found nothing (grep(1)).
    assert_eq!(found.status.code(), Some(1), "{found:?}");
}

/// Steps that read both secrets and write the length of one. The spec must not contain the canary: the step assembles it.
fn reading() -> String {
    format!(
        "run = [\n  'test \"$(cat /run/secrets/token)$(cat /run/secrets/key)\" = {0}{0}',\n  'cat /run/secrets/token',\n  \
         'wc -c < /run/secrets/key > /length',\n]",
        "$(echo canary-c4f2f0a1 | sed s/$/-not-to-be-kept/)"
    )
}

/// A step that prints a secret and fails.
const TELLING: &str = "run = [\"cat /run/secrets/token; exit 3\"]";

/// A step that prints a secret as programs encode it, over ends of lines and behind colours, and fails.
const TELLING_ENCODED: &str = r#"run = ['''
cd /run/secrets
b="/bin/busybox"
$b base64 token; $b base64 -w 20 token; echo "me:$(cat token)" | $b base64 -w 0; echo
printf 'you:%s' "$(cat token)" | $b base64 -w 0; echo
$b xxd -p token; $b xxd -p -c 7 key | $b tr a-f A-F; $b od -An -tx1 key
$b sed 's/-/%2d/g' key; $b sed 's/n/%\n6E/; s/c4f2/%63%34%66%32/' key
$b fold -w 5 key; printf 'and a part: '; $b cut -c 1-12 token; $b cut -c 13- token; echo end
printf 'canary-c4f2\033[31mf0a1-not-\033[0mto-be-kept\n'
exit 3
''']"#;

/// Asserts that no piece of the canary is left in any encoding of it.
#[track_caller]
fn assert_masked_encoded(folder: &Path, output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("exit status 3") && said.contains("| end"), "{said}");
    assert!(said.matches("***").count() > 20, "{said}");
    assert_nothing_told(folder, output);
    let printed: String = said.lines().filter_map(|line| Some(line.split_once("| ")?.1.to_owned() + "\n")).collect();
    let plain = ["canar", "c4f2f", "o-be-", "kept", "%63%34", "%2dnot"];
    // At each of the three places where its bits may begin.
    let base64 = ["Y2FuY", "jYW5h", "NhbmF", "LWM0Zj", "a2VwdA", "rZXB0", "tlcHQ"];
    let digits = ["63616e61", "63 61 6e", "6B6570", "6b 65 70", "2D6E6F74"];
    for piece in plain.iter().chain(&base64).chain(&digits) {
        assert!(!printed.contains(piece), "{piece} in {printed}");
    }
}

#[track_caller]
fn assert_masked(folder: &Path, output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("exit status 3") && said.contains("| ***"), "{said}");
    assert_nothing_told(folder, output);
}

#[test]
fn steps_read_secrets_that_nothing_keeps() {
    if !have(&["busybox", "newuidmap", "debugfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let output = build(folder, &reading());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_nothing_told(folder, &output);
    let image = image_by("builtin", folder);
    let length = succeed(Command::new("debugfs").args(["-R", "cat /length"]).arg(&image));
    assert_eq!(String::from_utf8_lossy(&length.stdout).trim(), format!("{}", CANARY.len() + 1));

    let good = fs::read(&image).expect("an image");

    // A failing step's last lines.
    assert_masked(folder, &build(folder, TELLING));

    assert_masked_encoded(folder, &build(folder, TELLING_ENCODED));
    assert_masked_encoded(
        folder,
        &build_by("builtin", folder, TELLING_ENCODED, |command| {
            command.arg("-v");
        }),
    );

    // A build whose tree contains a secret is refused, and the last image stays.
    let output = build(folder, "run = [\"mkdir /opt; cp /run/secrets/key /opt/key\"]");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("the secret `token` is in the image, at /opt/key"), "{said}");
    assert_nothing_told(folder, &output);
    assert!(fs::read(&image).expect("the image") == good);

    // Unless it is taken away again.
    let output = build(folder, "run = [\"mkdir /opt; cp /run/secrets/key /opt/key\"]\nexclude = [\"/opt/key\"]");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_nothing_told(folder, &output);
}

#[test]
fn podman_and_dockers_buildkit_show_secrets_to_steps_and_keep_none() {
    if !have(&["busybox", "newuidmap", "podman"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let by = |engine: &str, tell: &dyn Fn(&mut Command)| {
        let output = build_by(engine, folder, &reading(), tell);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_nothing_told(folder, &output);
        fs::read(image_by(engine, folder)).expect("an image")
    };
    let builtin = by("builtin", &|_| {});

    let podmans = folder.join("podman");
    fs::create_dir(&podmans).expect("a folder");
    let Some(podman) = Podman::prepare(&podmans, "overlay") else { return };
    let to_podman = |command: &mut Command| {
        podman.tell(command);
    };
    assert!(by("podman", &to_podman) == builtin, "podman's image is another");
    assert_masked(folder, &build_by("podman", folder, TELLING, to_podman));
    assert_masked_encoded(folder, &build_by("podman", folder, TELLING_ENCODED, to_podman));
    assert_holds_nothing(&podmans);

    let Some(dockerd) = Dockerd::start(folder) else { return };
    let to_docker = |command: &mut Command| {
        // The distribution's own command comes with BuildKit or with its plugin.
        command.env("DOCKER_HOST", dockerd.host()).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    };
    assert!(by("docker", &to_docker) == builtin, "docker's image is another");
    assert_masked(folder, &build_by("docker", folder, TELLING, to_docker));
    assert_masked_encoded(folder, &build_by("docker", folder, TELLING_ENCODED, to_docker));
    // What a step kept is not in docker's own cache either.
    let keeping = "run = [\"mkdir /opt; cp /run/secrets/key /opt/key\"]";
    let output = build_by("docker", folder, keeping, to_docker);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the secret `token` is in the image, at /opt/key"), "{said}");
    assert_nothing_told(folder, &output);
    let held = succeed(dockerd.docker().args(["system", "df", "--verbose", "--format", "{{json .BuildCache}}"]));
    assert!(!String::from_utf8_lossy(&held.stdout).contains("from exec"), "{held:?}");
    assert_holds_nothing(&dockerd.data());
}

#[test]
fn no_output_tells_the_password_of_a_proxy() {
    if !have(&["busybox", "newuidmap", "podman", "mmdebstrap", "skopeo"]) || !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let proxied = |command: &mut Command| {
        for name in ["http_proxy", "HTTPS_PROXY"] {
            command.env(name, format!("http://snug-user:canary%21pass@{}", snug_tests::CLOSED));
        }
        command.env("no_proxy", "localhost");
    };
    let assert_masked = |output: &Output| {
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(output.status.code().map(|code| code > 0), Some(true), "{said}");
        assert!(!said.contains("canary%21pass") && !said.contains("canary!pass"), "{said}");
        said
    };
    let telling = "run = [\"end=pass; env; echo canary%21$end; echo canary!$end; echo $http_proxy >&2; exit 3\"]";
    let said = assert_masked(&build_by("builtin", folder, telling, proxied));
    assert!(said.contains("http_proxy=http://***@"), "{said}");
    let podmans = folder.join("podman");
    fs::create_dir(&podmans).expect("a folder");
    if let Some(podman) = Podman::prepare(&podmans, "overlay") {
        let tell = |command: &mut Command| {
            podman.tell(command);
            proxied(command);
        };
        let said = assert_masked(&build_by("podman", folder, telling, tell));
        assert!(said.contains("http_proxy=http://***@"), "{said}");
    }
    // Programs of the host that make bases, with all that they print.
    for base in ["debian = \"trixie\"", "oci = \"archive.example/name:tag\""] {
        let image = folder.join("images/based");
        fs::create_dir_all(&image).expect("a folder");
        fs::write(image.join("image.toml"), format!("base = {{ {base} }}\n")).expect("a spec");
        let mut command = xtask();
        command.args(["image", "based", "--verbose", "--images"]).arg(folder.join("images"));
        command.arg("--output").arg(folder.join("out")).env("XDG_CACHE_HOME", folder.join("cache"));
        proxied(&mut command);
        assert_masked(&command.output().expect("xtask runs"));
    }
}

#[test]
fn a_secret_that_is_not_there_is_named() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    snug_tests::busybox_base(folder);
    let image = folder.join("images/missing");
    fs::create_dir_all(&image).expect("a folder");
    let spec = format!(
        "base = {{ tar = \"{}/base.tar\" }}\nfilesystem = \"ext4\"\nsecret = [{{ id = \"token\", from = {{ env = \"NOT_SET_ANYWHERE\" }} }}]\n",
        folder.display()
    );
    fs::write(image.join("image.toml"), spec).expect("a spec");
    let mut command = xtask();
    command.args(["image", "missing", "--images"]).arg(folder.join("images")).arg("--output").arg(folder.join("out"));
    let output = command.env("XDG_CACHE_HOME", folder.join("cache")).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("the secret `token` is to come from $NOT_SET_ANYWHERE, which is not set"), "{said}");
}
