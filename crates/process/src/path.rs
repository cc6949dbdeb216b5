//! Where the host's programs are.

use std::path::PathBuf;

/// Where Debian has the administrator's programs, which the PATH of users without root often lacks.
const SYSTEM_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Returns the path of a program: the first on PATH or in the folders of the administrator's programs (`/usr/sbin` and its
/// like), which the PATH of users without root often lacks. An absolute path is returned as it is if it exists.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM_FOLDERS.map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}
