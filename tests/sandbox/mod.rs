//! What hostile bases and steps of the engine builtin reach of the host beside its folders. As root and as a user.

mod files;
mod reach;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use snug_tests::{Workshop, succeed};

/// Writes the spec `hostile`, on a base of these files, all of them executable: a file of the host, and its path in the base.
fn hostile(workshop: &Workshop, files: &[(&Path, &str)], rest: &str) {
    let root = workshop.path("hostile");
    for (from, to) in files {
        let place = root.join(to);
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        fs::copy(from, &place).expect("a file of the base");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).expect("a mode");
    }
    let tar = workshop.path("hostile.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).args(["--owner", "0", "--group", "0", "-C"]).arg(&root).arg("."));
    let spec = format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{rest}\n", tar.display());
    workshop.write_spec("hostile", &spec);
}

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Builder {
    Root,
    User,
}

const BUILDERS: [Builder; 2] = [Builder::Root, Builder::User];

impl Builder {
    /// The command that builds `hostile`, by a copy of the program that belongs to the builder, and the copy.
    fn command(self, workshop: &Workshop) -> (Command, PathBuf) {
        let program = workshop.path("xtask");
        let mut user = workshop.xtask_as_user(&["image", "hostile"], 65536);
        match self {
            Builder::User => {
                let owner = fs::metadata(workshop.path("home")).expect("a home").uid();
                chown(&program, Some(owner), Some(owner)).expect("an owner");
                user.env("PATH", path_with(workshop));
                (user, program)
            }
            Builder::Root => {
                let mut root = Command::new(&program);
                root.args(workshop.xtask(&["image", "hostile"]).get_args());
                root.current_dir(snug_tests::workspace()).env("XDG_CACHE_HOME", workshop.path("cache"));
                root.env("PATH", path_with(workshop)).env("NO_COLOR", "1");
                (root, program)
            }
        }
    }

    fn image(self, workshop: &Workshop) -> PathBuf {
        let folder = match self {
            Builder::Root => workshop.path("out/hostile"),
            Builder::User => workshop.path("home/out/hostile"),
        };
        // Those of another platform are in a folder of their own.
        ["rootfs.ext4", "linux-arm64/rootfs.ext4"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.exists())
            .expect("an image")
    }
}

/// The programs of the workshop's own `bin` come before the host's.
fn path_with(workshop: &Workshop) -> String {
    format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", workshop.path("bin").display())
}

/// Content of a file in an image; empty where it has none.
fn content(image: &Path, path: &str) -> String {
    let output = succeed(Command::new("debugfs").args(["-R", &format!("cat {path}")]).arg(image));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
