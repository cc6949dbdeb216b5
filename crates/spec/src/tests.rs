//! The rules of a spec, one test a rule; and what people see of the broken ones in `tests/broken-images`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use snug_ext4::size::{Headroom, SizePolicy};
use snug_formats::{ErofsOptions, Ext4Options, Ext4Writer, Filesystem, FilesystemKind, SquashfsOptions};
use snug_rootfs::accounts::Account;
use snug_rootfs::capabilities::Capabilities;
use snug_rootfs::platform::Platform;
use snug_rootfs::tree::TreePath;
use tempfile::TempDir;

use super::model::*;
use super::*;

/// Every key of a spec, most of them in their table form.
const COMPLETE: &str = include_str!("complete.toml");

/// A folder of images with the files that [`COMPLETE`] names.
fn workspace() -> TempDir {
    let images = TempDir::new().unwrap();
    let folder = images.path().join("complete");
    for path in [folder.join("files/skel/.ssh"), images.path().join("shared"), images.path().join("other")] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(folder.join("init.sh"), "#!/bin/sh\n").unwrap();
    fs::write(folder.join("files/motd"), "hello\n").unwrap();
    fs::write(images.path().join("shared/sshd.conf"), "PasswordAuthentication no\n").unwrap();
    fs::write(images.path().join("other/private"), "").unwrap();
    symlink("../other/private", folder.join("way-out")).unwrap();
    symlink("../shared/sshd.conf", folder.join("way-to-shared")).unwrap();
    images
}

fn read(text: &str) -> Result<ImageSpec, SpecErrors> {
    let images = workspace();
    parse_image(&images.path().join("complete"), text.to_owned())
}

/// A spec of a Debian base and `text`.
#[track_caller]
fn debian(text: &str) -> ImageSpec {
    read(&format!("base = {{ debian = \"trixie\" }}\n{text}")).unwrap_or_else(|errors| panic!("{errors}"))
}

/// The messages of all that is wrong with a Debian base and `text`.
#[track_caller]
fn wrong(text: &str) -> Vec<String> {
    let errors = read(&format!("base = {{ debian = \"trixie\" }}\n{text}")).expect_err(text);
    errors.0.iter().map(|error| error.message().to_owned()).collect()
}

/// The help of the only thing that is wrong.
#[track_caller]
fn help(text: &str) -> String {
    let errors = read(&format!("base = {{ debian = \"trixie\" }}\n{text}")).expect_err(text);
    assert_eq!(errors.0.len(), 1, "{errors}");
    errors.0[0].helps().join("\n")
}

fn path(raw: &str) -> TreePath {
    TreePath::new(raw).unwrap()
}

fn values<T: Clone>(located: &[Located<T>]) -> Vec<T> {
    located.iter().map(|item| item.value.clone()).collect()
}

/// Every broken spec of `tests/broken-images` gives an error that reads as its snapshot does.
#[test]
fn broken_specs_say_what_would_be_right() {
    let set = ImageSet::load(Path::new("../../tests/broken-images")).unwrap();
    assert!(set.names().count() >= 15, "the folder of broken specs was found");
    for name in set.names() {
        let errors = set.resolve(name).map(drop).expect_err(name);
        insta::assert_snapshot!(name, errors.to_string().replace("../../tests/", "tests/"));
    }
}

#[test]
fn four_lines_are_a_spec() {
    let spec = read(
        r#"
        base = { debian = "trixie" }
        packages = ["openssh-server", "iproute2"]
        min-size = "256MiB"
        filesystem = "ext4"
        "#,
    )
    .unwrap();
    assert_eq!(spec.name, "complete");
    assert_eq!(spec.base.value, Base::Debian { suite: "trixie".into(), snapshot: None, variant: None });
    assert_eq!(values(&spec.packages.system), ["openssh-server", "iproute2"]);
    assert_eq!(spec.sizing, SizePolicy { min_size: 256 << 20, ..SizePolicy::default() });
    assert_eq!(spec.sizing.headroom.millionths, 1_400_000);
    assert_eq!(spec.filesystem, Some(Filesystem::default_of(FilesystemKind::Ext4)));
    assert_eq!(spec.boot, None);
}

