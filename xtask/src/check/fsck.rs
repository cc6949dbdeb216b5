//! The filesystem's own checker: e2fsck, unsquashfs, fsck.erofs.

use std::path::Path;
use std::process::Output;
use std::time::Instant;

use anyhow::Result;
use snug_formats::FilesystemKind;
use snug_process::child;
use snug_process::program::HostProgram;

use super::verdict::Check;
use crate::filesystem::erofs::ErofsUtils;
use crate::report::progress::Progress;

const QUESTION: &str = "fsck";
const E2FSCK: HostProgram = HostProgram { name: "e2fsck", package: "e2fsprogs" };
const UNSQUASHFS: HostProgram = HostProgram { name: "unsquashfs", package: "squashfs-tools" };
const FSCK_EROFS: &str = "fsck.erofs";
/// Lines of a checker's output that a report shows.
const MAX_LINES: usize = 12;

/// Runs the checker of the image's filesystem, read-only.
pub(super) fn check(image: &Path, kind: FilesystemKind) -> Check {
    let started = Instant::now();
    let (tool, version, arguments): (HostProgram, &str, &[&str]) = match kind {
        FilesystemKind::Erofs => return erofs(image).took(started.elapsed()),
        FilesystemKind::Ext4 => (E2FSCK, "-V", &["-f", "-n"]),
        // squashfs has no checker: unsquashfs reads all of its tables instead.
        FilesystemKind::Squashfs => (UNSQUASHFS, "-version", &["-no-progress", "-lln"]),
    };
    if tool.find().is_none() {
        return Check::skipped(QUESTION, tool.missing().in_a_line());
    }
    run(tool, version, arguments, image)
        .unwrap_or_else(|error| Check::broken(QUESTION, tool.name, &error))
        .took(started.elapsed())
}

/// Runs the fsck.erofs that comes with the mkfs.erofs in use.
fn erofs(image: &Path) -> Check {
    let utils = match ErofsUtils::find(&Progress::hidden()) {
        Ok(utils) => utils,
        Err(error) => return Check::skipped(QUESTION, format!("{error:#}")),
    };
    let output = utils.command(FSCK_EROFS).and_then(|mut fsck| child::output(fsck.arg(image)));
    match output {
        Ok(output) => verdict(format!("{FSCK_EROFS} {}", utils.version()), output),
        Err(error) => Check::broken(QUESTION, FSCK_EROFS, &error),
    }
}

fn run(tool: HostProgram, version: &str, arguments: &[&str], image: &Path) -> Result<Check> {
    let judge = name(tool, version)?;
    let output = child::output(tool.command()?.args(arguments).arg(image))?;
    Ok(verdict(judge, output))
}

fn verdict(judge: String, output: Output) -> Check {
    if output.status.success() {
        return Check::passed(QUESTION, judge, "clean");
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines[..lines.len().min(MAX_LINES)].join("\n");
    Check::failed(QUESTION, judge, format!("{}\n{shown}", output.status))
}

/// Returns the first line of a program's version message, up to the date: `e2fsck 1.47.0`.
fn name(tool: HostProgram, version: &str) -> Result<String> {
    let output = child::output(tool.command()?.arg(version))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let first = said.lines().next().unwrap_or(tool.name);
    Ok(first.split(" (").next().unwrap_or(first).replace(" version", ""))
}
