//! The filesystem type's own check.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};

use super::report::Check;
use crate::filesystem::FilesystemKind;
use crate::filesystem::tool::Tool;

const QUESTION: &str = "fsck";
const E2FSCK: Tool = Tool { program: "e2fsck", package: "e2fsprogs" };
const UNSQUASHFS: Tool = Tool { program: "unsquashfs", package: "squashfs-tools" };
const FSCK_EROFS: Tool = Tool { program: "fsck.erofs", package: "erofs-utils" };
/// Lines of a program's verdict that are worth showing.
const LINES: usize = 12;

/// Runs it; it never changes the image.
pub fn check(image: &Path, kind: FilesystemKind) -> Check {
    let started = Instant::now();
    let (tool, version, arguments): (Tool, &str, &[&str]) = match kind {
        FilesystemKind::Ext4 => (E2FSCK, "-V", &["-f", "-n"]),
        // squashfs has none: what reads all of its tables stands in for it.
        FilesystemKind::Squashfs => (UNSQUASHFS, "-version", &["-no-progress", "-lln"]),
        FilesystemKind::Erofs => (FSCK_EROFS, "-V", &[]),
    };
    if tool.find().is_none() {
        return Check::skipped(QUESTION, format!("needs {} (apt-get install {})", tool.program, tool.package));
    }
    run(tool, version, arguments, image)
        .unwrap_or_else(|error| Check::broken(QUESTION, tool.program, &error))
        .took(started.elapsed())
}

fn run(tool: Tool, version: &str, arguments: &[&str], image: &Path) -> Result<Check> {
    let judge = name(tool, version)?;
    let output = tool.command()?.args(arguments).arg(image).output().context("cannot start it")?;
    if output.status.success() {
        return Ok(Check::passed(QUESTION, judge, "clean"));
    }
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let shown = lines[..lines.len().min(LINES)].join("\n");
    Ok(Check::failed(QUESTION, judge, format!("{}\n{shown}", output.status)))
}

/// The first line of what a program says of itself, up to the date: `e2fsck 1.47.0`.
fn name(tool: Tool, version: &str) -> Result<String> {
    let output = tool.command()?.arg(version).output().with_context(|| format!("cannot start {}", tool.program))?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let first = said.lines().next().unwrap_or(tool.program);
    Ok(first.split(" (").next().unwrap_or(first).replace(" version", ""))
}
