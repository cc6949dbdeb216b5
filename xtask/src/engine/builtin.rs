//! The engine of our own: steps in namespaces, without root and without a container runtime.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ChildStdout;
use std::sync::Mutex;

use anyhow::{Context, Result};

use super::{Engine, StepFailed, Tail, environment, file_tree};
use crate::cache::Cache;
use crate::namespace::{self, Action, CACHES, Enter, Event, Job, JobError, Program};
use crate::plan::{BuildPlan, PackageManager, StepAction};
use crate::report::progress::{Progress, Stage};
use crate::rootfs::tar::{self, TarOptions};

/// Name of the machine while steps run, where the spec gives none.
const BUILD_HOSTNAME: &str = "localhost";

pub struct Builtin {
    cache: Cache,
}

impl Builtin {
    pub fn new(cache: Cache) -> Self {
        Builtin { cache }
    }
}

impl Engine for Builtin {
    fn name(&self) -> &'static str {
        "builtin"
    }

    fn probe(&self) -> Result<()> {
        namespace::probe()
    }

    fn bootstrap(
        &self,
        suite: &str,
        variant: &str,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        require_mmdebstrap()?;
        let work = self.cache.work_folder("bootstrap")?;
        let scratch = work.path().join("tmp");
        std::fs::create_dir(&scratch)?;
        let program = Program {
            // The namespace's root is all that mmdebstrap's root mode needs, whoever runs it.
            command: ["mmdebstrap", "--mode=root", &format!("--variant={variant}"), suite, "-"].map(Into::into).into(),
            environment: environment::host_tools(),
            directory: None,
        };
        let titles = vec![
            None,
            Some(Title { text: format!("mmdebstrap {suite} ({variant})"), place: "the spec's `base`".to_owned() }),
        ];
        let job = Job { actions: vec![Action::Scratch { folder: scratch }, Action::Pipe(program)] };
        self.run(&job, titles, progress, consume)
    }

    fn build(
        &self,
        plan: &BuildPlan,
        base: &Path,
        keep: bool,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let mut work = self.cache.work_folder(&plan.name)?;
        let (job, titles) = self.job(plan, base, work.path())?;
        let result = self.run(&job, titles, progress, consume);
        if result.is_err() && keep {
            work.keep();
            progress.note(format!("the tree as it failed: {}", work.path().join("root").display()));
        }
        result
    }
}

/// How an action is called on the screen and in errors; actions without one are not shown.
struct Title {
    text: String,
    place: String,
}

impl Builtin {
    fn job(&self, plan: &BuildPlan, base: &Path, work: &Path) -> Result<(Job, Vec<Option<Title>>)> {
        let root = work.join("root");
        let ca_bundle = environment::ca_bundle();
        let trust = ca_bundle.is_some();
        let mut actions = vec![Action::Materialise { tar: base.to_path_buf(), root: root.clone() }];
        let mut titles =
            vec![Some(Title { text: format!("unpack {}", plan.base.describe()), place: "the spec's `base`".into() })];
        let caches = environment::CACHED_MANAGERS
            .into_iter()
            .map(|manager| Ok((manager.as_str().to_owned(), self.cache.downloads(manager.as_str())?)))
            .collect::<Result<_>>()?;
        actions.push(Action::Enter(Enter {
            root,
            hostname: plan.hostname.clone().unwrap_or_else(|| BUILD_HOSTNAME.to_owned()),
            resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
            ca_bundle,
            caches,
        }));
        titles.push(None);
        let mut caches_mounted = true;
        for (index, step) in plan.steps.iter().enumerate() {
            if caches_mounted && !matches!(step.action, StepAction::Install { .. }) {
                actions.push(Action::DropCaches);
                titles.push(None);
                caches_mounted = false;
            }
            actions.push(match &step.action {
                StepAction::Install { manager, packages } => Action::Run(Program {
                    command: install_command(*manager, packages),
                    environment: environment::of_step(&step.environment, trust, true),
                    directory: None,
                }),
                StepAction::Shell(command) => Action::Run(Program {
                    command: vec!["/bin/sh".into(), "-e".into(), "-c".into(), command.clone()],
                    environment: environment::of_step(&step.environment, trust, false),
                    directory: None,
                }),
                StepAction::Files(files) => Action::Place { tar: write_files(files, work, index)? },
            });
            titles.push(Some(Title { text: step.describe(), place: step.place.clone() }));
        }
        actions.push(Action::Export);
        titles.push(Some(Title { text: "collect the tree".into(), place: plan.name.clone() }));
        Ok((Job { actions }, titles))
    }

