//! Turns a [`BuildPlan`] into the tar stream of a root filesystem. Knows nothing of filesystems.

pub mod builtin;
pub mod choose;
pub mod container;
pub(crate) mod emulation;
pub(crate) mod environment;
mod files;
mod install;
pub mod secrets;
pub(crate) mod watched;

use std::collections::VecDeque;
use std::io::Read;
use std::path::Path;

use anyhow::Result;

use crate::plan::BuildPlan;
use crate::report::progress::Progress;
use crate::rootfs::tree::RootTree;
use crate::spec::model::EngineKind;

pub use files::{apply_attributes, file_tree};

/// A failing step shows this many of its last lines.
pub const LAST_LINES: usize = 40;

/// What becomes of the tree of a failing step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    #[default]
    Remove,
    /// It stays, for a person to look at.
    Keep,
    /// A shell opens in it, on the terminal of the tool; then it goes.
    Shell,
}

/// One way to run the steps of a plan.
pub trait Engine: Send + Sync {
    fn kind(&self) -> EngineKind;

    /// Can it work here? The error says why not and what to do.
    fn probe(&self) -> Result<()>;

    /// Removes what killed runs left with it, once it is to be used.
    fn sweep(&self) {}

    /// Runs the plan's steps on the tree in `base`, a tar file, and hands the tar stream of what comes out to `consume`,
    /// which reads it to its end. A tree that cannot be left or opened `on_failure` is an error before anything runs.
    fn build(
        &self,
        plan: &BuildPlan,
        base: &Path,
        on_failure: OnFailure,
        progress: &Progress,
        consume: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()>;

    /// Puts right what the way of the tree through the engine has done to it, before anything else looks at it.
    fn mend(&self, _tree: &mut RootTree, _base: &Path) -> Result<()> {
        Ok(())
    }

    /// The plan in the engine's own words, where it has any.
    fn script(&self, _plan: &BuildPlan) -> Option<String> {
        None
    }
}

/// A step that failed, as it is shown to a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} failed{}\n  asked for at {place}{}{}", status_text(*.status), output_text(.last_lines), network_text(.last_lines))]
pub struct StepFailed {
    /// The step in a line.
    pub what: String,
    /// `path:line` of the spec.
    pub place: String,
    /// Exit status, where a command ran.
    pub status: Option<i32>,
    /// The end of its output.
    pub last_lines: Vec<String>,
}

fn status_text(status: Option<i32>) -> String {
    status.map(|status| format!(" with exit status {status}")).unwrap_or_default()
}

fn output_text(lines: &[String]) -> String {
    if lines.is_empty() {
        return "\n  it printed nothing".to_owned();
    }
    let shown: String = lines.iter().map(|line| format!("\n  | {line}")).collect();
    format!("\n  its last {} lines:{shown}", lines.len())
}

/// What apt, npm, pip, curl and the C library say where the network does not answer.
const NETWORK_TROUBLE: [&str; 24] = [
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Could not resolve",
    "Name or service not known",
    "Could not connect to",
    "Unable to connect to",
    "Failed to connect to",
    "Failed to establish a new connection",
    "Cannot initiate the connection",
    "Connection failed",
    "Connection timed out",
    "Connection reset by peer",
    "Remote end closed connection",
    "Error reading from server",
    "socket hang up",
    "ECONNRESET",
    "Connection refused",
    "Network is unreachable",
    "ProxyError",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "ENETUNREACH",
];

fn network_text(lines: &[String]) -> &'static str {
    let trouble = |line: &String| NETWORK_TROUBLE.iter().any(|words| line.contains(words));
    if lines.iter().any(trouble) {
        "\nhint: the network did not answer, or the proxy that http_proxy and https_proxy name: try again when it does"
    } else {
        ""
    }
}

/// The last lines of an output.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    pub fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0).into()
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}
