//! One check's question, its answer, and who gave it.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

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
