//! The engine `builtin`: steps in namespaces, without root and without a container runtime.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use snug_rootfs::tar::{self, TarOptions};
use snug_sandbox::emulator;
use snug_sandbox::{Action, Enter, Job, Program, Terminal};

use super::downloads::Downloads;
use super::environment::Given;
use super::install::install_command;
use super::{Engine, Layered, LayeredRun, OnFailure, Steps, environment, file_tree};
use crate::cache::Cache;
use crate::plan::{EngineKind, PlannedFile, StepAction};
use crate::report::progress::Progress;
use crate::steps::watched::{self, Title};

/// What `--shell` opens: bash if the tree has it, else sh.
const SHELL: &str = "command -v bash >/dev/null && exec bash; exec sh";

/// The host name while steps run, if the spec gives none.
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
    fn kind(&self) -> EngineKind {
        EngineKind::Builtin
    }

    fn probe(&self) -> Result<()> {
        snug_sandbox::probe()
    }

    fn steps(&self) -> Steps<'_> {
        Steps::Layered(self)
    }
}

impl Layered for Builtin {
    fn run(
        &self,
        run: LayeredRun,
        on_failure: OnFailure,
        progress: &Progress,
        finished: &mut (dyn FnMut(usize) + Send),
    ) -> Result<()> {
        let LayeredRun { plan, outputs, secrets, .. } = run;
        self.cache.require_exec()?;
        let work = self.cache.work_folder(&plan.name)?;
        let terminal = (on_failure == OnFailure::Shell).then(Terminal::open).transpose()?;
        let downloads = Downloads::prepare(&self.cache, plan)?;
        let work_of = Work { folder: work.path(), downloads: downloads.as_ref(), shell: terminal.is_some() };
        let (job, titles) = job(run, &work_of)?;
        let mut ended = |action: usize| {
            if let Some(Action::Layer { to }) = job.actions.get(action)
                && let Some(step) = outputs.iter().position(|output| output == to)
            {
                finished(step);
            }
        };
        let mut nothing = |stdout: &mut dyn Read| Ok(std::io::copy(stdout, &mut std::io::sink()).map(|_| ())?);
        let result = watched::run_with(&job, &titles, secrets, terminal, progress, &mut ended, &mut nothing)
            .map_err(|error| self.cache.explain(error));
        if let Some(error) = downloads.and_then(|downloads| downloads.keep().err()) {
            progress.warn(format!("warning: {error:#}"));
        }
        if result.is_err() && on_failure == OnFailure::Keep {
            let kept = self.cache.keep(work, &plan.name)?;
            progress.warn(format!("the tree as it failed, until `cargo xtask clean`: {}", kept.join("root").display()));
        } else {
            self.cache.remove_meanwhile(work);
        }
        result
    }
}

/// Where a job works, and what it takes along.
struct Work<'a> {
    folder: &'a Path,
    downloads: Option<&'a Downloads>,
    /// Whether a shell is opened where a step fails.
    shell: bool,
}

fn job(
    LayeredRun { plan, base, layers, outputs, secrets }: LayeredRun,
    &Work { folder: work, downloads, shell }: &Work,
) -> Result<(Job, Vec<Option<Title>>)> {
    let root = work.join("root");
    let ca_bundle = environment::ca_bundle();
    let given = Given { trust: ca_bundle.is_some(), caches: false, network: true };
    let mut actions = vec![Action::Materialise {
        tar: base.path().to_path_buf(),
        own: base.is_own(),
        layers: layers.to_vec(),
        root: root.clone(),
    }];
    let mut titles = vec![Some(Title {
        text: format!("unpack {}", plan.base.describe()),
        place: plan.base_place.to_string(),
        fetches: false,
        network: true,
    })];
    if let Some(stamp) = base.stamp() {
        // What was read is what was checked, before any step runs.
        actions.push(Action::Unchanged { tar: base.path().to_path_buf(), stamp });
        titles.push(None);
    }
    if let Some(emulator) = emulator::emulator(plan.platform)? {
        actions.push(Action::Emulate(emulator));
        titles.push(None);
    }
    actions.push(Action::Enter(Enter {
        root,
        hostname: plan.hostname.clone().unwrap_or_else(|| BUILD_HOSTNAME.to_owned()),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        ca_bundle,
        caches: downloads.map(Downloads::mounts).unwrap_or_default(),
        secrets: secrets.iter().map(|secret| (secret.id.clone(), secret.value.clone())).collect(),
    }));
    titles.push(None);
    if shell {
        let mut environment = environment::of_step(&plan.environment, given);
        environment.extend(std::env::var("TERM").map(|term| ("TERM".to_owned(), term)));
        actions.push(Action::ShellOnFailure(Program {
            command: ["/bin/sh", "-c", SHELL].map(Into::into).into(),
            environment,
            directory: None,
            network: true,
        }));
        titles.push(None);
    }
    let mut caches_mounted = downloads.is_some();
    let layer = |to: &PathBuf| Action::Layer { to: to.clone() };
    if plan.steps.is_empty() {
        actions.extend(outputs.iter().map(layer));
        titles.push(None);
    }
    for (index, (step, output)) in plan.steps.iter().zip(outputs).enumerate() {
        if caches_mounted && !matches!(step.action, StepAction::Install { .. }) {
            actions.push(Action::DropCaches);
            titles.push(None);
            caches_mounted = false;
        }
        actions.push(match &step.action {
            StepAction::Install { manager, packages } => Action::Run(Program {
                command: install_command(*manager, packages),
                environment: environment::of_step(&plan.environment, Given { caches: true, ..given }),
                directory: None,
                network: true,
            }),
            StepAction::Shell { command, network } => Action::Run(Program {
                command: vec!["/bin/sh".into(), "-e".into(), "-c".into(), command.clone()],
                environment: environment::of_step(&plan.environment, Given { network: *network, ..given }),
                directory: None,
                network: *network,
            }),
            StepAction::Files(files) => Action::Place { tar: write_files(files, work, index)? },
        });
        titles.push(Some(Title {
            text: step.describe(),
            place: step.place.clone(),
            fetches: step.action.fetches(),
            network: step.action.has_network(),
        }));
        actions.push(layer(output));
        // Packages are often many; what other steps change is stored in moments.
        let text = format!("store what {} changed", step.describe());
        let title = Title { text, place: step.place.clone(), fetches: false, network: true };
        titles.push(step.action.fetches().then_some(title));
    }
    Ok((Job { actions }, titles))
}

fn write_files(files: &[PlannedFile], work: &Path, index: usize) -> Result<PathBuf> {
    let path = work.join(format!("files-{index}.tar"));
    let mut file = std::fs::File::create_new(&path).context("cannot write the files of the spec")?;
    tar::write(&file_tree(files)?, &mut file, TarOptions::FAITHFUL, &mut |_| {})?;
    Ok(path)
}
