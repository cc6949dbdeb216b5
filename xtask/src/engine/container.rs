//! The engines `docker` and `podman`: the steps as a Dockerfile, built by the command of that name.
//!
//! They are used by their commands and not by a socket's API: the commands know contexts, DOCKER_HOST and logins, so that a
//! remote daemon works as well. For its sake nothing of the host is mounted: base, files and certificates are sent as streams
//! and as a context.

mod cleanup;
mod cli;
mod context;
mod dockerfile;
mod names;
mod output;
mod pause;
mod restore;

use std::io::Read;
use std::sync::Once;

use anyhow::{Context, Result, bail};
use nix::unistd::Uid;
use snug_rootfs::fit::{self, HOLES_WRITTEN_OUT_MAX};
use snug_rootfs::platform::Platform;
use snug_rootfs::tar::{self, TarOptions};
use snug_rootfs::tree::{Body, Inode, Kind, RootTree, TreePath};
use snug_sandbox::POLICY_PATH;

use self::cleanup::Cleanup;
use self::cli::Cli;
use self::names::BuildNames;
use self::output::{Builder, Watch};
use super::{Engine, OnFailure, Steps, Whole, environment};
use crate::cache::{Cache, Tree};
use crate::error::Failure;
use crate::plan::{BuildPlan, EngineKind};
use crate::report::progress::{Progress, human_bytes};
use crate::steps::mask::Mask;
use crate::steps::secret::Secret;

/// What every tar reader of the commands understands: times as they are, holes as zeros.
const TRANSPORT: TarOptions = TarOptions { sparse: false, ..TarOptions::FAITHFUL };

pub struct Container {
    cli: Cli,
    cache: Cache,
    /// One sweep is enough for all images of a run.
    swept: Once,
}

impl Container {
    pub fn new(kind: EngineKind, cache: Cache) -> Self {
        Container { cli: Cli::new(kind), cache, swept: Once::new() }
    }

    /// Imports the base's tree as an image, whose labels all that is built on it inherits.
    fn import(&self, from: &Tree, names: &BuildNames, progress: &Progress) -> Result<RootTree> {
        let stage = progress.stage(format!("send the base to {}", self.cli));
        let base = read(from)?;
        let mut sent = base.clone();
        make_mount_points(&mut sent);
        hide_devices(&mut sent);
        fit::check_holes(&sent, HOLES_WRITTEN_OUT_MAX, "the engine")?;
        self.cli.import(names, |stdin| tar::write(&sent, stdin, TRANSPORT, &mut |bytes| stage.advance_to(bytes)))?;
        // What was read is what was checked, before any step runs.
        from.check()?;
        let bytes = stage.bytes();
        stage.finish(&human_bytes(bytes));
        Ok(base)
    }

    /// Refuses plans that the command cannot build, or not without leaving secrets behind.
    fn refuse(&self, plan: &BuildPlan) -> Result<()> {
        if self.cli.builder(!plan.secrets.is_empty()) == Builder::BuildKit {
            self.cli.require_buildkit()?;
        }
        if Some(plan.platform) != Platform::host() {
            bail!(Failure::Unsupported(format!(
                "{} builds for its own machine only, and not for {}\nhint: --engine builtin",
                self.cli, plan.platform
            )));
        }
        if let Some(step) = plan.steps.iter().find(|step| !step.action.has_network()) {
            bail!(Failure::Unsupported(format!(
                "{} gives all steps of a build one network, and {} is to have none\n  asked for at {}\nhint: --engine builtin",
                self.cli,
                step.describe(),
                step.place
            )));
        }
        Ok(())
    }

    fn export(
        &self,
        names: &BuildNames,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let stage = progress.stage(format!("export the tree from {}", self.cli));
        self.cli.export(names, |stdout| {
            consume(&mut Metered { stream: stdout, advance: &mut |bytes| stage.advance(bytes) })
        })?;
        let bytes = stage.bytes();
        stage.finish(&human_bytes(bytes));
        Ok(())
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.cli.is_docker() {
            pause::end();
        }
    }
}

impl Engine for Container {
    fn kind(&self) -> EngineKind {
        self.cli.kind()
    }

    fn probe(&self) -> Result<()> {
        self.cli.probe()
    }

    fn sweep(&self) {
        self.swept.call_once(|| cleanup::sweep(&self.cli, &self.cache));
    }

    fn script(&self, plan: &BuildPlan) -> Option<String> {
        let trust = environment::ca_bundle().is_some();
        Some(dockerfile::write(plan, "BASE", dockerfile::Extras { trust, quiet: true }))
    }

