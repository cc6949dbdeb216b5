//! A folder of images, and what each inherits from the images it is based on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{SpecError, SpecErrors};
use super::image::read_image;
use super::model::{Base, Boot, ImageSpec};
use super::{SPEC_FILE, nearest, sources};

/// The images of a folder, those with errors included, so that one broken spec hides no other image.
#[derive(Debug, Clone)]
pub struct ImageSet {
    folder: PathBuf,
    images: BTreeMap<String, Result<ImageSpec, SpecErrors>>,
}

/// An image with what it inherits.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved<'set> {
    /// The image's own spec.
    pub spec: &'set ImageSpec,
    /// The images it is based on, nearest first; the last one has a base that is no image.
    pub ancestors: Vec<&'set ImageSpec>,
    /// The image's own `[boot]` as a whole, else its nearest ancestor's.
    pub boot: Boot,
}

/// Why a chain of bases does not end in one that is no image.
enum Broken<'set> {
    /// A base names an image that does not exist.
    Link(SpecError),
    /// The chain is a cycle.
    Cycle { members: Vec<&'set str>, error: SpecError },
    /// The spec of a base has errors.
    Parent { error: SpecError, errors: Vec<SpecError> },
}

impl ImageSet {
    /// Reads every folder in `folder` that has an `image.toml`. Fails only if `folder` itself cannot be read.
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

    /// Returns the folder of the images.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the names in order, those of images with errors included.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.images.keys().map(String::as_str)
    }

    /// Returns the images in order of their names, each with its spec or its errors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Result<&ImageSpec, &SpecErrors>)> {
        self.images.iter().map(|(name, image)| (name.as_str(), image.as_ref()))
    }

    /// Returns the spec of one image.
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
        // Shells complete `images/NAME/` and `images/NAME/image.toml`.
        let parts = || name.split('/').rev().filter(|part| !part.is_empty());
        match parts().find(|part| name.contains('/') && self.images.contains_key(*part)) {
            Some(part) => format!("did you mean `{part}`?"),
            None => nearest::suggestion(name, "the images are", self.names()),
        }
    }

    /// Returns an image with its ancestors and what it inherits from them. Fails for cycles, missing parents and parents with
    /// errors, at the `base` that leads to them.
    pub fn resolve(&self, name: &str) -> Result<Resolved<'_>, SpecErrors> {
        let spec = self.get(name)?;
        let line = self.follow(name).map_err(|broken| match broken {
            Broken::Link(error) | Broken::Cycle { error, .. } => SpecErrors::from(error),
            Broken::Parent { error, errors } => SpecErrors([error].into_iter().chain(errors).collect()),
        })?;
        let boot = line.iter().find_map(|image| image.boot.clone()).unwrap_or_default();
        Ok(Resolved { spec, boot, ancestors: line.into_iter().skip(1).collect() })
    }

    /// Returns the image called `name`, its base, the base of that, and so on.
    fn follow(&self, name: &str) -> Result<Vec<&ImageSpec>, Broken<'_>> {
        let mut line: Vec<&ImageSpec> = Vec::new();
        let mut next = self.images.get(name);
        while let Some(Ok(child)) = next {
            line.push(child);
            let Base::Image { name: parent } = &child.base.value else { break };
            let error = |message: String| SpecError::at(&child.document, &child.base, message);
            if let Some(start) = line.iter().position(|image| image.name == *parent) {
                let members: Vec<&str> = line[start..].iter().map(|image| image.name.as_str()).collect();
                let message = match members[..] {
                    [_] => format!("`{parent}` is based on itself"),
                    _ => format!("base cycle: {} → {parent}", members.join(" → ")),
                };
                let error = error(message).help("one of them needs a base that is no image of this workspace");
                return Err(Broken::Cycle { members, error });
            }
            next = self.images.get(parent);
            match next {
                Some(Ok(_)) => {}
                Some(Err(SpecErrors(errors))) => {
                    let error = error(format!("the base image `{parent}` has errors"));
                    return Err(Broken::Parent { error, errors: errors.clone() });
                }
                None => {
                    let error = error(format!("no image is called `{parent}`")).help(self.suggestion(parent));
                    return Err(Broken::Link(error));
                }
            }
        }
        Ok(line)
    }

    /// Returns everything that is wrong with any image, each error once: their own, and those of the chains of bases.
    pub fn errors(&self) -> SpecErrors {
        let mut errors = SpecErrors::default();
        for (name, image) in &self.images {
            match image {
                Err(broken) => errors.0.extend(broken.0.iter().cloned()),
                Ok(_) => match self.follow(name) {
                    Err(Broken::Link(link)) => errors.0.push(link),
                    // Reported for the first of its members only.
                    Err(Broken::Cycle { members, error }) if members.iter().min() == Some(&name.as_str()) => {
                        errors.0.push(error);
                    }
                    // Reported for the parent itself.
                    Err(Broken::Cycle { .. } | Broken::Parent { .. }) | Ok(_) => {}
                },
            }
        }
        errors
    }
}
