//! podman's pause process: without root, the first command of a user starts one, which holds the user namespace for the
//! commands to come, and leaves it behind. The run that caused it ends it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Pid, Uid};

/// What the process is called: by podman itself, or by the init of containers that it runs for it.
const NAMES: [&str; 3] = ["podman pause", "podman", "catatonit"];

/// Has processes whose parent ends become children of this one (prctl(2), PR_SET_CHILD_SUBREAPER): podman detaches its pause
/// process, and this is how it is known to be of this run.
pub(super) fn adopt() {
    if !Uid::effective().is_root() {
        // Where the kernel refuses it, the process stays, as podman means it to.
        let _ = prctl::set_child_subreaper(true);
    }
}

/// Ends the pause process that commands of this run have started, unless something else has joined its namespace.
pub(super) fn end() {
    if Uid::effective().is_root() {
        return;
    }
    let processes: Vec<Pid> = processes().collect();
    let ours = user_namespace(Pid::this());
    for &process in processes.iter().filter(|process| is_adopted(**process)) {
        let namespace = user_namespace(process);
        let shared = processes.iter().any(|other| *other != process && user_namespace(*other) == namespace);
        // A command of podman's itself is in the namespace of this run.
        if namespace.is_some() && namespace != ours && !shared {
            // It may have ended by itself.
            let _ = kill(process, Signal::SIGKILL).and_then(|()| waitpid(process, None).map(drop));
        }
    }
}

/// Whether a process is a pause process and a child of this one.
fn is_adopted(process: Pid) -> bool {
    // proc_pid_stat(5): `pid (comm) state ppid …`; the name may hold spaces and parentheses.
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let Some((before, after)) = stat.rsplit_once(')') else { return false };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    let parent = after.split_whitespace().nth(1).and_then(|parent| parent.parse().ok());
    parent == Some(Pid::this().as_raw()) && NAMES.contains(&name)
}

/// Returns the user namespace of a process, if this user may know it.
fn user_namespace(process: Pid) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(process.to_string()).join("ns/user")).ok()
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok().map(Pid::from_raw))
}