#[test]
fn a_complete_spec_is_read_into_its_model() {
    let spec = read(COMPLETE).unwrap_or_else(|errors| panic!("{errors}"));
    insta::assert_snapshot!("complete", serde_json::to_string_pretty(&spec).unwrap());
}

#[test]
fn places_are_those_of_the_text() {
    let spec = debian(
        "run = [\n  \"one\",\n\t\"zwei\", \"größer\",  \"drei\",\n]\n\n[[file]]\ncontent = \"x\"\nto = \"/x\"\n",
    );
    let places: Vec<_> = spec.run.iter().map(|step| (step.line, step.column)).collect();
    assert_eq!(places, [(3, 3), (4, 2), (4, 10), (4, 21)]);
    assert_eq!((spec.files[0].line, spec.files[0].column), (7, 1));
    assert_eq!((spec.base.line, spec.base.column), (1, 19));
    assert_eq!(&spec.document.text[spec.run[2].span.clone()], "\"größer\"");
}

#[test]
fn a_base_is_one_of_four_with_its_own_options() {
    let base = |text: &str| read(text).map(|spec| spec.base.value).map_err(|errors| errors.0[0].message().to_owned());
    assert_eq!(
        base("base = { oci = 'docker.io/library/alpine:3.23' }"),
        Ok(Base::Oci { reference: "docker.io/library/alpine:3.23".parse().unwrap() })
    );
    assert_eq!(base("[base]\nimage = 'node-24'"), Ok(Base::Image { name: "node-24".into() }));
    assert_eq!(base("base.image = 'node-24'"), Ok(Base::Image { name: "node-24".into() }));
    let digest = "ab".repeat(32);
    match base(&format!("base = {{ tar = 'root.tar', sha256 = '{digest}' }}")).unwrap() {
        Base::Tar { path, sha256 } => {
            assert!(path.ends_with("complete/root.tar"));
            assert_eq!(sha256, Some([0xab; 32]));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        base("base = { tar = '/root.tar', snapshot = '20260801T000000Z' }"),
        Err("`snapshot` goes with `debian`, and this base is `tar`".into())
    );
    assert_eq!(base("base = {}"), Err("`base` does not say what to start from".into()));
    assert_eq!(base("run = []"), Err("`base` is missing".into()));
    assert_eq!(base("base = { debain = 'trixie' }"), Err("unknown key `debain`".into()));
    assert_eq!(base("base = { tar = 'x', sha256 = 'abc' }"), Err("`abc` is not a SHA-256".into()));
    assert_eq!(base("base = { debian = 'trixie', variant = 'minbas' }"), Err("unknown variant `minbas`".into()));
}

#[test]
fn a_file_has_one_source_and_a_target() {
    let spec = debian("[[file]]\nfrom = 'files/motd'\nto = '/etc/motd'\n[[file]]\nfrom = 'files/motd'\nto = '/'\n");
    assert_eq!(spec.files[0].to, path("/etc/motd"));
    assert_eq!((spec.files[0].mode, &spec.files[0].owner), (None, &None));
    assert_eq!(spec.files[1].to, path("/motd"), "a trailing slash names the folder");
    let spec = debian("[[file]]\nfrom = 'files/skel'\nto = '/etc/skel/'\n");
    assert_eq!(spec.files[0].to, path("/etc/skel"), "a folder becomes the target");
    assert_eq!(wrong("[[file]]\nto = '/x'"), ["`from` or `content` is missing"]);
    assert_eq!(
        wrong("[[file]]\nfrom = 'files/motd'\ncontent = ''\nto = '/x'"),
        ["`from` and `content` exclude each other"]
    );
    assert_eq!(wrong("[[file]]\ncontent = ''"), ["`to` is missing"]);
    assert_eq!(
        wrong("[[file]]\ncontent = ''\nto = '/'"),
        ["`to` names a folder, and `content` has no name of its own"]
    );
    assert_eq!(wrong("[[file]]\nfrom = 'files/skel'\nto = '/'"), ["this is the root itself"]);
    assert_eq!(wrong("[[file]]\ncontent = ''\nto = '/a/../../b'"), ["the path leaves the root through `..`"]);
    assert_eq!(
        wrong("[[file]]\nfrom = 'files/skel'\nto = '/x'\ncapabilities = 'cap_chown=p'"),
        ["`capabilities` needs a file, and `from` is a folder"]
    );
    assert_eq!(wrong("[[file]]\ncontent = ''\nto = '/x'\n[[file]]\ncontent = ''\nto = '//x'"), ["/x is placed twice"]);
    assert_eq!(wrong("init = 'init.sh'\n[[file]]\ncontent = ''\nto = '/init'"), ["/init is placed twice"]);
}

#[test]
fn sources_stay_in_the_image_or_the_shared_folder() {
    let from = |source: &str| format!("[[file]]\nfrom = '{source}'\nto = '/x'");
    for inside in
        ["files/motd", "./files/../files/motd", "../shared/sshd.conf", "files/../../shared/sshd.conf", "way-to-shared"]
    {
        let spec = debian(&from(inside));
        match &spec.files[0].source {
            FileSource::From(path) => assert_eq!(path.written, inside),
            other => panic!("{other:?}"),
        }
    }
    for outside in
        ["../other/private", "../../etc/passwd", "/etc/passwd", "../shared/../other/private", "..", "files/../.."]
    {
        assert_eq!(wrong(&from(outside)), [format!("`{outside}` is outside the image's folder")]);
    }
    assert_eq!(wrong(&from("way-out")), ["`way-out` leads outside the image's folder through a symlink"]);
    assert_eq!(wrong(&from("files/none")), ["`files/none` does not exist"]);
    assert_eq!(help(&from("files/mtd")), "did you mean `files/motd`?");
    assert_eq!(wrong("init = 'files'"), ["`files` is a folder"]);
}

#[test]
fn attributes_are_text_or_bytes_under_quoted_or_dotted_names() {
    let spec = debian(
        "[[file]]\ncontent = ''\nto = '/x'\nxattrs = { 'user.a' = 'text', user.b = { hex = '00Ff' }, user.c.d = { base64 = 'AP8=' }, user.hex = 'h' }",
    );
    let expected: [(&str, &[u8]); 4] =
        [("user.a", b"text"), ("user.b", &[0, 0xff]), ("user.c.d", &[0, 0xff]), ("user.hex", b"h")];
    let found: Vec<_> = spec.files[0].xattrs.iter().map(|(name, value)| (name.as_str(), value.as_slice())).collect();
    assert_eq!(found, expected);
    let xattr = |value: &str| format!("[[file]]\ncontent = ''\nto = '/x'\nxattrs = {{ {value} }}");
    assert_eq!(wrong(&xattr("note = 'x'")), ["`note` is not the name of an extended attribute"]);
    assert_eq!(wrong(&xattr("'user.x' = 7")), ["`user.x` must be a string, not an integer"]);
    assert_eq!(wrong(&xattr("'user.x' = { hex = 'f' }")), ["these are not hexadecimal digits, two a byte"]);
    assert_eq!(wrong(&xattr("'user.x' = { base64 = 'A' }")), ["this is not base64 with its padding"]);
    assert_eq!(
        wrong(&xattr("'user.x' = { hex = '', base64 = '' }")),
        ["an attribute's value is either `hex` or `base64`"]
    );
    let long = "x".repeat(65537);
    assert_eq!(wrong(&xattr(&format!("'user.x' = '{long}'"))), ["the value has 65537 bytes, more than 65536"]);
}

#[test]
fn capabilities_are_read_and_not_given_twice() {
    let spec = debian("[[file]]\ncontent = ''\nto = '/x'\ncapabilities = 'cap_net_bind_service=ep'");
    assert_eq!(spec.files[0].capabilities, Some(Capabilities { permitted: 1 << 10, inheritable: 0, effective: true }));
    assert_eq!(
        help("[[file]]\ncontent = ''\nto = '/x'\ncapabilities = 'cap_net_bind_servce=ep'"),
        "did you mean `cap_net_bind_service`?"
    );
    assert_eq!(
        wrong(
            "[[file]]\ncontent = ''\nto = '/x'\ncapabilities = 'cap_chown=p'\nxattrs = { 'security.capability' = 'x' }"
        ),
        ["`capabilities` and the attribute `security.capability` are the same thing"]
    );
}

#[test]
fn devices_are_complete_and_inside_the_root() {
    let spec = debian(
        "[[device]]\npath = '/dev/console'\ntype = 'char'\nmajor = 5\nminor = 1\nmode = '0620'\nowner = 'root:tty'",
    );
    let device = &spec.devices[0].value;
    assert_eq!((device.kind, device.major, device.minor, device.mode), (DeviceKind::Char, 5, 1, 0o620));
    assert_eq!(device.owner.as_ref().unwrap().group, Account::Name("tty".into()));
    assert_eq!(device.owner.as_ref().unwrap().ids(), None);
    assert_eq!(
        wrong("[[device]]\ntype = 'fifo'\nminor = -1"),
        [
            "`path` is missing",
            "`major` is missing",
            "`fifo` is not a type of device",
            "`minor` must be between 0 and 1048575"
        ]
    );
}

#[test]
fn a_binary_is_named_after_its_package() {
    let spec = debian(
        "[[binary]]\npackage = 'agent'\n[[binary]]\npackage = 'agent'\nbin = 'agentd'\nto = '/sbin/agentd'\nmode = 0o700",
    );
    assert_eq!((spec.binaries[0].bin.as_str(), spec.binaries[0].mode), ("agent", 0o755));
    assert_eq!(spec.binaries[0].to, path("/usr/local/bin/agent"));
    assert_eq!((spec.binaries[1].to.clone(), spec.binaries[1].mode), (path("/sbin/agentd"), 0o700));
}

#[test]
fn a_secret_comes_from_the_environment_or_a_file() {
    let spec = debian(
        "[[secret]]\nid = 'a'\nfrom = { env = 'NPM_TOKEN' }\n[[secret]]\nid = 'b'\nfrom = { file = 'b.txt' }\n[[secret]]\nid = 'c'\nfrom = '/c'",
    );
    let sources: Vec<String> = spec.secrets.iter().map(|secret| format!("{:?}", secret.source)).collect();
    assert_eq!(sources[0], "Environment(\"NPM_TOKEN\")");
    assert!(matches!(&spec.secrets[1].source, SecretSource::File(path) if path.ends_with("complete/b.txt")));
    assert!(matches!(&spec.secrets[2].source, SecretSource::File(path) if path.as_os_str() == "/c"));
    assert_eq!(
        wrong("[[secret]]\nid = 'a'\nfrom = 'x'\n[[secret]]\nid = 'a'\nfrom = 'y'"),
        ["two secrets have the id `a`"]
    );
}

#[test]
fn options_belong_to_their_filesystem() {
    let filesystem = |text: &str| debian(&format!("filesystem = {text}"));
    let spec = filesystem(
        "{ type = 'ext4', journal = false, reserved-percent = 5, label = 'root', growth = '1TiB', writer = 'mke2fs', uuid = '0f3c1e9a-5b7d-4c2e-8a61-93d4e5f60718', verity = true }",
    );
    let expected = Ext4Options {
        journal: false,
        reserved_percent: 5,
        label: Some("root".into()),
        uuid: Some([0x0f, 0x3c, 0x1e, 0x9a, 0x5b, 0x7d, 0x4c, 0x2e, 0x8a, 0x61, 0x93, 0xd4, 0xe5, 0xf6, 0x07, 0x18]),
        growth: Some(1 << 40),
        writer: Ext4Writer::Mke2fs,
    };
    assert_eq!((spec.filesystem, spec.verity, spec.overlay), (Some(Filesystem::Ext4(expected)), true, None));
    let spec = filesystem("{ type = 'squashfs', compression = 'xz', block-size = '128KiB', overlay = '512MiB' }");
    let expected = SquashfsOptions { compression: "xz".into(), block_size: 131072 };
    assert_eq!((spec.filesystem, spec.overlay), (Some(Filesystem::Squashfs(expected)), Some(512 << 20)));
    assert!(spec.overlay_device && debian("filesystem = 'ext4'").overlay_device);
    assert!(!filesystem("{ type = 'squashfs', overlay-device = false }").overlay_device);
    let spec = filesystem("{ type = 'erofs', compression = 'lz4hc:9', cluster-size = '4KiB', dedupe = true }");
    let expected = ErofsOptions { compression: "lz4hc:9".into(), cluster_size: 4096, dedupe: true };
    assert_eq!(spec.filesystem, Some(Filesystem::Erofs(expected)));
    for (text, message) in [
        ("'ext3'", "unknown filesystem `ext3`"),
        ("7", "`filesystem` must be a string or a table, not an integer"),
        ("{ journal = true }", "`type` is missing"),
        ("{ type = 'erofs', block-size = '4KiB' }", "`block-size` is an option of squashfs, and this is erofs"),
        ("{ type = 'ext4', compression = 'xz' }", "`compression` is an option of squashfs and erofs, and this is ext4"),
        ("{ type = 'ext4', jurnal = false }", "unknown option `jurnal` of ext4"),
        ("{ type = 'ext4', writer = 'mkfs' }", "unknown writer `mkfs`"),
        ("{ type = 'squashfs', compression = 'zstd:23' }", "zstd has the levels 1 to 22"),
        ("{ type = 'squashfs', compression = 'xz:9' }", "xz has no levels"),
        ("{ type = 'squashfs', compression = 'bzip2' }", "unknown compressor `bzip2`"),
        ("{ type = 'squashfs', block-size = '3KiB' }", "the size must be a power of two between 4KiB and 1MiB"),
        ("{ type = 'erofs', cluster-size = '2MiB' }", "the size must be a power of two between 4KiB and 1MiB"),
    ] {
        assert_eq!(wrong(&format!("filesystem = {text}")), [message]);
    }
}

#[test]
fn sizing_is_for_filesystems_with_room() {
    let spec = debian(
        "min-size = '1GiB'\nmax-size = '1GiB'\nheadroom = 1\nfree-inodes = 5000\ntolerance = '2%'\nfilesystem = 'ext4'",
    );
    let expected =
        SizePolicy { min_size: 1 << 30, max_size: Some(1 << 30), headroom: Headroom::NONE, free_inodes: Some(5000) };
    assert_eq!((spec.sizing, spec.tolerance), (expected, Some(Tolerance::PercentMillionths(2_000_000))));
    for kind in ["squashfs", "erofs"] {
        for key in ["min-size = '1MiB'", "max-size = '1MiB'", "headroom = 1.4", "free-inodes = 1"] {
            let name = key.split(' ').next().unwrap();
            assert_eq!(
                wrong(&format!("{key}\nfilesystem = '{kind}'")),
                [format!("`{name}` has no meaning for {kind}, which is read-only and exactly as large as its content")]
            );
        }
    }
    assert_eq!(wrong("min-size = '2MiB'\nmax-size = '1.5MiB'"), ["`min-size` (2MiB) is above `max-size` (1.5MiB)"]);
    assert_eq!(help("tolerance = 5"), "write \"5%\" or \"5MiB\"");
}

#[test]
fn boot_checks_have_a_short_form() {
    let spec = debian(
        "[boot]\nkernel = '6.1'\narguments = ['quiet']\nchecks = ['true', { run = 'id -u', prints = '0', within = '5min' }]",
    );
    let boot = spec.boot.unwrap();
    assert_eq!((boot.kernel, boot.arguments), (Some(KernelVersion { major: 6, minor: 1 }), vec!["quiet".to_string()]));
    let check = |run: &str, prints: Option<&str>, within: Option<u64>| BootCheck {
        run: run.into(),
        prints: prints.map(Into::into),
        within: within.map(Duration::from_secs),
    };
    assert_eq!(values(&boot.checks), [check("true", None, None), check("id -u", Some("0"), Some(300))]);
    assert_eq!(wrong("boot = { checks = [{ run = 'true', within = '5' }] }"), ["`5` is not a length of time"]);
    assert_eq!(help("boot = { kernel = 6.10 }"), "write \"6.10\": as numbers, 6.1 and 6.10 would be the same");
    assert_eq!(wrong("boot = { arguments = ['a b'] }"), ["one item is one word of the kernel's command line"]);
    let spec = debian("[[boot.checks]]\nrun = 'true'\n");
    assert_eq!(values(&spec.boot.unwrap().checks), [check("true", None, None)]);
}

#[test]
fn defaults_for_the_command_line_are_checked() {
    let spec = debian("engine = 'podman'\nplatforms = ['linux/arm64', 'amd64']");
    assert_eq!((spec.engine, spec.platforms), (Some(EngineKind::Podman), vec![Platform::Arm64, Platform::Amd64]));
    assert_eq!(help("engine = 'dockr'"), "did you mean `docker`?");
    assert_eq!(help("platforms = ['aarch64']"), "OCI calls it `linux/arm64`");
    assert_eq!(wrong("env = { A = 1, '2B' = '' }").len(), 2);
    assert_eq!(wrong("run = ['true', ' ']"), ["this step runs nothing"]);
    let step = |shell: &str, network| RunStep { shell: shell.into(), network };
    let spec = debian("run = ['one', { shell = 'two' }, { shell = 'three', network = false }]");
    let steps: Vec<RunStep> = spec.run.into_iter().map(|step| step.value).collect();
    assert_eq!(steps, [step("one", true), step("two", true), step("three", false)]);
    assert_eq!(wrong("run = [{ network = false }]"), ["`shell` is missing"]);
    assert_eq!(wrong("run = [{ shell = ' ' }]"), ["this step runs nothing"]);
    assert_eq!(
        wrong("run = [{ shell = 'x', network = 'host' }]"),
        ["`network` must be `true` or `false`, not a string"]
    );
    assert_eq!(wrong("run = [{ shell = 'x', netwrok = false }]"), ["unknown key `netwrok`"]);
    assert_eq!(wrong("run = [\"a\\u0000b\"]"), ["each item of `run` holds a NUL character"]);
    assert_eq!(wrong("description = \"a\\nb\""), ["`description` must be one line without control characters"]);
}

#[test]
fn all_errors_come_in_the_order_of_the_text() {
    let text = "filesystem = 'ext9'\nhostname = '-'\nrun = 7\nbase = { debian = 'TRIXIE' }\nx = 1\n";
    let lines: Vec<_> = read(text).unwrap_err().0.iter().map(|error| error.position().unwrap().0).collect();
    assert_eq!(lines, [1, 2, 3, 4, 5]);
}

#[test]
fn an_error_tells_its_place_apart_from_its_words() {
    let errors = read("base = { debian = 'trixie' }\n\"höst\" = 1\nhostnam = 'x'\n").unwrap_err();
    let error = &errors.0[1];
    assert_eq!((error.position(), error.span()), (Some((3, 1)), Some(41..48)));
    assert_eq!(error.message(), "unknown key `hostnam`");
    assert_eq!(error.helps(), ["did you mean `hostname`?"]);
    assert!(error.path().ends_with("complete/image.toml"));
}

/// git's autocrlf makes such a file of every spec that is checked out on Windows.
#[test]
fn a_spec_written_with_crlf_means_the_same() {
    let text = "base = { debian = 'trixie' }\nrun = [\"\"\"\necho one > /one\necho two\n\"\"\", \"printf 'a\\r\\n'\"]\n\
                [[file]]\nto = '/script'\ncontent = \"\"\"\n#!/bin/sh\necho hi\n\"\"\"\n";
    let meaning = |text: &str| serde_json::to_string(&read(text).unwrap()).unwrap();
    assert_eq!(meaning(&text.replace('\n', "\r\n")), meaning(text));
    assert!(meaning(text).contains("a\\r\\n"), "an escape stays as it is: {}", meaning(text));
}

#[test]
fn moving_lines_or_the_checkout_does_not_change_the_meaning() {
    let meaning = |text: &str| serde_json::to_string(&read(text).unwrap()).unwrap();
    let moved = format!("# a comment\n\n{COMPLETE}");
    assert_eq!(meaning(COMPLETE), meaning(&moved));
    assert_ne!(meaning(COMPLETE), meaning(&COMPLETE.replace("trixie", "bookworm")));
}

#[test]
fn a_file_that_cannot_be_a_spec_is_an_error() {
    let images = workspace();
    let folder = images.path().join("complete");
    let message = |folder: &Path| read_image(folder).unwrap_err().0[0].message().to_owned();
    assert_eq!(message(&folder), "cannot read the spec: no such file or directory");
    fs::write(folder.join(SPEC_FILE), b"base = { debian = \"tri\xffxie\" }").unwrap();
    assert_eq!(message(&folder), "the spec is not UTF-8 from here on");
    fs::write(folder.join(SPEC_FILE), "#".repeat(2 << 20)).unwrap();
    assert_eq!(message(&folder), "the spec is larger than 1024 KiB");
}

/// A folder of images from names and their specs.
fn image_set(specs: &[(&str, &str)]) -> ImageSet {
    let images = TempDir::new().unwrap();
    fs::create_dir(images.path().join("shared")).unwrap();
    for (name, text) in specs {
        let folder = images.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("init.sh"), "").unwrap();
        fs::write(folder.join(SPEC_FILE), text).unwrap();
    }
    ImageSet::load(images.path()).unwrap()
}

