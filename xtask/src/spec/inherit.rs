//! A folder of images, and what each inherits from the images it is based on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{SpecError, SpecErrors};
use super::image::read_image;
use super::model::{Base, Boot, ImageSpec, Located, SourcePath};
use super::{SPEC_FILE, nearest, sources};

/// Every image of a folder, read; those with errors, too, so that one broken spec hides no other image.
#[derive(Debug, Clone)]
pub struct ImageSet {
    folder: PathBuf,
    images: BTreeMap<String, Result<ImageSpec, SpecErrors>>,
}

/// An image with what it inherits.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved<'set> {
    pub spec: &'set ImageSpec,
    /// The images it is based on, nearest first; the last one has a base that is no image.
    pub ancestors: Vec<&'set ImageSpec>,
    /// The file that becomes `/init`: the image's own, else its nearest ancestor's that has one.
    pub init: Option<&'set Located<SourcePath>>,
    /// The image's own `[boot]` as a whole, else its nearest ancestor's.
    pub boot: Boot,
}

impl Resolved<'_> {
    /// The base under the whole chain, which is no image of this workspace.
    pub fn foundation(&self) -> &Located<Base> {
        &self.ancestors.last().unwrap_or(&self.spec).base
    }
}

impl ImageSet {
    /// Reads every folder in `folder` that holds an `image.toml`. An error only when the folder itself cannot be read.
    pub fn load(folder: &Path) -> Result<ImageSet, SpecErrors> {
        let unreadable =
            |error| SpecError::whole(folder, format!("cannot read the folder of images: {}", sources::reason(&error)));
        let mut images = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(unreadable)? {
            let path = folder.join(entry.map_err(unreadable)?.file_name());
            if path.join(SPEC_FILE).symlink_metadata().is_ok() {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                images.insert(name, read_image(&path));
            }
        }
        Ok(ImageSet { folder: folder.to_path_buf(), images })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The names in order, broken ones included.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.images.keys().map(String::as_str)
    }

    /// Every image in order of the names, with its spec or its errors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Result<&ImageSpec, &SpecErrors>)> {
        self.images.iter().map(|(name, image)| (name.as_str(), image.as_ref()))
    }

    /// The spec of one image.
    pub fn get(&self, name: &str) -> Result<&ImageSpec, SpecErrors> {
        match self.images.get(name) {
            Some(image) => image.as_ref().map_err(SpecErrors::clone),
            None => {
                let message = format!("no image is called `{}`", name);
                Err(SpecError::whole(&self.folder, message).help(self.suggestion(name)).into())
            }
        }
    }

    fn suggestion(&self, name: &str) -> String {
        if self.images.is_empty() {
            return format!("no folder here holds an `{SPEC_FILE}`");
        }
        nearest::suggestion(name, "the images are", self.names())
    }

    /// The image with its ancestors and what it inherits from them. Cycles, missing parents and parents with errors are
    /// errors at the `base` that leads to them.
    pub fn resolve(&self, name: &str) -> Result<Resolved<'_>, SpecErrors> {
        let spec = self.get(name)?;
        let mut ancestors: Vec<&ImageSpec> = Vec::new();
        let mut child = spec;
        while let Base::Image { name: parent } = &child.base.value {
            let error = |message: String| SpecError::at(&child.document, &child.base, message);
            if let Some(start) = [spec].iter().chain(&ancestors).position(|image| image.name == *parent) {
                let cycle: Vec<&str> =
                    [spec].iter().chain(&ancestors).skip(start).map(|image| image.name.as_str()).collect();
                let message = match cycle[..] {
                    [_] => format!("`{parent}` is based on itself"),
                    _ => format!("base cycle: {} → {parent}", cycle.join(" → ")),
                };
                return Err(error(message).help("one of them needs a base that is no image of this workspace").into());
            }
            child = match self.images.get(parent) {
                Some(Ok(found)) => found,
                Some(Err(broken)) => {
                    let mut errors = SpecErrors::from(error(format!("the base image `{parent}` has errors")));
                    errors.0.extend(broken.0.iter().cloned());
                    return Err(errors);
                }
                None => {
                    return Err(error(format!("no image is called `{parent}`")).help(self.suggestion(parent)).into());
                }
            };
            ancestors.push(child);
        }
        let line = || [spec].into_iter().chain(ancestors.iter().copied());
        let init = line().find_map(|image| image.init.as_ref());
        let boot = line().find_map(|image| image.boot.clone()).unwrap_or_default();
        Ok(Resolved { spec, init, boot, ancestors })
    }

    /// Everything that is wrong with any image: its own errors, and those of its chain of bases.
    pub fn errors(&self) -> SpecErrors {
        let mut errors = SpecErrors::default();
        for (name, image) in &self.images {
            match image {
                Err(broken) => errors.0.extend(broken.0.iter().cloned()),
                Ok(_) => {
                    // A broken parent has its own turn; only what is wrong with this link is added here.
                    let link = self.resolve(name).err().unwrap_or_default().0.into_iter().next();
                    errors.0.extend(link);
                }
            }
        }
        errors
    }
}
