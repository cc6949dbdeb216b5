//! The files that a spec names: they exist, in the image's folder or the shared one.

use std::fs::{self, Metadata};
use std::io;
use std::path::{Component, Path, PathBuf};

use super::model::SourcePath;
use super::nearest;
use super::reader::Problem;
use super::{SHARED_FOLDER, SPEC_FILE};

/// A file or folder that a spec names.
#[derive(Debug)]
pub(crate) struct Source {
    pub path: SourcePath,
    pub is_folder: bool,
}

/// Returns the file or folder that `written` names, relative to the image's `folder`. It must exist, and with symlinks
/// followed be in that folder or in the folder `shared` beside it.
pub(crate) fn find(folder: &Path, written: &str) -> Result<Source, Problem> {
    let outside = || {
        let help = format!("copy it beside `{SPEC_FILE}`, or into `../{SHARED_FOLDER}` for several images to use");
        Problem::new(format!("`{written}` is outside the image's folder"), help)
    };
    let shared = folder.parent().unwrap_or(Path::new("..")).join(SHARED_FOLDER);
    let path = flatten(folder, Path::new(written)).ok_or_else(outside)?;
    if !path.starts_with(folder) && !path.starts_with(&shared) {
        return Err(outside());
    }
    let unreadable = |error: io::Error| Problem::new(format!("cannot read `{written}`: {}", reason(&error)), "");
    let real = match path.canonicalize() {
        Ok(real) => real,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(missing(&path, written));
        }
        Err(error) => return Err(unreadable(error)),
    };
    let within = |top: &Path| top.canonicalize().is_ok_and(|top| real.starts_with(top));
    if !within(folder) && !within(&shared) {
        let message = format!("`{written}` leads outside the image's folder through a symlink");
        return Err(Problem { message, ..outside() });
    }
    let metadata = fs::metadata(&real).map_err(unreadable)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err(Problem::new(format!("`{written}` is {}, neither a file nor a folder", noun(&metadata)), ""));
    }
    Ok(Source { path: SourcePath { written: written.into(), path }, is_folder: metadata.is_dir() })
}

/// Joins `written` to `folder` and resolves `.` and `..` lexically; `None` if it leads above the folder of images.
fn flatten(folder: &Path, written: &Path) -> Option<PathBuf> {
    let mut path = folder.to_path_buf();
    // One `..` leads to the folder of images, of which only `shared` may be used; a second one leads out of it.
    let mut climbed = 0;
    let mut depth = 0;
    for component in written.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => {
                path.push(name);
                depth += 1;
            }
            Component::ParentDir if depth > 0 => {
                path.pop();
                depth -= 1;
            }
            Component::ParentDir if climbed == 0 => {
                path = folder.parent()?.to_path_buf();
                climbed += 1;
            }
            _ => return None,
        }
    }
    Some(path)
}

fn missing(path: &Path, written: &str) -> Problem {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let beside: Vec<String> = path
        .parent()
        .and_then(|parent| fs::read_dir(parent).ok())
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let mut beside: Vec<&str> = beside.iter().map(String::as_str).collect();
    beside.sort_unstable();
    let help = match nearest::nearest(&name, beside) {
        Some(near) => format!("did you mean `{}`?", written.replace(&name, near)),
        None => format!("paths are relative to the folder of `{SPEC_FILE}`"),
    };
    Problem::new(format!("`{written}` does not exist"), help)
}

fn noun(metadata: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    match () {
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// Returns the text of a system error, without its number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