    fn run(
        &self,
        job: &Job,
        titles: Vec<Option<Title>>,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let tail = Mutex::new(Tail::default());
        let mut stage: Option<Stage> = None;
        let observe = |event: &Event| match event {
            Event::Started { action } => {
                lock(&tail).take();
                stage = titles.get(*action).and_then(Option::as_ref).map(|title| progress.stage(title.text.as_str()));
            }
            Event::Line { text, .. } => {
                lock(&tail).push(text);
                if let Some(stage) = &stage {
                    stage.detail(text);
                }
            }
            Event::Bytes { count, .. } => {
                if let Some(stage) = &stage {
                    stage.advance(*count);
                }
            }
            Event::Finished { .. } => {
                if let Some(stage) = stage.take() {
                    let bytes = stage.bytes();
                    stage.finish(&if bytes > 0 { crate::report::progress::human_bytes(bytes) } else { String::new() });
                }
            }
            Event::Failed { .. } | Event::Refused { .. } | Event::Unshared => stage = None,
        };
        let result = namespace::run(job, observe, |mut stdout: ChildStdout| consume(&mut stdout));
        result.map_err(|error| match error.downcast_ref::<JobError>() {
            Some(JobError::Action { action, status, message }) => {
                let Some(Some(title)) = titles.get(*action) else { return error };
                let mut last_lines = lock(&tail).take();
                if status.is_none() {
                    last_lines.push(message.clone());
                }
                let what = title.text.clone();
                StepFailed { what, place: title.place.clone(), status: *status, last_lines }.into()
            }
            _ => error,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn require_mmdebstrap() -> Result<()> {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("mmdebstrap").is_file()));
    anyhow::ensure!(
        found,
        "a Debian base needs mmdebstrap\nhint: run again with --setup, or: apt-get install mmdebstrap"
    );
    Ok(())
}

fn write_files(
    files: &[crate::spec::Located<crate::spec::model::FileSpec>],
    work: &Path,
    index: usize,
) -> Result<PathBuf> {
    let path = work.join(format!("files-{index}.tar"));
    let mut file = std::fs::File::create_new(&path).context("cannot write the files of the spec")?;
    tar::write(&file_tree(files)?, &mut file, TarOptions::FAITHFUL, &mut |_| {})?;
    Ok(path)
}

/// The command that installs packages, as a shell script with the packages as its arguments.
fn install_command(manager: PackageManager, packages: &[String]) -> Vec<String> {
    let cache = format!("{CACHES}/{}", manager.as_str());
    let script = match manager {
        // Downloads stay in the mounted cache, where apt verifies them again before it uses them.
        // Downloads stay in the mounted cache, where apt verifies them again before it uses them.
        PackageManager::Apt => format!(
            "mkdir -p {cache}/partial\n\
             options='-q -o Dpkg::Use-Pty=0 -o Acquire::Retries=3 -o APT::Keep-Downloaded-Packages=true'\n\
             options=\"$options -o Dir::Cache::Archives={cache}\"\n\
             [ -z \"$SSL_CERT_FILE\" ] || options=\"$options -o Acquire::https::CAInfo=$SSL_CERT_FILE\"\n\
             apt-get $options update\n\
             apt-get $options install -y --no-install-recommends -- \"$@\"\n"
        ),
        PackageManager::Npm => "npm install --global --no-fund --no-audit --no-update-notifier -- \"$@\"\n".to_owned(),
        PackageManager::Pip => PIP_SCRIPT.to_owned(),
    };
    let mut command: Vec<String> = ["/bin/sh", "-e", "-c", &script, "install"].map(Into::into).into();
    command.extend_from_slice(packages);
    command
}

/// Debian's Python refuses pip's packages unless told twice, and pip itself is a tool of the build: where the image has
/// none, it is there for this step only.
const PIP_SCRIPT: &str = r#"
if ! command -v python3 >/dev/null; then
    echo "pip packages need python3 in the image: add it to the system packages" >&2
    exit 1
fi
borrowed=
if ! python3 -m pip --version >/dev/null 2>&1; then
    apt-mark showmanual python3 | grep -q . || apt-mark manual python3 >/dev/null
    apt-get -q -o Dpkg::Use-Pty=0 update
    apt-get -q -o Dpkg::Use-Pty=0 install -y --no-install-recommends python3-pip
    borrowed=1
fi
python3 -m pip install --break-system-packages --root-user-action=ignore -- "$@"
if [ -n "$borrowed" ]; then
    apt-get -q -o Dpkg::Use-Pty=0 purge -y --auto-remove python3-pip
fi
"#;
