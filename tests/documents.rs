//! README, CONTRIBUTING and docs/: links lead somewhere, and lists are those of the code. So does deny.toml, which cargo-deny
//! reads and this suite does not have.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use snug_tests::{succeed, workspace, xtask};

fn documents() -> Vec<PathBuf> {
    let mut documents: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "fuzz/README.md"]
        .map(|name| workspace().join(name))
        .into();
    for entry in fs::read_dir(workspace().join("docs")).expect("docs/") {
        documents.push(entry.expect("an entry").path());
    }
    documents
}

/// What a link to each title of a document is called behind its `#`, as GitHub makes it.
fn anchors(document: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(document).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
    let titles = text.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#').trim()));
    let kept = |character: &char| character.is_alphanumeric() || [' ', '-', '_'].contains(character);
    titles.map(|title| title.to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")).collect()
}

#[test]
fn links_lead_to_files_and_titles() {
    let mut wrong = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") {
                continue;
            }
            let (file, title) = link.split_once('#').unwrap_or((link, ""));
            let folder = document.parent().expect("a folder");
            let target = if file.is_empty() { document.clone() } else { folder.join(file) };
            if !target.exists() || (!title.is_empty() && !anchors(&target).contains(title)) {
                wrong.push(format!("{} links to {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_in_documents_exist() {
    // What a build makes, or a person.
    const MADE: [&str; 4] = ["images/NAME", "images/hello", "fuzz/corpus", "fuzz/artifacts"];
    let tops = ["xtask/", "crates/", "tests/", "docs/", "images/", "fuzz/", ".ci/", ".github/"];
    let mut wrong = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        for word in text.split('`').skip(1).step_by(2) {
            let is_path = tops.iter().any(|top| word.starts_with(top)) && !word.contains([' ', '*', '<']);
            let is_made = MADE.iter().any(|made| word.starts_with(made));
            if is_path && !is_made && !workspace().join(word).exists() {
                wrong.push(format!("{} names {word}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a promise is tested by is there: `file::test`, as cargo's filter takes it.
#[test]
fn tests_in_documents_exist() {
    let text = fs::read_to_string(workspace().join("docs/security.md")).expect("docs/security.md");
    let names: BTreeSet<(&str, &str)> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|word| word.split_once("::"))
        .filter(|(file, test)| {
            !file.is_empty() && *file != "clippy" && test.contains('_') && !test.contains([' ', ':'])
        })
        .collect();
    assert!(names.len() > 20, "{names:?}");
    let mut files = Vec::new();
    for folder in ["tests", "crates", "xtask"] {
        find_sources(&workspace().join(folder), &mut files);
    }
    let missing: Vec<_> = names
        .into_iter()
        .filter(|(file, test)| {
            let is_of = |path: &&PathBuf| path.file_stem().is_some_and(|stem| stem == *file);
            let has =
                |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(&format!("fn {test}()")));
            !files.iter().filter(is_of).any(has)
        })
        .collect();
    assert!(missing.is_empty(), "docs/security.md names tests that do not exist: {missing:?}");
}

fn find_sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            find_sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn readme_has_every_verb() {
    let help = String::from_utf8(succeed(xtask().arg("--help")).stdout).expect("UTF-8");
    let (_, verbs) = help.split_once("Commands:\n").expect("a list of verbs");
    let verbs = verbs.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next());
    let readme = fs::read_to_string(workspace().join("README.md")).expect("README.md");
    let missing: Vec<&str> = verbs
        .filter(|verb| *verb != "help")
        .filter(|verb| !readme.contains(&format!("\n| `{verb} ")) && !readme.contains(&format!("\n| `{verb}`")))
        .collect();
    assert!(missing.is_empty(), "README.md has no line for {missing:?}");
}

/// Whether one of the licences of every alternative that the expression needs is among `allowed` (SPDX specification, annex D,
/// as far as crates use it: `/` is the older form of OR).
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let needed = expression.split(" AND ").map(|part| part.trim_matches(['(', ')']));
    let mut alternatives = needed.map(|part| part.split(" OR ").flat_map(|part| part.split('/')).map(str::trim));
    alternatives.all(|mut licences| licences.any(|licence| allowed.contains(&licence)))
}

#[test]
fn dependencies_have_the_licences_of_deny_toml() {
    let deny = fs::read_to_string(workspace().join("deny.toml")).expect("deny.toml");
    let (_, list) = deny.split_once("\nallow = [").expect("a list of licences");
    let allowed: Vec<&str> = list.split(']').next().expect("its end").split('"').skip(1).step_by(2).collect();
    assert!(is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT", "Unicode-3.0"]));
    assert!(!is_allowed("(MIT OR Apache-2.0) AND Unicode-3.0", &["MIT", "Apache-2.0"]));

    let metadata = succeed(
        Command::new(env!("CARGO")).args(["metadata", "--format-version", "1", "--locked"]).current_dir(workspace()),
    );
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(|licence| is_allowed(licence, &allowed)))
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    assert!(
        !packages.is_empty() && refused.is_empty(),
        "deny.toml allows {allowed:?}, but not\n{}",
        refused.join("\n")
    );
}
