//! Layers: what one step of a build changed, as a tar, with what has to be known of it beside it.
//!
//! A layer is named by its key, a digest over all that it depends on. It is used only over the very layer on which it was made:
//! two runs may have made the layer of one key, and what they made may differ.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use snug_rootfs::digest;

use super::{Cache, Tree, remove_unless_held};
use crate::atomic::Partial;

/// Version of [`About`], raised when a key goes or changes its meaning.
const SCHEMA: u32 = 1;
/// Digits of a key in file names: 128 bits.
const KEY_DIGITS: usize = 32;

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct About {
    schema: u32,
    /// SHA-256 of the tar, as hex.
    pub sha256: String,
    /// SHA-256 of the layer below, or of the base.
    pub below: String,
    /// When the first step of the image began, in seconds since 1970.
    pub began: i64,
    /// The step, in one line.
    pub step: String,
    /// Size of the tar in bytes.
    pub bytes: u64,
}

/// A layer of the cache, which no other run removes while this is held.
#[derive(Debug)]
pub struct Layer {
    pub tar: Tree,
    pub about: About,
}

impl Layer {
    /// Whether its content is what was published. It is read for that.
    pub fn is_whole(&self) -> Result<bool> {
        Ok(sha256_of(self.tar.path())? == self.about.sha256)
    }
}

impl Cache {
    /// Returns where the layer of this key stands.
    pub fn layer(&self, key: &str) -> PathBuf {
        self.layers().join(format!("{}.tar", &key[..KEY_DIGITS.min(key.len())]))
    }

    /// Returns the folder of layers.
    pub(super) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Returns the layer of this key, if it is there and was made on the layer `below`, and notes that it was used.
    pub fn hold_layer(&self, key: &str, below: &str) -> Result<Option<Layer>> {
        let path = self.layer(key);
        let Some(tar) = self.hold(&path)? else { return Ok(None) };
        let about = fs::read(beside(&path)).ok().and_then(|text| serde_json::from_slice::<About>(&text).ok());
        let fits = |about: &About| {
            let bytes = fs::metadata(&path).map(|found| found.len());
            about.schema == SCHEMA && about.below == below && bytes.is_ok_and(|bytes| bytes == about.bytes)
        };
        let Some(about) = about.filter(fits) else { return Ok(None) };
        // The least recently used go first. Where it cannot be noted, this one goes earlier.
        let _ = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(Layer { tar, about }))
    }

    /// Begins a layer of this key.
    pub fn begin_layer(&self, key: &str) -> Result<Partial> {
        Partial::begin(&self.layer(key))
    }

    /// Returns what is to be known of a layer that is complete.
    pub fn about_layer(&self, partial: &Partial, below: &str, began: i64, step: String) -> Result<About> {
        let path = partial.path();
        let bytes = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        Ok(About { schema: SCHEMA, sha256: sha256_of(path)?, below: below.to_owned(), began, step, bytes })
    }

    /// Gives a layer that is complete its name.
    pub fn publish_layer(&self, partial: Partial, about: About) -> Result<Option<Layer>> {
        let place = partial.publish()?;
        let text = Partial::begin(&beside(&place))?;
        let mut file = File::options().write(true).open(text.path())?;
        file.write_all(&serde_json::to_vec_pretty(&about)?)?;
        text.publish()?;
        Ok(self.hold(&place)?.map(|tar| Layer { tar, about }))
    }

    /// Removes a layer that is not what it should be.
    pub fn remove_layer(&self, key: &str) -> Result<()> {
        let path = self.layer(key);
        for path in [beside(&path), path] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the least recently used layers until the rest takes no more than `budget` bytes. Those that a run holds stay.
    pub fn prune_layers(&self, budget: u64) -> Result<()> {
        let mut layers = Vec::new();
        let Ok(entries) = fs::read_dir(self.layers()) else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            if entry.path().extension().is_some_and(|extension| extension == "tar")
                && let Ok(about) = entry.metadata()
            {
                layers.push((about.modified()?, about.len(), entry.path()));
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
                let _ = fs::remove_file(beside(&path));
            }
        }
        Ok(())
    }
}

/// Returns the SHA-256 of a file, as hex.
fn sha256_of(path: &Path) -> Result<String> {
    let digest = digest::of_file(path, &mut |_| {}).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(base16ct::lower::encode_string(&digest))
}

/// Returns the file that says what is known of a layer.
fn beside(layer: &Path) -> PathBuf {
    layer.with_extension("json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(cache: &Cache, key: &str, below: &str, content: &[u8]) -> Layer {
        let partial = cache.begin_layer(key).unwrap();
        fs::write(partial.path(), content).unwrap();
        let about = cache.about_layer(&partial, below, 7, "run: true".to_owned()).unwrap();
        cache.publish_layer(partial, about).unwrap().expect("it is there")
    }

    #[test]
    fn a_layer_is_used_over_the_one_on_which_it_was_made_and_only_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        assert!(cache.hold_layer("key", "base").unwrap().is_none());
        let made = publish(&cache, "key", "base", b"changes").about;
        assert_eq!(cache.hold_layer("key", "base").unwrap().expect("it is there").about, made);
        assert!(cache.hold_layer("key", "another").unwrap().is_none());
        fs::write(cache.layer("key"), b"changez").unwrap();
        assert!(!cache.hold_layer("key", "base").unwrap().expect("it is there").is_whole().unwrap());
        fs::write(cache.layer("key"), "chang").unwrap();
        assert!(cache.hold_layer("key", "base").unwrap().is_none());
        cache.remove_layer("key").unwrap();
        cache.remove_layer("key").unwrap();
        assert_eq!(fs::read_dir(cache.layers()).unwrap().count(), 0);
    }

    #[test]
    fn the_least_recently_used_layers_go_unless_they_are_held() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("snug")).unwrap();
        let held = publish(&cache, "held", "base", &[1; 100]);
        for (key, age) in [("old", 300), ("new", 100), ("held", 400)] {
            if key != "held" {
                drop(publish(&cache, key, "base", &[1; 100]));
            }
            let then = SystemTime::now() - std::time::Duration::from_secs(age);
            File::open(cache.layer(key)).unwrap().set_modified(then).unwrap();
        }
        cache.prune_layers(300).unwrap();
        assert!(cache.layer("old").exists());
        cache.prune_layers(200).unwrap();
        assert!(!cache.layer("old").exists() && cache.layer("new").exists() && cache.layer("held").exists());
        drop(held);
        cache.prune_layers(0).unwrap();
        assert_eq!(fs::read_dir(cache.layers()).unwrap().count(), 0);
    }
}
