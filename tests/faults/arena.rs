//! An image that is built over and over while something goes wrong, and what is counted of it.

use std::cell::RefCell;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use snug_tests::{Workshop, succeed, xtask};

use super::traces::Traces;

/// The name of the image.
pub(super) const NAME: &str = "made";
/// What its two versions hold, in turn.
const VERSIONS: [&str; 2] = ["one", "two"];

/// What must not happen, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Count {
    /// Faults that were caused.
    pub(super) faults: usize,
    /// The image at its place is neither the last one nor the new one, or the tool does not know it any more.
    pub(super) lost: usize,
    /// A manifest that describes another image or list than those beside it, or one of the three that is missing for good.
    pub(super) disagree: usize,
    /// Processes, mounts, loop devices after the fault; files after the next run.
    pub(super) leaks: usize,
    /// A run without a fault, or the one after it, that did not succeed.
    pub(super) failing: usize,
    /// Each of the above, in words.
    pub(super) told: Vec<String>,
}

impl Count {
    pub(super) fn is_clean(&self) -> bool {
        [self.lost, self.disagree, self.leaks, self.failing] == [0; 4]
    }

    pub(super) fn add(&mut self, other: Count) {
        self.faults += other.faults;
        self.lost += other.lost;
        self.disagree += other.disagree;
        self.leaks += other.leaks;
        self.failing += other.failing;
        self.told.extend(other.told);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:4} faults: images lost {}, pairs that disagree {}, leaks {}, failing runs {}",
            self.faults, self.lost, self.disagree, self.leaks, self.failing
        )
    }
}

/// The image with the bytes of its versions, which are always the same, so that any other is a broken one.
pub(super) struct Arena {
    pub(super) workshop: Workshop,
    good: Vec<Vec<u8>>,
    /// After a build, when nothing is wrong.
    before: RefCell<Traces>,
    /// Of a build that makes the tree anew.
    pub(super) time: Duration,
}

impl Arena {
    /// Builds both versions, the first one last, with these lines in the spec. `prepare` makes what the folders are on.
    pub(super) fn with(rest: &str, prepare: impl FnOnce(&Workshop)) -> Self {
        let workshop = Workshop::new();
        fs::create_dir(workshop.path("tmp")).expect("a folder");
        prepare(&workshop);
        let before = Traces::find(&workshop);
        let mut arena = Arena { workshop, good: Vec::new(), before: RefCell::new(before), time: Duration::ZERO };
        for version in [1, 0] {
            arena.choose(version, rest);
            let began = Instant::now();
            arena.succeed(&["image", NAME]);
            arena.time = began.elapsed();
            arena.good.insert(0, fs::read(arena.image()).expect("an image"));
        }
        assert!(arena.good[0] != arena.good[1]);
        arena.take_as_given();
        arena
    }

    /// Has the spec describe this version.
    pub(super) fn choose(&self, version: usize, rest: &str) {
        // The marker identifies the steps among all processes of the machine.
        let marker = self.workshop.path("").display().to_string();
        let step = format!("echo {} > /version; seq 1 200000 > /numbers; sleep 0.1", VERSIONS[version]);
        // Under another name first: a run may be reading the last one.
        self.workshop.spec("next", &format!("env = {{ MARKER = \"{marker}\" }}\nrun = [\"{step}\"]\n{rest}"));
        let [from, to] = ["next", NAME].map(|name| self.workshop.path("images").join(name));
        fs::create_dir_all(&to).expect("a folder");
        fs::rename(from.join("image.toml"), to.join("image.toml")).expect("a spec");
        fs::remove_dir(from).expect("a folder");
    }

    /// Adds what is there now to what is there when nothing is wrong.
    pub(super) fn take_as_given(&self) {
        self.before.replace(Traces::find(&self.workshop));
    }

    pub(super) fn image(&self) -> PathBuf {
        self.workshop.image(NAME)
    }