    fn steps(&self) -> Steps<'_> {
        Steps::Whole(self)
    }
}

impl Whole for Container {
    fn build(
        &self,
        plan: &BuildPlan,
        base: &Tree,
        secrets: &[Secret],
        on_failure: OnFailure,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let keep = match on_failure {
            OnFailure::Remove => false,
            OnFailure::Keep => true,
            OnFailure::Shell => bail!(Failure::Usage(format!(
                "--shell opens a tree that the engine builtin has, and {} is to build this one\n\
                 hint: --engine builtin, or --keep",
                self.cli
            ))),
        };
        self.refuse(plan)?;
        if !self.cli.is_docker() && Uid::effective().is_root() {
            progress.warn(
                "warning: podman run by root shows build steps the devices of this machine\n\
                 hint: for a spec that you do not trust, run it without root or take another engine",
            );
        }
        let work = self.cache.work_folder(&plan.name)?;
        let builder = self.cli.builder(!secrets.is_empty());
        let mut cleanup = Cleanup::begin(&self.cli, builder, &self.cache, work.path());
        let base = self.import(base, cleanup.names(), progress)?;
        let extras = dockerfile::Extras { trust: environment::ca_bundle().is_some(), quiet: wants_policy(&base) };
        let folder = context::stage(plan, &cleanup.names().base_image(), extras, work.path(), progress)?;
        let mask = Mask::new(secrets);
        let watch = Watch::new(plan, self.cli.kind(), builder, &mask, progress);
        let built = self.cli.build(&folder, cleanup.names(), secrets, keep, watch);
        if built.is_err() && keep {
            cleanup.keep();
            let kept = self.cache.keep(work, &plan.name)?;
            let folder = kept.join(folder.file_name().unwrap_or_default());
            progress.warn(format!("the build context as it failed, until `cargo xtask clean`: {}", folder.display()));
            // BuildKit keeps no container of a step that failed.
            if builder == Builder::Classic {
                progress.warn(format!("what {} holds of it, until its next build: {}", self.cli, cleanup.query()));
            }
            return built;
        }
        built?;
        self.cli.create(cleanup.names())?;
        self.export(cleanup.names(), progress, consume)
    }

    fn restore(&self, tree: &mut RootTree, base: &Tree) -> Result<()> {
        restore::restore(tree, &read(base)?, self.cli.kind()).context("cannot restore what the export lost")
    }
}

fn read(base: &Tree) -> Result<RootTree> {
    tar::read_file(base.file()?, &tar::Limits::default(), &mut |_| {})
        .with_context(|| format!("cannot read {}", base.path().display()))
}

/// Makes the folders that the builtin engine mounts over exist and be empty.
fn make_mount_points(tree: &mut RootTree) {
    for (name, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)] {
        let path = TreePath::new(name).expect("the paths written here are clean");
        tree.remove(&path);
        tree.insert(path, Inode::directory(mode)).expect("the root is a directory and the name is free");
    }
    let lock = TreePath::new("run/lock").expect("the paths written here are clean");
    tree.insert(lock, Inode::directory(0o1777)).expect("/run was just made");
}

/// As with the builtin engine, empty files stand in for device nodes, which a rootless engine cannot make and would leave
/// out; [`restore`](Engine::restore) puts the nodes back.
fn hide_devices(tree: &mut RootTree) {
    for inode in tree.inodes_mut() {
        if is_device(&inode.kind) {
            inode.kind = Kind::File(Body::default());
        }
    }
}

fn is_device(kind: &Kind) -> bool {
    matches!(kind, Kind::CharacterDevice { .. } | Kind::BlockDevice { .. })
}

/// Whether our `policy-rc.d` is to be added: its folder exists in this root, and it has none of its own.
fn wants_policy(base: &RootTree) -> bool {
    let policy = TreePath::new(POLICY_PATH).expect("the paths written here are clean");
    let Some(folder) = policy.parent().and_then(|folder| base.resolve(&folder)) else { return false };
    base.get(&folder).is_some_and(Inode::is_directory)
        && folder.join(policy.name()).is_some_and(|path| base.get(&path).is_none())
}

/// A stream whose bytes are counted.
struct Metered<'a> {
    stream: &'a mut dyn Read,
    advance: &'a mut dyn FnMut(u64),
}

impl Read for Metered<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.stream.read(buffer)?;
        (self.advance)(count as u64);
        Ok(count)
    }
}
