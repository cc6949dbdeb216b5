//! The same tar gives the same bytes for every user, folder, locale and umask.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use snug_tests::{Workshop, have, is_root, succeed, xtask};

/// A user that owns nothing.
const NOBODY: &str = "65534";

/// Files, links, directories over one block, attributes, sub-second times.
const FOLDER: &str = r#"
    mkdir -p root/etc root/usr/share
    for number in $(seq 700); do echo $number >"root/usr/share/a longer name $number"; done
    ln root/etc/../usr/share/*\ 7 root/etc/seven; ln -s seven root/etc/link; mkfifo root/etc/fifo
    truncate -s 5M root/etc/holes; echo end >>root/etc/holes
    setfattr -n user.note -v "a note" root/etc/seven
    tar --create --file root.tar --format pax --sparse --xattrs --xattrs-include='*' -C root .
"#;

/// `words` of the tool with an output file, as the shell words of one surrounding.
struct Surrounding {
    name: &'static str,
    folder: &'static str,
    environment: &'static [(&'static str, &'static str)],
    umask: &'static str,
    piped: bool,
    as_nobody: bool,
}

const SURROUNDINGS: [Surrounding; 4] = [
    Surrounding { name: "plain", folder: "/", environment: &[], umask: "022", piped: false, as_nobody: false },
    Surrounding {
        name: "far away",
        folder: "/usr",
        environment: &[("TZ", "Asia/Kathmandu"), ("LC_ALL", "tr_TR.UTF-8"), ("LANG", "tr_TR.UTF-8"), ("USER", "x")],
        umask: "077",
        piped: true,
        as_nobody: false,
    },
    Surrounding {
        name: "nobody's",
        folder: "/tmp",
        environment: &[("TZ", "America/St_Johns"), ("HOME", "/nonexistent"), ("E2FSPROGS_FAKE_TIME", "1000")],
        umask: "000",
        piped: false,
        as_nobody: true,
    },
    Surrounding {
        name: "nobody's with a pipe",
        folder: "/",
        environment: &[("LC_ALL", "C"), ("MKE2FS_CONFIG", "/nonexistent")],
        umask: "027",
        piped: true,
        as_nobody: true,
    },
];

#[test]
fn two_builds_in_different_surroundings_are_the_same_bytes() {
    if !have(&["tar", "setfattr", "setpriv"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    succeed(Command::new("bash").args(["-ec", FOLDER]).current_dir(folder.path()));
    let tar = folder.path().join("root.tar");
    // Where nobody can go: the workspace may be in a private folder.
    let tool = folder.path().join("xtask");
    fs::copy(xtask().get_program(), &tool).expect("the tool can be copied");
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the folder is ours");
    let mut first: Option<Vec<u8>> = None;
    for surrounding in SURROUNDINGS {
        if surrounding.as_nobody && !is_root() {
            continue;
        }
        let place = folder.path().join(surrounding.name);
        fs::create_dir(&place).expect("the folder is ours");
        fs::set_permissions(&place, Permissions::from_mode(0o777)).expect("the folder is ours");
        let image = place.join("rootfs.ext4");
        pack(&surrounding, &tool, &tar, &image);
        let bytes = fs::read(&image).expect("an image");
        let first = first.get_or_insert_with(|| bytes.clone());
        assert!(*first == bytes, "{} differs", surrounding.name);
    }
}

fn pack(surrounding: &Surrounding, tool: &Path, tar: &Path, image: &Path) {
    let mut command = match surrounding.as_nobody {
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--"]);
            command
        }
        false => Command::new("env"),
    };
    let script = format!("umask {}; exec \"$0\" \"$@\"", surrounding.umask);
    command.args(["sh", "-c", &script]).arg(tool).arg("pack");
    command.arg(if surrounding.piped { Path::new("-") } else { tar }).arg("-o").arg(image);
    command.current_dir(surrounding.folder).envs(surrounding.environment.iter().copied());
    // `cat` makes a pipe of it: a redirected file could be sought in.
    let mut cat = surrounding.piped.then(|| {
        let mut cat = Command::new("cat");
        cat.stdin(File::open(tar).expect("the tar")).stdout(Stdio::piped()).spawn().expect("cat runs")
    });
    if let Some(cat) = &mut cat {
        command.stdin(cat.stdout.take().expect("a pipe"));
    }
    succeed(&mut command);
    if let Some(mut cat) = cat {
        assert!(cat.wait().expect("cat ends").success());
    }
}

/// Whose directories the tool itself changes: mount points are missing, services get a policy while steps run, files of the spec
/// go into directories old and new. And the root has no entry.
const BARE_BASE: &str =
    "mkdir -p bare/bin bare/etc bare/usr/sbin bare/usr/share; cp root/bin/busybox bare/bin/; ln -s busybox bare/bin/sh
    cp root/etc/passwd bare/etc/; find bare -exec touch -h -d @1000000000 {} +; tar -cf bare.tar -C bare bin etc usr";

#[test]
fn no_time_of_the_build_reaches_a_tree_that_no_step_wrote_to() {
    if !have(&["busybox", "newuidmap", "python3"]) {
        return;
    }
    let workshop = Workshop::new();
    succeed(Command::new("bash").args(["-ec", BARE_BASE]).current_dir(workshop.path("")));
    let bare = workshop.path("bare.tar");
    let spec = format!(
        "base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\nrun = [\"true\"]\n\
         file = [{{ content = \"1\", to = \"/opt/new/one\" }}, {{ content = \"1\", to = \"/usr/share/two\" }}]\n",
        bare.display()
    );
    workshop.write_spec("made", &spec);
    let tar = workshop.path("made.tar");
    let mut export = workshop.xtask(&["export", "made"]);
    succeed(export.arg("--output").arg(&tar).env_remove("SOURCE_DATE_EPOCH"));
    let newest = "import sys, tarfile\nfor member in tarfile.open(sys.argv[1]):\n if member.mtime > 1000000000: print(member.name)";
    let newer = succeed(Command::new("python3").args(["-c", newest]).arg(&tar));
    assert_eq!(String::from_utf8_lossy(&newer.stdout), "", "these have the time of the build");
}
