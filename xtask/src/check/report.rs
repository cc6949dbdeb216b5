//! The checks of one image, as data and as text.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use snug_formats::FilesystemKind;

use super::boot::BootSummary;
use super::verdict::{Check, Finding, State};
use crate::report::progress::human_duration;
use crate::report::table;

/// Findings of one check that the text shows; JSON has all of them.
const SHOWN: usize = 20;

/// All checks of one image and their results.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    pub name: String,
    pub image: PathBuf,
    pub filesystem: FilesystemKind,
    pub passed: bool,
    pub checks: Vec<Check>,
    /// How it booted, if it was booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootSummary>,
}

impl CheckReport {
    pub fn new(name: &str, image: PathBuf, filesystem: FilesystemKind, checks: Vec<Check>) -> Self {
        let passed = checks.iter().all(|check| check.state != State::Failed);
        CheckReport { name: name.to_owned(), image, filesystem, passed, checks, boot: None }
    }

    /// Renders the checks as a table, followed by the findings and notes of each.
    pub fn as_text(&self) -> String {
        let rows: Vec<[String; 5]> = self
            .checks
            .iter()
            .map(|check| {
                let time = Duration::from_secs_f64(check.seconds);
                let first = check.said.lines().next().unwrap_or_default().to_owned();
                [
                    check.question.to_owned(),
                    check.state.word().to_owned(),
                    check.judge.clone(),
                    human_duration(time),
                    first,
                ]
            })
            .collect();
        let mut text = table::columns(["check", "result", "judge", "time", "what"], &rows);
        for check in &self.checks {
            let mut lines: Vec<String> = check.said.lines().skip(1).map(str::to_owned).collect();
            lines.extend(check.findings.iter().take(SHOWN).map(Finding::to_string));
            if check.findings.len() > SHOWN {
                lines.push(format!("and {} more; --json lists all", check.findings.len() - SHOWN));
            }
            lines.extend(check.notes.iter().map(|note| format!("note: {note}")));
            for line in lines {
                text += &format!("  {}: {line}\n", check.question);
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_who_judged_and_what_was_found() {
        let findings = (0..22).map(|n| Finding { place: format!("/etc/{n}"), what: "this file is missing".into() });
        let checks = vec![
            Check::passed("fsck", "e2fsck 1.47.0", "clean").took(Duration::from_millis(1234)),
            Check::passed("tree", "Linux 6.1", "22 of 40 names are not as they were meant")
                .with_findings(findings.collect())
                .with_notes(vec!["not compared: device numbers".into()]),
            Check::skipped("boot", "needs qemu-system-x86_64"),
        ];
        let report = CheckReport::new("hello", "rootfs.ext4".into(), FilesystemKind::Ext4, checks);
        assert!(!report.passed);
        insta::assert_snapshot!(report.as_text());
    }
}
