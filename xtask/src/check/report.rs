//! What the checks of one image found: data first, sentences from it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::boot::Booted;
use crate::filesystem::FilesystemKind;
use crate::report::progress::human_duration;
use crate::report::table;

/// Findings that a person is shown of one check; a program gets all.
const SHOWN: usize = 20;

/// Everything that was checked of one image.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    pub name: String,
    pub image: PathBuf,
    pub filesystem: FilesystemKind,
    pub passed: bool,
    pub checks: Vec<Check>,
    /// How it booted, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<Booted>,
}

/// One question, its answer, and who gave it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    pub question: &'static str,
    pub state: State,
    /// The program, library or kernel that judged, with its version.
    pub judge: String,
    /// One line: what was found to be so; or why it is not, or was not checked.
    pub said: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What a person should know beside the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub seconds: f64,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// A path of the image, from its root; or a block of it, or a command in the guest.
    pub place: String,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Passed,
    Failed,
    /// It could not be checked here; what was said says why.
    Skipped,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            State::Passed => "passed",
            State::Failed => "FAILED",
            State::Skipped => "skipped",
        }
    }
}

impl Check {
    fn new(question: &'static str, state: State, judge: impl Into<String>, said: impl Into<String>) -> Self {
        let (judge, said) = (judge.into(), said.into());
        Check { question, state, judge, said, findings: Vec::new(), notes: Vec::new(), seconds: 0.0 }
    }

    pub fn passed(question: &'static str, judge: impl Into<String>, said: impl Into<String>) -> Self {
        Check::new(question, State::Passed, judge, said)
    }

    pub fn failed(question: &'static str, judge: impl Into<String>, said: impl Into<String>) -> Self {
        Check::new(question, State::Failed, judge, said)
    }

    pub fn skipped(question: &'static str, why: impl Into<String>) -> Self {
        Check::new(question, State::Skipped, "", why)
    }

    /// An image whose judge could not come to a verdict has not passed.
    pub fn broken(question: &'static str, judge: impl Into<String>, error: &anyhow::Error) -> Self {
        Check::failed(question, judge, format!("{error:#}"))
    }

    /// Fails with these findings, if there are any.
    pub fn with_findings(mut self, findings: Vec<Finding>) -> Self {
        if !findings.is_empty() {
            self.state = State::Failed;
        }
        self.findings = findings;
        self
    }

    pub fn fail(self) -> Self {
        Check { state: State::Failed, ..self }
    }

    pub fn with_notes(mut self, notes: Vec<String>) -> Self {
        self.notes = notes;
        self
    }

    pub fn took(mut self, time: Duration) -> Self {
        self.seconds = (time.as_secs_f64() * 100.0).round() / 100.0;
        self
    }
}

impl CheckReport {
    pub fn new(name: &str, image: PathBuf, filesystem: FilesystemKind, checks: Vec<Check>) -> Self {
        let passed = checks.iter().all(|check| check.state != State::Failed);
        CheckReport { name: name.to_owned(), image, filesystem, passed, checks, boot: None }
    }

    /// For a person: the checks as a table, and below it what each of them found.
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
                lines.push(format!("and {} more; --json tells all", check.findings.len() - SHOWN));
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
