//! The build context: a folder with the Dockerfile and all that its lines name.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fs_extra::file::CopyOptions;
use snug_rootfs::tar;
use snug_rootfs::tree::TreePath;
use snug_sandbox::POLICY_SCRIPT;

use super::TRANSPORT;
use super::dockerfile::{self, CERTIFICATES, Extras, POLICY, files_of};
use crate::engine::{environment, file_tree};
use crate::plan::{BuildPlan, PlannedFile, StepAction};
use crate::report::progress::{Progress, human_bytes};

/// Stages the context of `plan`, whose base is the image `base`, below `work`. Returns its folder.
pub(super) fn stage(plan: &BuildPlan, base: &str, extras: Extras, work: &Path, progress: &Progress) -> Result<PathBuf> {
    let stage = progress.stage("stage the build context");
    let context = work.join("context");
    fs::create_dir(&context).context("cannot make the build context")?;
    fs::write(context.join("Dockerfile"), dockerfile::write(plan, base, extras))?;
    if let Some(bundle) = environment::ca_bundle().filter(|_| extras.trust) {
        let copy = context.join(CERTIFICATES);
        fs_extra::file::copy_with_progress(&bundle, &copy, &CopyOptions::new(), |state| {
            stage.advance_to(state.copied_bytes);
        })
        .with_context(|| format!("cannot copy {}", bundle.display()))?;
        // Steps that give root up read it as well.
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))?;
    }
    if extras.quiet {
        let policy = context.join(POLICY);
        fs::write(&policy, POLICY_SCRIPT)?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
    }
    for (index, step) in plan.steps.iter().enumerate() {
        if let StepAction::Files(files) = &step.action {
            let done = stage.bytes();
            write_files(files, &context.join(files_of(index)), &mut |bytes| stage.advance_to(done + bytes))?;
        }
    }
    let bytes = stage.bytes();
    stage.finish(&human_bytes(bytes));
    Ok(context)
}

/// Writes a tar for `ADD`, without entries of folders that are not empty: an entry would replace a symlink of the image
/// (`/bin`) and change an existing folder. Parents without an entry stay as they are, or are created.
fn write_files(files: &[PlannedFile], path: &Path, progress: &mut dyn FnMut(u64)) -> Result<()> {
    let whole = file_tree(files)?;
    let holds_something: BTreeSet<TreePath> = whole.entries().filter_map(|entry| entry.path.parent()).collect();
    let file = File::create_new(path).context("cannot write the files of the spec")?;
    tar::write_some(&whole, file, TRANSPORT, progress, &|entry| {
        !entry.inode.is_directory() || !holds_something.contains(entry.path)
    })
    .context("cannot write the files of the spec")
}
