//! Real container engines for tests: a dockerd of the test's own, and podman in folders of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use snug_tests::{have, is_root, skip};

/// How long a daemon may take to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A dockerd with all of its data in a temporary folder. It ends, and the folder is removed, when this is dropped.
pub(crate) struct Dockerd {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Dockerd {
    /// Starts one where this host can; where not, the test must return, as with [`have`]. It does not see what is in
    /// `hidden`, as a daemon on another machine would not.
    #[track_caller]
    pub(crate) fn start(hidden: &Path) -> Option<Self> {
        if !have(&["dockerd", "docker", "containerd", "runc", "unshare"]) || !is_root() {
            return None;
        }
        let folder = tempfile::Builder::new().prefix("dockerd").tempdir().expect("a temporary folder");
        // Overlay mounts do not stack on overlay: there vfs, which copies, is what works everywhere.
        for driver in ["overlay2", "vfs"] {
            if let Some(daemon) = launch(folder.path(), hidden, driver) {
                return Some(Dockerd { folder, daemon });
            }
        }
        let log = fs::read_to_string(folder.path().join("log")).unwrap_or_default();
        skip(&format!("dockerd does not come up: {}", log.lines().last().unwrap_or_default()));
        None
    }

    /// For `DOCKER_HOST`.
    pub(crate) fn host(&self) -> String {
        host(self.folder.path())
    }

    /// The folder of its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The docker command, told of this daemon.
    pub(crate) fn docker(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.host()).env("DOCKER_BUILDKIT", "0");
        command
    }
}

fn host(folder: &Path) -> String {
    format!("unix://{}", folder.join("docker.sock").display())
}

/// In a mount namespace of its own, with which its mounts go as well.
fn launch(folder: &Path, hidden: &Path, driver: &str) -> Option<Child> {
    let log = fs::File::create(folder.join("log")).expect("a log");
    let mut daemon = Command::new("unshare")
        .args(["--mount", "--", "/bin/sh", "-ec", "mount -t tmpfs none \"$0\"; exec dockerd \"$@\""])
        .arg(hidden)
        .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--oom-score-adjust", "0"])
        .args(["--storage-driver", driver, "--host", &host(folder)])
        .arg("--data-root")
        .arg(folder.join("data"))
        .arg("--exec-root")
        .arg(folder.join("exec"))
        .arg("--pidfile")
        .arg(folder.join("pid"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("dockerd runs");
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        let mut docker = Command::new("docker");
        docker.args(["version", "--format", "{{.Server.Version}}"]).env("DOCKER_HOST", host(folder));
        if docker.output().is_ok_and(|output| output.status.success()) {
            return Some(daemon);
        }
        if daemon.try_wait().expect("a child").is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    end(&mut daemon);
    None
}

fn end(daemon: &mut Child) {
    // It takes its containers and containerd down with it, where SIGKILL would leave them.
    let _ = Command::new("kill").arg(daemon.id().to_string()).status();
    let _ = daemon.wait();
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        end(&mut self.daemon);
    }
}

/// Podman's images and containers in a folder of the test's own; its mounts go when this is dropped.
pub(crate) struct Podman {
    folder: PathBuf,
}

impl Podman {
    /// Where there is no podman, the test must return, as with [`have`]. The folder must be the user's who runs it.
    #[track_caller]
    pub(crate) fn prepare(folder: &Path, driver: &str) -> Option<Self> {
        if !have(&["podman"]) {
            return None;
        }
        let storage = format!(
            "[storage]\ndriver = \"{driver}\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
            folder.display()
        );
        fs::write(folder.join("storage.conf"), storage).expect("a file");
        Some(Podman { folder: folder.to_path_buf() })
    }

    /// Tells a command, and the podman it starts, of the folder.
    pub(crate) fn tell<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("CONTAINERS_STORAGE_CONF", self.folder.join("storage.conf")).env("XDG_RUNTIME_DIR", &self.folder)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        unmount_below(&self.folder);
    }
}

/// Mounts may outlive what made them; the folder's removal would go into them.
fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let here = folder.to_string_lossy().into_owned();
    for place in mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&here)) {
        let _ = Command::new("umount").args(["--lazy", place]).status();
    }
}
