//! Removal of the images and containers that a build makes with docker or podman. All are named or labelled by the build's
//! work folder, so that the next run finds what a killed one left.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use snug_process::interrupt::{self, Registered};

use super::cli::Cli;
use super::names::{BuildNames, CACHE_LABEL, WORK_LABEL, base_image, cache_id, image, name_of};
use super::output::Builder;
use crate::cache::Cache;

/// The images and containers of one build; they are removed when this is dropped, or on an interrupt.
pub(super) struct Cleanup {
    cli: Cli,
    builder: Builder,
    names: BuildNames,
    registered: Registered,
    keep: bool,
}

impl Cleanup {
    pub(super) fn begin(cli: &Cli, builder: Builder, cache: &Cache, work: &Path) -> Self {
        let (cli, names) = (*cli, BuildNames { work: name_of(work), cache: cache_id(cache) });
        let doomed = names.work.clone();
        let registered = interrupt::do_on_interrupt(move || remove(cli, builder, &doomed));
        Cleanup { cli, builder, names, registered, keep: false }
    }

    /// Returns the names of the build's images and container.
    pub(super) fn names(&self) -> &BuildNames {
        &self.names
    }

    /// Returns the command that lists what is left.
    pub(super) fn query(&self) -> String {
        match self.cli.is_docker() {
            true => format!("docker ps --all --filter label={WORK_LABEL}={}", self.names.work),
            false => "podman ps --all --external".to_owned(),
        }
    }

    /// Leaves everything until the next run.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if !self.keep {
            remove(self.cli, self.builder, &self.names.work);
        }
        self.registered.forget();
    }
}

/// How long removal is retried, and the pause between attempts: a daemon takes its time to end an interrupted build.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// Removes all that is left of a build; what cannot be removed now is left to the next run.
fn remove(cli: Cli, builder: Builder, work: &str) {
    remove_named(cli, work);
    if builder == Builder::BuildKit {
        forget_records(cli, &base_image(work));
    }
}

fn remove_named(cli: Cli, work: &str) {
    let started = Instant::now();
    let label = label_of(work);
    let lists =
        [&["images", "--all", "--quiet", "--filter", &label][..], &["ps", "--all", "--quiet", "--filter", &label]];
    while started.elapsed() < PATIENCE {
        try_to_remove(cli, work);
        if lists.iter().all(|list| cli.ask(list).is_ok_and(|left| left.is_empty())) {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

fn label_of(work: &str) -> String {
    format!("label={WORK_LABEL}={work}")
}

fn try_to_remove(cli: Cli, work: &str) {
    let label = label_of(work);
    let mut containers = listed(cli, &["ps", "--all", "--quiet", "--filter", &label]);
    if !cli.is_docker() {
        // The container of a killed build belongs to buildah and has no labels: it is recognised by its image.
        let all = listed(cli, &["ps", "--all", "--external", "--format", "{{.ID}} {{.Image}}"]);
        let images = [base_image(work), image(work)];
        containers.extend(all.iter().filter_map(|line| {
            let (id, image) = line.split_once(' ')?;
            images.iter().any(|own| own == image).then(|| id.to_owned())
        }));
    }
    for container in containers {
        let _ = cli.ask(&["rm", "--force", &container]);
    }
    // By name first: `prune` passes over images that have one.
    let _ = cli.ask(&["rmi", "--force", &image(work)]);
    let _ = cli.ask(&["rmi", "--force", &base_image(work)]);
    let _ = cli.ask(&["image", "prune", "--force", "--filter", &label]);
}

/// Removes the records of a build on the image `base` from BuildKit's cache: its layers, which name the image, and their
/// parents. Nothing will be built on them, and a step may have left a secret in one.
fn forget_records(cli: Cli, base: &str) {
    let text = cli.ask(&["system", "df", "--verbose", "--format", "{{json .BuildCache}}"]).unwrap_or_default();
    let records: Vec<Record> = serde_json::from_str(&text).unwrap_or_default();
    for id in records_of(records, base) {
        let _ = cli.ask(&["builder", "prune", "--all", "--force", "--filter", &format!("id={id}")]);
    }
}

/// A record of BuildKit's cache, as `docker system df` lists it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    #[serde(rename = "ID")]
    id: String,
    description: String,
    /// The parents' ids, separated by commas.
    parent: String,
}

impl Record {
    fn is_child_of(&self, other: &Record) -> bool {
        self.parent.split(", ").any(|id| id == other.id)
    }
}

/// Returns the ids of a build's records, children before parents: BuildKit does not remove a record that has children.
fn records_of(records: Vec<Record>, base: &str) -> Vec<String> {
    let (mut own, mut others): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.description.contains(base));
    // The records of the base itself and of the spec's files do not contain the base's name.
    while let Some(at) =
        others.iter().position(|other| own.iter().any(|one| one.is_child_of(other) || other.is_child_of(one)))
    {
        own.push(others.swap_remove(at));
    }
    let mut ids = Vec::new();
    while let Some(at) = own.iter().position(|one| !own.iter().any(|other| other.is_child_of(one))) {
        ids.push(own.swap_remove(at).id);
    }
    ids
}

/// Removes what killed runs of this cache left: images whose work folder no process holds.
pub(super) fn sweep(cli: &Cli, cache: &Cache) {
    let own = format!("label={CACHE_LABEL}={}", cache_id(cache));
    let mut images = listed(*cli, &["images", "--all", "--quiet", "--filter", &own]);
    images.sort();
    images.dedup();
    let format = format!("{{{{index .Config.Labels \"{WORK_LABEL}\"}}}}");
    let mut works: Vec<String> = images
        .iter()
        .filter_map(|image| cli.ask(&["image", "inspect", "--format", &format, image]).ok())
        .filter(|work| !work.is_empty())
        .collect();
    works.sort();
    works.dedup();
    for work in works.iter().filter(|work| !cache.holds_work(work)) {
        // Which builder was used is not recorded: both are cleaned.
        remove(*cli, cli.builder(true), work);
    }
}

/// Returns the lines that a command prints; none if it fails.
fn listed(cli: Cli, arguments: &[&str]) -> Vec<String> {
    cli.ask(arguments).unwrap_or_default().lines().map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_one_build_are_found_by_the_base_and_taken_from_the_top() {
        // As docker 20.10 tells them, in its own order.
        let text = r#"[
            {"ID": "c", "Parent": "", "Description": "local source for context", "CacheType": "source.local"},
            {"ID": "f", "Parent": "s", "Description": "copy /files-2.tar /", "CacheType": "regular"},
            {"ID": "b", "Parent": "", "Description": "from local ", "CacheType": "regular"},
            {"ID": "s", "Parent": "b", "Description": "mount / from exec /bin/sh -c x localhost/snug:w-base -- y"},
            {"ID": "o", "Parent": "ob", "Description": "mount / from exec /bin/sh -c x localhost/snug:v-base -- y"},
            {"ID": "ob", "Parent": "", "Description": "from local "}
        ]"#;
        let records = || serde_json::from_str(text).unwrap();
        assert_eq!(records_of(records(), "localhost/snug:w-base"), ["f", "s", "b"]);
        assert_eq!(records_of(records(), "localhost/snug:u-base"), [""; 0]);
    }
}
