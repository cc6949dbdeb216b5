//! A spec with an error stops the command before anything is built, with the error that the spec's reader gives.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use snug_tests::{workspace, xtask};

const BROKEN_IMAGES: &str = "tests/broken-images";

/// The folders of broken specs, by name.
fn names() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(workspace().join(BROKEN_IMAGES))
        .expect("the folder of broken specs")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
        .collect();
    names.sort();
    assert!(names.len() >= 10, "{names:?}");
    names
}

/// What the reader's own test recorded for a spec, which is what the command must say.
fn expected(name: &str) -> String {
    let file: PathBuf = workspace().join(format!("crates/spec/src/snapshots/snug_spec__tests__{name}.snap"));
    let snapshot = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    snapshot.splitn(3, "---\n").nth(2).expect("a snapshot has a head").to_owned()
}

#[test]
fn a_broken_spec_stops_a_build_with_its_error_and_exit_code_2() {
    for name in names() {
        let output =
            xtask().args(["image", &name, "--dry-run", "--images", BROKEN_IMAGES]).output().expect("xtask runs");
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected(&name), "{name}");
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert!(output.stdout.is_empty(), "{name}: standard output is for data");
    }
}

#[test]
fn a_list_shows_what_can_be_read_and_says_what_cannot() {
    let output = xtask().args(["list", "--json", "--images", BROKEN_IMAGES]).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    let about: Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output, errors or not");
    let rows = about["images"].as_array().expect("rows");
    let listed: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(listed, names());
    let said = String::from_utf8_lossy(&output.stderr);
    for row in rows {
        let name = row["name"].as_str().expect("a name");
        let is_broken = row["state"] == "broken";
        let is_said = said.contains(&format!("--> {BROKEN_IMAGES}/{name}/image.toml"));
        assert!(is_said || !is_broken, "{name} is broken, and nothing is said of it");
        let why = row["reason"].as_str().unwrap_or_default();
        assert!(!why.is_empty() || !is_broken, "{row}");
    }
    assert!(rows.iter().any(|row| row["state"] == "broken" && row["reason"].as_str() > Some("line 1")), "{rows:#?}");
    assert_eq!(said.matches("error: base cycle").count(), 1, "a cycle is one error, not one for each of its images");
}

#[test]
fn an_unknown_image_is_answered_with_the_nearest_one() {
    let output =
        xtask().args(["image", "two-basis", "--dry-run", "--images", BROKEN_IMAGES]).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no image is called `two-basis`") && said.contains("did you mean `two-bases`?"), "{said}");
}