    pub(super) fn command(&self, words: &[&str]) -> Command {
        let mut command = self.workshop.xtask(words);
        command.env("SOURCE_DATE_EPOCH", "1735689600").env("TMPDIR", self.workshop.path("tmp"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    pub(super) fn output(&self, words: &[&str]) -> Output {
        self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).output().expect("xtask runs")
    }

    /// Starts `clean` on all caches; the results stay.
    pub(super) fn start_cleaning(&self) -> Child {
        let mut command = xtask();
        command
            .args(["clean", "trees", "layers", "downloads", "tools"])
            .env("XDG_CACHE_HOME", self.workshop.path("cache"));
        command.arg("--output").arg(self.workshop.path("out"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("xtask runs")
    }

    fn succeed(&self, words: &[&str]) {
        succeed(self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()));
    }

    /// Counts what the fault `what` has done, and what the next run leaves; `mend` ends the fault before it.
    pub(super) fn judge(&self, what: &str, mend: impl FnOnce()) -> Count {
        let mut count = Count { faults: 1, ..Count::default() };
        if !self.before.borrow().run_down(&self.workshop) {
            count.leaks += 1;
            count.told.push(format!(
                "{what}: left {:#?}",
                Traces { files: Default::default(), ..Traces::find(&self.workshop) }
            ));
        }
        self.look(what, &mut count);
        mend();
        let next = self.output(&["image", NAME]);
        if !next.status.success() {
            count.failing += 1;
            count.told.push(format!("{what}: the next run: {}", String::from_utf8_lossy(&next.stderr)));
        }
        self.look(&format!("{what}, next run"), &mut count);
        if !self.pair().is_some_and(|agrees| agrees) {
            count.disagree += 1;
            count.told.push(format!("{what}: no whole set after the next run: {:?}", self.workshop.names("out/made")));
        }
        let now = Traces::find(&self.workshop);
        // Trees, layers and downloads come and go by design.
        let comes_and_goes = ["trees", "layers"].map(|name| self.workshop.path("cache/snug").join(name));
        let stays = |path: &&PathBuf| !comes_and_goes.iter().any(|folder| path.starts_with(folder));
        let more: Vec<_> = now.files.difference(&self.before.borrow().files).filter(stays).cloned().collect();
        if !more.is_empty() {
            count.leaks += 1;
            count.told.push(format!("{what}: files after the next run: {more:#?}"));
            // Each is counted once.
            self.take_as_given();
        }
        count
    }

    fn look(&self, what: &str, count: &mut Count) {
        let image = fs::read(self.image());
        if !image.as_ref().is_ok_and(|image| self.good.contains(image)) {
            count.lost += 1;
            let said = image.map_or_else(|error| error.to_string(), |image| format!("{} other bytes", image.len()));
            count.told.push(format!("{what}: the image is gone: {said}"));
        }
        match self.pair() {
            Some(true) => {}
            Some(false) => {
                count.disagree += 1;
                count.told.push(format!("{what}: manifest, list and image disagree"));
            }
            // As a person sees it: what is there may be settled by whoever looks.
            None => {
                let listed = self.output(&["list", "--json"]);
                let about: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
                let state = about["images"][0]["state"].as_str().unwrap_or("unknown").to_owned();
                if !["up-to-date", "stale"].contains(&state.as_str()) {
                    count.lost += 1;
                    count.told.push(format!("{what}: the manifest is gone, and `list` says {state}"));
                }
            }
        }
    }

    /// Whether the manifest is that of the image and the list beside it; `None` without one.
    fn pair(&self) -> Option<bool> {
        let beside = |name: &str| fs::read(self.image().with_file_name(name));
        let manifest: Value = serde_json::from_slice(&beside("manifest.json").ok()?).unwrap_or_default();
        let is = |name: &str, stated: &Value| {
            beside(name).is_ok_and(|bytes| {
                let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
                stated.as_str() == Some(&digest)
            })
        };
        Some(is("rootfs.ext4", &manifest["sha256"]) && is("contents.mtree", &manifest["contents"]["sha256"]))
    }
}
