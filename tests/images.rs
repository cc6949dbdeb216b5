//! The images of this workspace: they pass `check`, are sized by their content, and shellcheck accepts their scripts.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use snug_spec::ImageSet;
use snug_spec::model::FileSource;
use snug_tests::{have, image, succeed, workspace};

/// The images that are sized by their content and build from Debian's archive. openclaw has tests of its own.
const BUILT_HERE: &[&str] = &["debian-ssh-key", "browser-chromium", "openclaw"];

#[test]
fn content_and_no_constant_decides_the_size_of_each_image() {
    if !have(&["e2fsck"]) {
        return;
    }
    let set = ImageSet::load(&workspace().join("images")).expect("the folder of images");
    for name in BUILT_HERE {
        let Some(image) = image(name) else { return };
        succeed(Command::new("e2fsck").arg("-fn").arg(&image));
        let manifest = std::fs::read(image.with_file_name("manifest.json")).expect("a manifest beside the image");
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        let decision = &manifest["census"]["decision"];
        assert_eq!(decision["rule"], "content", "{name}");
        let size = decision["bytes"].as_u64().expect("a size");
        let least = set.get(name).expect("a spec").sizing.min_size;
        assert!(2 * least <= size, "{name}: a min-size of {least} is more than half of {size}");
    }
}

/// Files of the folder and texts in the specs that ask for sh.
#[test]
fn the_scripts_of_the_images_pass_shellcheck() {
    if !have(&["shellcheck"]) {
        return;
    }
    let mut scripts = Vec::new();
    find_scripts(&workspace().join("images"), &mut scripts);
    let set = ImageSet::load(&workspace().join("images")).expect("the folder of images");
    for (name, spec) in set.iter() {
        for file in &spec.expect("a spec").files {
            if let FileSource::Content(text) = &file.value.source
                && text.starts_with("#!/bin/sh\n")
            {
                scripts.push((format!("{name}: {}", file.value.to), text.clone()));
            }
        }
    }
    // /init, openclaw's systemctl, browser-session, and five small ones in specs.
    assert!(scripts.len() >= 7, "{scripts:#?}");
    for (name, text) in scripts {
        let mut linter = Command::new("shellcheck")
            .args(["--norc", "--shell", "sh", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("shellcheck runs");
        linter.stdin.take().expect("a pipe was asked for").write_all(text.as_bytes()).expect("shellcheck reads");
        let output = linter.wait_with_output().expect("shellcheck ends");
        assert!(output.status.success(), "{name}\n{}", String::from_utf8_lossy(&output.stdout));
    }
}

fn find_scripts(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find_scripts(&path, found);
        } else if let Ok(text) = std::fs::read_to_string(&path)
            && text.starts_with("#!/bin/sh\n")
        {
            found.push((path.display().to_string(), text));
        }
    }
}