#[test]
fn a_child_inherits_boot_from_the_nearest_that_has_them() {
    let set = image_set(&[
        ("grandparent", "base = { debian = 'trixie' }\ninit = 'init.sh'\nhostname = 'g'\nboot = { kernel = '6.1' }"),
        ("parent", "base = { image = 'grandparent' }\nboot = { arguments = ['quiet'] }\nenv = { A = 'x' }"),
        ("child", "base = { image = 'parent' }\nfilesystem = 'ext4'"),
    ]);
    assert_eq!(set.names().collect::<Vec<_>>(), ["child", "grandparent", "parent"], "`shared` is no image");
    let child = set.resolve("child").unwrap();
    assert_eq!(child.ancestors.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["parent", "grandparent"]);
    assert_eq!(child.boot, Boot { arguments: vec!["quiet".into()], ..Boot::default() }, "the key as a whole");
    assert_eq!((&child.spec.hostname, child.spec.env.len()), (&None, 0));
    assert!(matches!(&child.ancestors[1].base.value, Base::Debian { .. }));
    assert_eq!(set.errors().0, []);
}

#[test]
fn links_between_images_are_checked() {
    let set = image_set(&[
        ("lonely", "base = { image = 'lonely' }"),
        ("node-24", "base = { debian = 'trixie' }\nx = 1"),
        ("typo", "base = { image = 'node-42' }"),
        ("heir", "base = { image = 'node-24' }"),
        ("Loud", "base = { debian = 'trixie' }"),
    ]);
    let messages = |name: &str| -> Vec<String> {
        set.resolve(name).unwrap_err().0.iter().map(|error| error.message().to_owned()).collect()
    };
    assert_eq!(messages("lonely"), ["`lonely` is based on itself"]);
    assert_eq!(messages("typo"), ["no image is called `node-42`"]);
    assert_eq!(messages("heir"), ["the base image `node-24` has errors", "unknown key `x`"]);
    assert_eq!(messages("Loud"), ["`Loud` is not a name for an image"]);
    let unknown = set.get("node24").unwrap_err();
    assert_eq!(unknown.0[0].helps(), ["did you mean `node-24`?"]);
    for path in ["images/node-24", "images/node-24/", "./images/node-24/image.toml"] {
        assert_eq!(set.get(path).unwrap_err().0[0].helps(), ["did you mean `node-24`?"], "{path}");
    }
    let all: Vec<String> = set.errors().0.iter().map(|error| error.message().to_owned()).collect();
    let expected = [
        "`Loud` is not a name for an image",
        "`lonely` is based on itself",
        "unknown key `x`",
        "no image is called `node-42`",
    ];
    assert_eq!(all, expected, "each thing once");
}

