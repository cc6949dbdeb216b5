//! Files that belong together: an image, the list of its contents, and the manifest that describes both.
//!
//! No filesystem renames several files at once. So that they always belong together, whatever ends the run or fails between:
//!
//! 1. All are complete and on the disk before the first is renamed.
//! 2. Each gets a name beside its place by which the next run knows it (`.NAME.next`), the one that describes the others last.
//!    Until then the old files stand, and what has the new names is removed.
//! 3. From then on the new ones are the result. What described the old ones is removed, the others take their places, and the
//!    one that describes them the last. What a run that is ended leaves to do is [done](settle) by whoever looks at the files next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::lock_folder;
use super::partial::{Partial, next, sync_folder};
use super::place::{Place, folder_of};

/// Puts complete files in place of what has their names: `others`, and the one that describes them. Whoever calls this holds the
/// [lock](super::lock_folder) of the folder.
///
/// # Errors
///
/// If a file cannot be written to the disk or renamed. Then either the old files stand, or [`settle`] puts the new ones in place.
pub fn publish(mut others: Vec<Partial>, mut describes: Partial) -> Result<()> {
    for partial in others.iter_mut().chain([&mut describes]) {
        partial.sync()?;
    }
    let places: Vec<PathBuf> = others.iter().map(|partial| partial.place().to_path_buf()).collect();
    let described = describes.place().to_path_buf();
    // One that an earlier run was about to place would be taken for the one that describes these.
    remove(&next(&described)?)?;
    for partial in &mut others {
        partial.rename_to_next()?;
    }
    for place in &places {
        sync_folder(place)?;
    }
    describes.rename_to_next()?;
    for partial in others.into_iter().chain([describes]) {
        partial.keep();
    }
    sync_folder(&described)?;
    put_in_place(&places, &described)
}

/// Finishes what a run that was ended has begun to [publish], or removes it: `others` are all files that can belong to the one at
/// `describes`. `is_whole` says whether the file at a path is one that describes the others. Where another run publishes, waits
/// for it.
pub fn settle(others: &[PathBuf], describes: &Path, is_whole: impl FnOnce(&Path) -> bool) -> Result<()> {
    let describes = resolve(describes)?;
    let others: Vec<PathBuf> = others.iter().map(|place| resolve(place)).collect::<Result<_>>()?;
    let waiting = |place: &PathBuf| next(place).is_ok_and(|next| next.symlink_metadata().is_ok());
    if !others.iter().chain([&describes]).any(waiting) {
        return Ok(());
    }
    // Without the lock it cannot be told whether the other run has ended.
    let Some(_alone) = lock_folder(&folder_of(&describes)) else { return Ok(()) };
    if is_whole(&next(&describes)?) {
        return put_in_place(&others, &describes);
    }
    others.iter().chain([&describes]).try_for_each(|place| remove(&next(place)?))
}

/// Takes each step only where it was not taken yet.
fn put_in_place(others: &[PathBuf], describes: &Path) -> Result<()> {
    remove(describes)?;
    for place in others.iter().map(PathBuf::as_path).chain([describes]) {
        match fs::rename(next(place)?, place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && place != describes => {}
            renamed => renamed.with_context(|| format!("cannot name {}", place.display()))?,
        }
    }
    for place in others.iter().map(PathBuf::as_path).chain([describes]) {
        sync_folder(place)?;
    }
    Ok(())
}

/// Returns the path at the end of the symlinks at `place`.
fn resolve(place: &Path) -> Result<PathBuf> {
    Ok(match Place::find(place)? {
        Place::New(path) | Place::File(path, _) => path,
        _ => place.to_path_buf(),
    })
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(place: &Path, text: &str) -> Partial {
        let partial = Partial::begin(place).unwrap();
        fs::write(partial.path(), text).unwrap();
        partial
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Every state in which a run can be ended, made by its steps.
    #[test]
    fn wherever_a_run_is_ended_all_files_are_the_old_or_the_new_ones() {
        let steps = 7;
        for step in 0..=steps {
            let folder = tempfile::tempdir().unwrap();
            fs::create_dir(folder.path().join("elsewhere")).unwrap();
            let at = |name: &str| folder.path().join(name);
            // One of them lies on another disk.
            std::os::unix::fs::symlink("elsewhere/image", at("image")).unwrap();
            for name in ["elsewhere/image", "list", "manifest"] {
                fs::write(at(name), "old").unwrap();
            }
            let mut image = begin(&at("image"), "new");
            let mut list = begin(&at("list"), "new");
            let mut manifest = begin(&at("manifest"), "new");
            let take = |number: usize, action: &mut dyn FnMut()| {
                if number <= step {
                    action();
                }
            };
            take(1, &mut || image.rename_to_next().unwrap());
            take(2, &mut || list.rename_to_next().unwrap());
            take(3, &mut || manifest.rename_to_next().unwrap());
            for partial in [image, list, manifest] {
                // As `kill -9` leaves it.
                partial.keep();
            }
            take(4, &mut || fs::remove_file(at("manifest")).unwrap());
            take(5, &mut || fs::rename(at("elsewhere/.image.next"), at("elsewhere/image")).unwrap());
            take(6, &mut || fs::rename(at(".list.next"), at("list")).unwrap());
            take(7, &mut || fs::rename(at(".manifest.next"), at("manifest")).unwrap());

            // Of another type of image, there is none.
            let others = [at("other"), at("image"), at("list")];
            settle(&others, &at("manifest"), |path| path.is_file()).unwrap();
            for name in ["elsewhere", "."] {
                Partial::sweep(&at(name), "").unwrap();
            }
            let expected = if step < 3 { "old" } else { "new" };
            for name in ["image", "list", "manifest"] {
                assert_eq!(fs::read_to_string(at(name)).unwrap(), expected, "{step}: {name}");
            }
            assert_eq!(names(folder.path()), ["elsewhere", "image", "list", "manifest"], "{step}");
            assert_eq!(names(&at("elsewhere")), ["image"], "{step}");
        }
    }

    #[test]
    fn where_one_cannot_be_placed_the_old_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["image", "manifest"] {
            fs::write(at(name), "old").unwrap();
        }
        fs::create_dir(at(".manifest.next")).unwrap();
        let published = publish(vec![begin(&at("image"), "new")], begin(&at("manifest"), "new"));
        assert!(published.is_err());
        for name in ["image", "manifest"] {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), "old");
        }
        assert_eq!(names(folder.path()), [".manifest.next", "image", "manifest"]);
    }
}
