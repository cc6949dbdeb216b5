//! What package steps find of earlier downloads, and what is kept of theirs.
//!
//! Nothing that a step writes is seen by a build of another image or on another base. What may be shared is shared by digest:
//! apt's packages, which its signed index names, and npm's tarballs, which it verifies. They stand in the store, which steps see
//! read-only, as links to it: a copy would cost as much as the package, and a hard link could be written through. Indexes of npm,
//! and the caches of pip and apk, which believe what is in them, belong to the image on its base.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use snug_sandbox::{CACHES, MountedFolder};

use crate::cache::{Algorithm, Cache, Store};
use crate::plan::{BuildPlan, PackageManager, Step, StepAction};

/// The name below [`CACHES`] under which steps find the store.
pub(super) const STORE: &str = "store";
/// The package managers that have a folder to write to.
const WRITABLE: [PackageManager; 4] =
    [PackageManager::Apt, PackageManager::Apk, PackageManager::Npm, PackageManager::Pip];

/// What the names of Debian's packages end with.
const PACKAGE: &str = "deb";

/// Where npm has its cache in the folder that it is given, and what is cached.
const NPM_CACHE: &str = "_cacache";
const NPM_CONTENTS: &str = "content-v2";
/// Content that is named by its SHA-512, as all is that registries publish today (cacache, lib/content/path.js).
const NPM_CONTENT: &str = "content-v2/sha512";
/// Folders between that and a file: `ab/cd/ef…`.
const NPM_DEPTH: usize = 2;
/// What is cached under which address (cacache, lib/entry-index.js).
const NPM_INDEX: &str = "index-v5";

/// The part of npm's cache that is kept, among the image's downloads.
const KEPT_INDEX: &str = "npm-index";

/// The downloads of one build.
pub(super) struct Downloads {
    store: Store,
    /// The image's own folder, which no other build uses while its tree is locked.
    own: PathBuf,
}

impl Downloads {
    /// Makes the folders for the package steps of `plan`; `None` where it has none.
    pub(super) fn prepare(cache: &Cache, plan: &BuildPlan) -> Result<Option<Self>> {
        let managers: Vec<PackageManager> = plan.steps.iter().filter_map(installs).collect();
        if managers.is_empty() {
            return Ok(None);
        }
        let image = format!("{}_{}", plan.name, plan.platform.file_name());
        let own = cache.downloads_of(&image, &plan.base.fingerprint())?;
        let downloads = Downloads { store: cache.store()?, own };
        // What a killed build downloaded. What cannot be read or moved is of no use to this one either.
        if downloads.keep().is_err() {
            snug_sandbox::remove_folder(&downloads.own)?;
        }
        for manager in WRITABLE {
            fs::create_dir_all(downloads.own(manager)).context("cannot make a folder of downloads")?;
        }
        if managers.contains(&PackageManager::Npm) {
            downloads.fill_npm().context("cannot make npm's cache")?;
        }
        Ok(Some(downloads))
    }

    /// Returns what to mount below [`CACHES`].
    pub(super) fn mounts(&self) -> Vec<MountedFolder> {
        let store = MountedFolder { name: STORE.into(), folder: self.store.folder().to_path_buf(), read_only: true };
        let writable = |manager: PackageManager| MountedFolder {
            name: manager.as_str().into(),
            folder: self.own(manager),
            read_only: false,
        };
        [store].into_iter().chain(WRITABLE.map(writable)).collect()
    }

    /// Takes what the steps downloaded into the store. All their processes have ended, so that nothing changes meanwhile.
    pub(super) fn keep(&self) -> Result<()> {
        self.keep_apt().and_then(|()| self.keep_npm()).context("cannot keep what was downloaded")
    }

    fn own(&self, manager: PackageManager) -> PathBuf {
        self.own.join(manager.as_str())
    }

    /// Takes apt's packages. All else goes as well: apt would use packages for their length alone, and what it finds in
    /// `partial` as the beginning of one.
    fn keep_apt(&self) -> Result<()> {
        let folder = self.own(PackageManager::Apt);
        // Folders first, and with them the second names that packages may have there.
        for entry in entries(&folder)? {
            if entry.file_type()?.is_dir() {
                snug_sandbox::remove_folder(&entry.path())?;
            }
        }
        for entry in entries(&folder)? {
            let path = entry.path();
            let is_package = path.extension().is_some_and(|extension| extension == PACKAGE);
            if !(is_package && self.store.take(&path, Algorithm::Sha256, None)?) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Takes npm's content, and its index as it is. The rest of its cache goes.
    fn keep_npm(&self) -> Result<()> {
        let cache = self.own(PackageManager::Npm);
        let [folder, content] = [cache.join(NPM_CACHE), cache.join(NPM_CACHE).join(NPM_CONTENT)];
        let mut files = Vec::new();
        if [&folder, &folder.join(NPM_CONTENTS), &content].into_iter().all(|path| is_folder(path)) {
            gather(&content, NPM_DEPTH, &mut files)?;
        }
        for file in files {
            let words = file.strip_prefix(&content).unwrap_or(&file).iter().map(|word| word.to_string_lossy());
            self.store.take(&file, Algorithm::Sha512, Some(&words.collect::<String>()))?;
        }
        // Renamed and not entered: it is what a step wrote.
        let [index, kept] = [folder.join(NPM_INDEX), self.own.join(KEPT_INDEX)];
        if is_folder(&folder) && is_folder(&index) {
            snug_sandbox::remove_folder(&kept)?;
            fs::rename(index, kept)?;
        }
        snug_sandbox::remove_folder(&cache)
    }

    /// Makes npm's cache: the image's index, and links to the store's content where npm looks for it.
    fn fill_npm(&self) -> Result<()> {
        let cache = self.own(PackageManager::Npm).join(NPM_CACHE);
        let content = cache.join(NPM_CONTENT);
        fs::create_dir_all(&content)?;
        let kept = self.own.join(KEPT_INDEX);
        if is_folder(&kept) {
            fs::rename(kept, cache.join(NPM_INDEX))?;
        }
        let shown = Path::new(CACHES).join(STORE).join(Algorithm::Sha512.as_str());
        for entry in entries(&self.store.files(Algorithm::Sha512))? {
            let digest = entry.file_name();
            let Some(place) = digest.to_str().and_then(npm_content) else { continue };
            let place = content.join(place);
            fs::create_dir_all(place.parent().unwrap_or(&content))?;
            symlink(shown.join(&digest), place)?;
        }
        Ok(())
    }
}

fn installs(step: &Step) -> Option<PackageManager> {
    match &step.action {
        StepAction::Install { manager, .. } => Some(*manager),
        _ => None,
    }
}

/// Returns where npm keeps content with this digest, below [`NPM_CONTENT`]: `ab/cd/ef…`.
fn npm_content(digest: &str) -> Option<PathBuf> {
    Some([digest.get(..2)?, digest.get(2..4)?, digest.get(4..)?].iter().collect())
}

/// Whether there is a folder, and no link to one.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|about| about.is_dir())
}

/// Adds the plain files `depth` folders below a folder, without following links.
fn gather(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in entries(folder)? {
        let kind = entry.file_type()?;
        if depth > 0 && kind.is_dir() {
            gather(&entry.path(), depth - 1, files)?;
        } else if depth == 0 && kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Returns what is in a folder; nothing if it does not exist.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            entries.and_then(|entries| entries.collect()).with_context(|| format!("cannot read {}", folder.display()))
        }
    }
}
