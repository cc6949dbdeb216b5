//! Jobs of the sandbox for engines and bases: their progress on the terminal, their output with secrets masked, and failures
//! that name the place in the spec.

pub mod environment;
pub mod secret;
pub mod watched;

use std::collections::VecDeque;

/// How many lines at the end of a failing step's output are shown.
pub const LAST_LINES: usize = 40;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} failed{}\n  asked for at {place}{}{}", status_text(*.status), output_text(.last_lines), network_text(.last_lines))]
pub struct StepFailed {
    /// The step, in one line.
    pub what: String,
    /// `path:line` of the spec.
    pub place: String,
    /// Exit status, if a command ran.
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

/// What apt, npm, pip, curl and the C library print when the network fails.
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

/// The last [`LAST_LINES`] lines of an output.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    /// Adds a line.
    pub fn push(&mut self, line: &str) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.to_owned());
    }

    /// Returns the lines and forgets them.
    pub fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0).into()
    }

    /// Returns the lines.
    pub fn lines(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}
