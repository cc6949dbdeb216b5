//! A folder of images, and what each inherits from the images it is based on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{SpecError, SpecErrors};
use super::image::read_image;
use super::model::{Base, Boot, ImageSpec};
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
    /// The image's own `[boot]` as a whole, else its nearest ancestor's.
    pub boot: Boot,
}

/// Why a line of bases does not end in one that is no image.
enum Broken<'set> {
    /// It names an image that does not exist.
    Link(SpecError),
    /// It comes back to one of its images.
    Cycle { members: Vec<&'set str>, error: SpecError },
    /// It leads to an image whose spec has errors.
    Parent { error: SpecError, errors: Vec<SpecError> },
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
        let line = self.follow(name).map_err(|broken| match broken {
            Broken::Link(error) | Broken::Cycle { error, .. } => SpecErrors::from(error),
            Broken::Parent { error, errors } => SpecErrors([error].into_iter().chain(errors).collect()),
        })?;
        let boot = line.iter().find_map(|image| image.boot.clone()).unwrap_or_default();
        Ok(Resolved { spec, boot, ancestors: line.into_iter().skip(1).collect() })
    }

    /// The image called `name`, what it is based on, what that is based on, and so on.
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

    /// Everything that is wrong with any image, each thing once: their own errors, and those of the links between them.
    pub fn errors(&self) -> SpecErrors {
        let mut errors = SpecErrors::default();
        for (name, image) in &self.images {
            match image {
                Err(broken) => errors.0.extend(broken.0.iter().cloned()),
                Ok(_) => match self.follow(name) {
                    Err(Broken::Link(link)) => errors.0.push(link),
                    // Told by the first of its images; those that only lead to it are mended with it.
                    Err(Broken::Cycle { members, error }) if members.iter().min() == Some(&name.as_str()) => {
                        errors.0.push(error);
                    }
                    // The parent has its own turn.
                    Err(Broken::Cycle { .. } | Broken::Parent { .. }) | Ok(_) => {}
                },
            }
        }
        errors
    }
}
