//! The result of one check.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The result of one check of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Check {
    /// Name of the check: `fsck`, `tree`.
    pub question: &'static str,
    pub state: State,
    /// The program, library or kernel that judged, with its version.
    pub judge: String,
    /// What was found, in one line; for a skipped check, why it could not be made.
    pub said: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What else a person should know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub seconds: f64,
}

/// One defect that a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Path in the image, block of the image, or command in the guest.
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
    /// The check cannot be made on this host.
    Skipped,
}

impl State {
    pub(super) fn word(self) -> &'static str {
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

    /// A check that ended in an error: the image has not passed.
    pub fn broken(question: &'static str, judge: impl Into<String>, error: &anyhow::Error) -> Self {
        Check::failed(question, judge, format!("{error:#}"))
    }

    /// Adds findings; any of them makes the check fail.
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
