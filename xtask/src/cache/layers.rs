//! Layers: what one step of a build changed, as a tar, with what has to be known of it beside it.
//!
//! A layer is named by its key, a digest over all that it depends on, by the digest of what is below it, and by its own. It is used
//! only over the very layer or base on which it was made: two runs may have made the layer of one key, and what they made may
//! differ. A file of one name has one content, so that none is ever replaced by another.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use base16ct::lower::encode_string as hex;
use serde::{Deserialize, Serialize};
use snug_rootfs::{digest, regular_file};

use super::{Cache, Tree, remove_unless_held};
use crate::atomic::Partial;

/// Version of [`LayerInfo`], raised when a key goes or changes its meaning.
const SCHEMA: u32 = 1;
/// Digits of each digest in file names: 128 bits.
const DIGITS: usize = 32;
/// Bytes of the longest description of a layer: some numbers, and one line about the step.
const INFO_MAX: u64 = 64 << 10;
/// The ending of the tars.
const TAR: &str = "tar";

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LayerInfo {
    schema: u32,
    /// SHA-256 of the tar, as hex.
    pub sha256: String,
    /// SHA-256 of the layer below, or of the base.
    pub below: String,
    /// When the first step of the image began, in seconds since 1970.
    pub began: i64,
    /// The step, in one line.
    pub step: String,
}

/// A layer of the cache, which no other run removes while this is held.
#[derive(Debug)]
pub struct Layer {
    pub tar: Tree,
    pub info: LayerInfo,
}

impl Layer {
    /// Whether its content is what was published. It is read for that.
    pub fn is_whole(&self) -> Result<bool> {
        Ok(sha256_of(&self.tar.file()?)? == self.info.sha256)
    }
}

impl Cache {
    /// Returns the folder of layers.
    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Returns the layer of this key that was made on the layer or base `below`, if there is one, and notes that it was used.
    pub fn hold_layer(&self, key: &str, below: &str) -> Result<Option<Layer>> {
        let prefix = format!("{}-{}-", short(key), short(below));
        for path in self.layer_tars()? {
            if !path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&prefix)) {
                continue;
            }
            let Some(tar) = self.hold(&path)? else { continue };
            let text = regular_file::read(&beside(&path), INFO_MAX).ok();
            let info = text.and_then(|text| serde_json::from_slice::<LayerInfo>(&text).ok());
            let Some(info) = info.filter(|info| info.schema == SCHEMA && info.below == below) else { continue };
            // The least recently used go first. Where it cannot be noted, this one goes earlier.
            let _ = tar.file().map(|file| file.set_modified(SystemTime::now()));
            return Ok(Some(Layer { tar, info }));
        }
        Ok(None)
    }

    /// Begins a layer of this key.
    pub fn begin_layer(&self, key: &str) -> Result<Partial> {
        Partial::begin(&self.layers().join(short(key)))
    }

    /// Returns the description of a layer that is complete.
    pub fn describe_layer(&self, partial: &Partial, below: &str, began: i64, step: String) -> Result<LayerInfo> {
        let file = File::open(partial.path()).with_context(|| format!("cannot open {}", partial.path().display()))?;
        Ok(LayerInfo { schema: SCHEMA, sha256: sha256_of(&file)?, below: below.to_owned(), began, step })
    }

    /// Gives a layer that is complete its name, and holds it.
    pub fn publish_layer(&self, partial: Partial, key: &str, info: LayerInfo) -> Result<Layer> {
        let stem = format!("{}-{}-{}", short(key), short(&info.below), short(&info.sha256));
        let place = self.layers().join(format!("{stem}.{TAR}"));
        let text_place = beside(&place);
        if text_place.symlink_metadata().is_ok_and(|about| !about.is_file()) {
            snug_sandbox::remove_folder(&text_place)?;
        }
        let text = Partial::begin(&text_place)?;
        text.file()?.write_all(&serde_json::to_vec_pretty(&info)?)?;
        text.publish()?;
        // The lock of the file that is being written goes on as that of the layer, so that nobody removes it in between.
        let file = partial.file()?;
        file.lock_shared().context("cannot lock a layer")?;
        let path = partial.publish_as(&format!("{stem}.{TAR}"))?;
        self.drop_superseded(key, &stem)?;
        Ok(Layer { tar: Tree { path, file, stamp: None }, info })
    }

    /// Removes the layers of a key except the newest, which were made on another base or at another time, and descriptions that have
    /// no layer. Those that a run holds stay.
    fn drop_superseded(&self, key: &str, newest: &str) -> Result<()> {
        let prefix = format!("{}-", short(key));
        for entry in fs::read_dir(self.layers())? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            if !stem.starts_with(&prefix) || stem == newest {
                continue;
            }
            let tar = path.with_extension(TAR);
            if tar.symlink_metadata().is_err() || remove_unless_held(&tar)? {
                remove(&tar)?;
            }
        }
        Ok(())
    }

    /// Removes a layer that is not what it should be.
    pub fn remove_layer(&self, layer: Layer) -> Result<()> {
        remove(layer.tar.path())
    }

    /// Removes all layers that no run holds. Returns whether none is left.
    pub fn drop_layers(&self) -> Result<bool> {
        let mut all_gone = true;
        for path in self.layer_tars()? {
            all_gone &= remove_unless_held(&path)? && remove(&path).is_ok();
        }
        Ok(all_gone)
    }

    /// Removes the least recently used layers until the rest takes no more than `budget` bytes. Those that a run holds stay.
    pub fn prune_layers(&self, budget: u64) -> Result<()> {
        let mut layers = Vec::new();
        for path in self.layer_tars()? {
            if let Ok(about) = fs::symlink_metadata(&path) {
                layers.push((about.modified()?, about.len(), path));
            }
        }
        layers.sort();
        let mut total: u64 = layers.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in layers {
            if total <= budget {
                break;
            }
            if remove_unless_held(&path)? {
                total -= bytes;
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// Returns the tars of all layers, in order.
    fn layer_tars(&self) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(self.layers()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("cannot list the layers in the cache")?,
        };
        let mut tars = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == TAR) {
                tars.push(path);
            }
        }
        tars.sort();
        Ok(tars)
    }
}