#[test]
fn a_cycle_is_told_once() {
    let set =
        image_set(&[("a", "base = { image = 'b' }"), ("b", "base = { image = 'c' }"), ("c", "base = { image = 'b' }")]);
    let all: Vec<String> = set.errors().0.iter().map(|error| error.message().to_owned()).collect();
    assert_eq!(all, ["base cycle: b → c → b"]);
    assert_eq!(set.resolve("a").unwrap_err().0[0].message(), "base cycle: b → c → b");
}

/// What a slip of the hand or a hostile author makes of a spec.
#[derive(Debug, Clone)]
enum Edit {
    Delete { at: usize, length: usize },
    Insert { at: usize, text: String },
    Swap { first: usize, second: usize },
}

fn edit() -> impl Strategy<Value = Edit> {
    let token = prop_oneof![
        "[\\[\\]{}=.,\"'#\\n\\t 0-9a-z-]{1,6}",
        Just("\u{202e}名\u{0}".to_owned()),
        Just("1e400".to_owned()),
        Just("-9223372036854775808".to_owned()),
        Just("99999999999999999999999999999TiB".to_owned()),
        Just("[[file]]\n".to_owned()),
        any::<String>(),
    ];
    prop_oneof![
        (any::<usize>(), 1usize..40).prop_map(|(at, length)| Edit::Delete { at, length }),
        (any::<usize>(), token).prop_map(|(at, text)| Edit::Insert { at, text }),
        (any::<usize>(), any::<usize>()).prop_map(|(first, second)| Edit::Swap { first, second }),
    ]
}

