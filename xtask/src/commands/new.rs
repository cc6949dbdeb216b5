//! `new`: writes the spec of a new image, from a template or from another image.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use snug_process::interrupt;
use snug_spec::{ImageSet, ImageSpec, SHARED_FOLDER, SPEC_FILE, check_image_name, read_image};
use toml_edit::{DocumentMut, value};

use super::arguments;
use super::run::Run;
use crate::error::Failure;
use crate::report::streams;

/// A small image that boots and takes SSH logins by key; comments name the other keys of a spec.
const TEMPLATE: &str = include_str!("new/template.toml");
#[derive(Debug, Args)]
pub struct Arguments {
    /// Name of the new image: its folder below images/
    #[arg(value_name = "NEW")]
    name: String,
    /// Start from another image: a copy of its spec and files, or, where it is a base for others, a spec based on it
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    #[command(flatten)]
    images: arguments::Images,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let run = Run::with_images(&arguments.images);
    let images = run.images_folder()?;
    let name = arguments.name.as_str();
    check_image_name(name).map_err(Failure::Usage)?;
    if name == SHARED_FOLDER {
        bail!(Failure::Usage(format!("`{name}` is the folder of files that images share\nhint: choose another name")));
    }
    let folder = images.join(name);
    if folder.exists() {
        bail!(Failure::Usage(format!("{} already exists\nhint: choose another name", folder.display())));
    }
    let (text, files) = match &arguments.from {
        None => (from_nothing(name, images.join(SHARED_FOLDER).join("init").is_file())?, None),
        Some(from) => (from_image(name, run.images()?, from)?, Some(images.join(from))),
    };
    fs::create_dir_all(&images).with_context(|| format!("cannot make {}", images.display()))?;
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // An interrupted run leaves no half of it.
    let mut making = interrupt::remove_on_interrupt(&folder, |folder| Ok(fs::remove_dir_all(folder)?));
    let files = files.filter(|_| !is_based_on_image(&text, arguments.from.as_deref()));
    if let Err(error) = fill(&folder, files.as_deref(), &text) {
        fs::remove_dir_all(&folder)?;
        return Err(error);
    }
    making.forget();
    let spec = folder.join(SPEC_FILE);
    let shown = spec.strip_prefix(std::env::current_dir()?).unwrap_or(&spec).display();
    streams::print(&format!("{shown}\n"))?;
    let elsewhere = arguments.images.folder.map(|images| format!(" --images {}", images.display())).unwrap_or_default();
    run.progress().note(format!("hint: edit it, then: cargo xtask image {name}{elsewhere}"));
    Ok(ExitCode::SUCCESS)
}

/// Fills the folder of the new image, and reads the spec back.
fn fill(folder: &Path, files: Option<&Path>, spec: &str) -> Result<()> {
    if let Some(files) = files {
        copy_files(files, folder)?;
    }
    fs::write(folder.join(SPEC_FILE), spec)?;
    read_image(folder).context("the new spec has errors")?;
    Ok(())
}

fn from_nothing(name: &str, shared_init: bool) -> Result<String> {
    let mut document: DocumentMut = TEMPLATE.parse().context("the template of new specs")?;
    document["hostname"] = value(hostname(name));
    if !shared_init {
        document.remove("init");
    }
    Ok(document.to_string())
}

/// Labels of host names hold letters, digits and hyphens (RFC 1123).
fn hostname(name: &str) -> String {
    name.replace(['_', '.'], "-").trim_matches('-').to_owned()
}

fn from_image(name: &str, set: &ImageSet, from: &str) -> Result<String> {
    let spec = set.get(from)?;
    if spec.filesystem.is_none() {
        return based_on(name, spec);
    }
    let text = fs::read_to_string(set.folder().join(from).join(SPEC_FILE))?;
    let mut document: DocumentMut = text.parse().context("the spec to start from")?;
    let description = spec.description.as_ref().map(|text| format!("{text} (begun as a copy of {from})"));
    for (key, text) in [("description", description), ("hostname", spec.hostname.as_ref().map(|_| hostname(name)))] {
        // In its place, so that comments and order stay.
        if let (Some(text), Some(item)) = (text, document.get_mut(key).and_then(|item| item.as_value_mut())) {
            let decor = item.decor().clone();
            *item = text.into();
            *item.decor_mut() = decor;
        }
    }
    Ok(document.to_string())
}

/// The spec of an image on a base: a copy of the base would only be another base.
fn based_on(name: &str, base: &ImageSpec) -> Result<String> {
    let mut document: DocumentMut = TEMPLATE.parse().context("the template of new specs")?;
    let mut table = toml_edit::InlineTable::new();
    table.insert("image", base.name.as_str().into());
    document["base"] = value(table);
    document["hostname"] = value(hostname(name));
    if base.init.is_some() {
        document.remove("init");
    }
    Ok(document.to_string())
}

fn is_based_on_image(text: &str, from: Option<&str>) -> bool {
    let document: Option<DocumentMut> = text.parse().ok();
    document
        .is_some_and(|document| document["base"].get("image").and_then(|item| item.as_str()) == from && from.is_some())
}

/// Copies an image's folder without its spec, with modes and symlinks.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let (source, place) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type()?;
        if kind.is_dir() {
            fs::create_dir(&place)?;
            copy_files(&source, &place)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&source)?, &place)?;
        } else if entry.file_name() != SPEC_FILE {
            fs::copy(&source, &place).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_hold_what_host_names_may() {
        assert_eq!(hostname("node_24.1-"), "node-24-1");
    }

    #[test]
    fn the_template_is_a_sound_spec_with_the_image_for_its_host_name() {
        let images = tempfile::tempdir().unwrap();
        for (name, shared_init) in [("with", true), ("without", false)] {
            fs::create_dir_all(images.path().join(name)).unwrap();
            fs::create_dir_all(images.path().join("shared")).unwrap();
            fs::write(images.path().join("shared/init"), "#!/bin/sh\n").unwrap();
            fs::write(images.path().join(name).join(SPEC_FILE), from_nothing(name, shared_init).unwrap()).unwrap();
            let spec = read_image(&images.path().join(name)).unwrap();
            assert_eq!(spec.hostname.as_deref(), Some(name));
            assert_eq!(spec.init.as_ref().map(|init| init.written.as_str()), shared_init.then_some("../shared/init"));
        }
    }
}