/// Returns a digest as it stands in file names.
fn short(digest: &str) -> &str {
    &digest[..DIGITS.min(digest.len())]
}

/// Removes the tar of a layer, whatever it is, and what stands beside it.
fn remove(tar: &Path) -> Result<()> {
    snug_sandbox::remove_folder(tar)?;
    snug_sandbox::remove_folder(&beside(tar))
}

/// Returns the SHA-256 of a file, as hex.
fn sha256_of(file: &File) -> Result<String> {
    use std::io::Seek;
    let mut file = file;
    file.rewind()?;
    Ok(hex(&digest::of_reader(file, &mut |_| {}).context("cannot read a layer")?))
}

/// Returns the file that describes a layer.
fn beside(layer: &Path) -> PathBuf {
    layer.with_extension("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(cache: &Cache, key: &str, below: &str, content: &[u8]) -> Layer {
        let partial = cache.begin_layer(key).unwrap();
        fs::write(partial.path(), content).unwrap();
        let info = cache.describe_layer(&partial, below, 7, "run: true".to_owned()).unwrap();
        cache.publish_layer(partial, key, info).unwrap()
    }

    #[test]
    fn a_layer_is_used_over_the_one_on_which_it_was_made_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        assert!(cache.hold_layer("key", "base").unwrap().is_none());
        let made = publish(&cache, "key", "base", b"changes").info;
        let held = cache.hold_layer("key", "base").unwrap().expect("it is there");
        assert!(held.info == made && held.is_whole().unwrap() && held.is_whole().unwrap());
        assert!(cache.hold_layer("key", "another").unwrap().is_none());
        fs::write(held.tar.path(), b"changez").unwrap();
        assert!(!held.is_whole().unwrap());
        cache.remove_layer(held).unwrap();
        assert_eq!(fs::read_dir(cache.layers()).unwrap().count(), 0);
        // One that was made later takes the place of those of its key.
        let older = publish(&cache, "key", "base", b"changes").tar.path().to_path_buf();
        let newer = publish(&cache, "key", "another", b"others").tar;
        assert!(!older.exists() && newer.path().exists());
        let newest = publish(&cache, "key", "base", b"newest").tar.path().to_path_buf();
        assert!(newer.path().exists() && newest.exists());
        drop(newer);
        // What describes a layer is no file.
        let path = publish(&cache, "key", "base", b"changes").tar.path().to_path_buf();
        fs::remove_file(beside(&path)).unwrap();
        fs::create_dir_all(beside(&path).join("full")).unwrap();
        assert!(cache.hold_layer("key", "base").unwrap().is_none());
        drop(publish(&cache, "key", "base", b"changes"));
        assert!(cache.hold_layer("key", "base").unwrap().is_some());
    }

    #[test]
    fn the_least_recently_used_layers_go_unless_they_are_held() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let held = publish(&cache, "held", "base", &[1; 100]);
        let [old, new] = ["old", "new"].map(|key| publish(&cache, key, "base", &[1; 100]).tar.path().to_path_buf());
        for (path, age) in [(&old, 300), (&new, 100), (&held.tar.path().to_path_buf(), 400)] {
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(path).unwrap().set_modified(then).unwrap();
        }
        cache.prune_layers(300).unwrap();
        assert!(old.exists());
        cache.prune_layers(200).unwrap();
        assert!(!old.exists() && new.exists() && held.tar.path().exists());
        assert!(!cache.drop_layers().unwrap() && !new.exists() && held.tar.path().exists());
        drop(held);
        assert!(cache.drop_layers().unwrap());
        assert_eq!(fs::read_dir(cache.layers()).unwrap().count(), 0);
    }
}
