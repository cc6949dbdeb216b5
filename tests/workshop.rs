//! A temporary workspace for small images: a busybox base, specs, a cache and results, all removed with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{busybox_base, succeed, xtask};

/// The uid of nobody on the host, under which a [`Workshop`] can run the command.
const USER: u32 = 61_234;
/// Its first subordinate id.
const FIRST_SUBORDINATE: u32 = 7_000_000;

/// Returns a number that nothing else of these tests has, of this run or of another, for the argument of a process that is to
/// be found again: `sleep` takes it as seconds. Tests are threads of one process, and a test may start several.
pub fn number_of_its_own() -> String {
    /// Numbers that a run has: with ids of processes up to 2^22 (`pid_max` of proc_sys_kernel(5)), 31 bits hold them all.
    const EACH: u32 = 500;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(next < EACH, "a run has {EACH} numbers");
    (std::process::id() * EACH + next).to_string()
}

/// Folders and the command.
pub struct Workshop {
    folder: tempfile::TempDir,
}

impl Default for Workshop {
    fn default() -> Self {
        Self::new()
    }
}

impl Workshop {
    /// Needs busybox.
    #[track_caller]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        busybox_base(folder.path());
        Workshop { folder }
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Writes the spec `name`: the busybox base, ext4, and `rest`.
    #[track_caller]
    pub fn spec(&self, name: &str, rest: &str) {
        let base = self.path("base.tar");
        self.write_spec(name, &format!("base = {{ tar = \"{}\" }}\nfilesystem = \"ext4\"\n{rest}\n", base.display()));
    }

    /// Writes the spec `name` as it is.
    #[track_caller]
    pub fn write_spec(&self, name: &str, text: &str) {
        let folder = self.path("images").join(name);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("image.toml"), text).expect("a spec");
    }

    /// Returns the tar of a Debian root, from the cache of the user who runs the tests: what is tested is not how it was
    /// made. Needs mmdebstrap.
    #[track_caller]
    pub fn debian_base(&self) -> PathBuf {
        self.write_spec("debian-of-the-tests", "base = { debian = \"trixie\" }\n");
        let base = self.path("debian.tar");
        let mut export = xtask();
        export.args(["export", "debian-of-the-tests", "--output"]).arg(&base);
        succeed(export.arg("--images").arg(self.path("images")));
        base
    }

    pub fn image(&self, name: &str) -> PathBuf {
        self.path("out").join(name).join("rootfs.ext4")
    }

    /// The command on the workshop's specs, cache and results; `words` begin with a verb that takes all three.
    pub fn xtask(&self, words: &[&str]) -> Command {
        let mut command = xtask();
        command.args(words).arg("--images").arg(self.path("images")).env("XDG_CACHE_HOME", self.path("cache"));
        if words[0] != "export" {
            command.arg("--output").arg(self.path("out"));
        }
        command
    }

    /// Builds `name` and returns the output.
    #[track_caller]
    pub fn build(&self, name: &str) -> Output {
        self.xtask(&["image", name]).output().expect("xtask runs")
    }

    /// Returns the names in a folder of the workshop; none if the folder is missing.
    pub fn names(&self, below: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(below)).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }

    /// The command as a user who is nobody else here, with `ids` subordinate ids, a home and a cache in `home`, and
    /// without any trace on the host: the accounts are of a mount namespace. Needs root.
    #[track_caller]
    pub fn xtask_as_user(&self, words: &[&str], ids: u32) -> Command {
        let home = self.path("home");
        fs::create_dir_all(&home).expect("a folder");
        chown(&home, Some(USER), Some(USER)).expect("a home of the user's");
        fs::set_permissions(self.folder.path(), fs::Permissions::from_mode(0o755)).expect("a way to it");
        let program = self.path("xtask");
        if !program.exists() {
            // Where cargo builds is often closed to others.
            fs::copy(xtask().get_program(), &program).expect("a copy of the command");
            let cargo = String::from_utf8(succeed(Command::new("rustup").args(["which", "cargo"])).stdout);
            let cargo = cargo.map(|path| PathBuf::from(path.trim_end())).expect("a path");
            fs::copy(cargo, self.path("cargo")).expect("a copy of cargo");
            fs::write(self.path("Cargo.toml"), "[workspace]\nresolver = \"3\"\n").expect("a workspace");
        }
        for (file, line) in [
            ("passwd", format!("snugtest:x:{USER}:{USER}::{}:/bin/sh", home.display())),
            ("group", format!("snugtest:x:{USER}:")),
            ("subuid", format!("snugtest:{FIRST_SUBORDINATE}:{ids}")),
            ("subgid", format!("snugtest:{FIRST_SUBORDINATE}:{ids}")),
        ] {
            let own = fs::read_to_string(Path::new("/etc").join(file)).unwrap_or_default();
            fs::write(self.path(file), format!("{own}{line}\n")).expect("a file of accounts");
        }
        let script = r#"
            set -e
            for file in passwd group subuid subgid; do
                [ -e /etc/$file ] && mount --bind "$1/$file" /etc/$file
            done
            cd "$1"
            shift
            exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups -- "$@"
        "#;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]).arg(self.folder.path());
        command.arg(program).args(words).arg("--images").arg(self.path("images"));
        if words[0] != "export" {
            command.arg("--output").arg(home.join("out"));
        }
        command
            .current_dir("/")
            .env_clear()
            .env("USER_ID", USER.to_string())
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", &home).env("CARGO", self.path("cargo")).env("NO_COLOR", "1");
        command
    }
}