fn apply(text: &str, edits: &[Edit]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for edit in edits {
        let length = chars.len().max(1);
        match edit {
            Edit::Delete { at, length: gone } => {
                let at = (at % length).min(chars.len());
                chars.drain(at..(at + gone).min(chars.len()));
            }
            Edit::Insert { at, text } => {
                let at = (at % length).min(chars.len());
                chars.splice(at..at, text.chars());
            }
            Edit::Swap { first, second } => {
                let mut lines: Vec<String> =
                    chars.iter().collect::<String>().split('\n').map(ToOwned::to_owned).collect();
                let count = lines.len();
                lines.swap(first % count, second % count);
                chars = lines.join("\n").chars().collect();
            }
        }
    }
    chars.into_iter().collect()
}

/// Whatever is done to a spec, reading it ends in a spec or in errors that can be shown.
#[test]
fn no_edit_of_a_spec_panics() {
    let images = workspace();
    let folder = images.path().join("complete");
    let config = ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(edits in prop::collection::vec(edit(), 1..6))| {
        let text = apply(COMPLETE, &edits);
        match parse_image(&folder, text.clone()) {
            Ok(spec) => prop_assert!(serde_json::to_string(&spec).is_ok()),
            Err(errors) => {
                prop_assert!(!errors.0.is_empty(), "an error says what is wrong");
                prop_assert!(errors.to_string().contains('^'));
                for error in &errors.0 {
                    let span = error.span().unwrap();
                    prop_assert!(text.get(span).is_some(), "the span is of whole characters inside the text");
                }
            }
        }
    });
}
