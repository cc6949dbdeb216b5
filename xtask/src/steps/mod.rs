//! Jobs of the sandbox for engines and bases: their progress on the terminal, their output with secrets masked, and failures
//! that name the place in the spec.

pub mod environment;
pub mod mask;
pub mod secret;
pub mod watched;

use std::collections::VecDeque;

use crate::error::Failure;
use crate::report::escapes::plain;

/// How many lines at the end of a failing step's output are shown.
pub const LAST_LINES: usize = 40;
/// How many lines that say what went wrong are kept from before those.
const FIRST_REASONS: usize = 10;

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} failed{}\n  asked for at {place}{}{}", status_text(*.status), output_text(.last_lines), network_text(.last_lines, *.fetches, *.network))]
pub struct StepFailed {
    /// The step, in one line.
    pub what: String,
    /// `path:line` of the spec.
    pub place: String,
    /// Exit status, if a command ran.
    pub status: Option<i32>,
    /// What it says went wrong, and the end of its output.
    pub last_lines: Vec<String>,
    /// Whether all that it does is to fetch and install packages.
    pub fetches: bool,
    /// Whether it had a network.
    pub network: bool,
}

impl StepFailed {
    /// Returns the error: where packages are fetched and the network fails, nothing is wrong with them or the spec.
    pub fn into_error(self) -> anyhow::Error {
        match self.fetches && has_network_trouble(&self.last_lines, self.fetches) {
            true => Failure::Unreachable(self.to_string()).into(),
            false => self.into(),
        }
    }
}

fn status_text(status: Option<i32>) -> String {
    status.map(|status| format!(" with exit status {status}")).unwrap_or_default()
}

/// How the lines begin that say what went wrong: those of apt and mmdebstrap, dpkg, npm, pip, cargo and others.
const WHY: [&str; 10] =
    ["E: ", "Err:", "W: ", "dpkg: error", "npm ERR!", "npm error", "ERROR:", "error:", "Error:", "fatal:"];

/// Whether a line says what went wrong.
fn says_why(line: &str) -> bool {
    WHY.iter().any(|start| line.starts_with(start))
}

/// The lines that say what went wrong come first: apt's follow hundreds that name what it fetches.
fn output_text(lines: &[String]) -> String {
    if lines.is_empty() {
        return "\n  it printed nothing".to_owned();
    }
    let mut continued = false;
    let (why, others): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| {
        // An indented line belongs to the one before it.
        continued = says_why(line) || continued && line.starts_with("  ");
        continued
    });
    let shown = |title: &str, lines: &[&String]| -> String {
        let lines: String = lines.iter().map(|line| format!("\n  | {line}")).collect();
        if lines.is_empty() { lines } else { format!("\n  {title}:{lines}") }
    };
    let last = match others.len() {
        1 => "its last line".to_owned(),
        count => format!("its last {count} lines"),
    };
    let last = if why.is_empty() { last } else { last.replace("last", "other") };
    shown("it says", &why) + &shown(&last, &others)
}

/// What apt, apk (its `print.c`), npm, pip, curl, busybox and the C library print when the network fails.
const NETWORK_TROUBLE: [&str; 37] = [
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
    "Network unreachable",
    "bad address '",
    "ProxyError",
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ETIMEDOUT",
    "ENETUNREACH",
    "EHOSTUNREACH",
    "ERR_SOCKET_TIMEOUT",
    "No route to host",
    "Read timed out",
    "ConnectTimeout",
    "temporary error (try again later)",
    "could not connect to server",
    "network error (check Internet",
    "network connection aborted",
    "DNS lookup error",
    "DNS: transient error",
];

/// What apt prints once every index was fetched (the step fails otherwise) and what was asked
/// for is not in them, or once the packages are there and do not install.
const FETCHED: [&str; 6] = [
    "E: Unable to locate package",
    "E: Couldn't find any package by",
    "has no installation candidate",
    "E: Version '",
    "E: Unable to correct problems",
    "E: Sub-process /usr/bin/dpkg returned an error code",
];

/// How npm begins the line with the code of the error that ended it.
const CODE_OF_NPM: [&str; 2] = ["npm error code ", "npm ERR! code "];

fn tells_of_trouble(text: &str) -> bool {
    NETWORK_TROUBLE.iter().any(|words| text.contains(words))
}

/// Whether a line of a package manager says that it failed for another reason than the network.
fn tells_otherwise(line: &str) -> bool {
    let code = CODE_OF_NPM.iter().find_map(|start| line.strip_prefix(start));
    code.is_some_and(|code| !tells_of_trouble(code)) || FETCHED.iter().any(|words| line.contains(words))
}

/// Whether a line tells of an attempt after which another follows: apt's, or pip's, which counts down to its last.
fn is_tried_again(line: &str) -> bool {
    line.starts_with("Ign:") || line.contains("Retry(total=") && !line.contains("Retry(total=0,")
}

/// Whether the network is why a step failed. One that `fetches` runs a package manager alone, which says if it was
/// something else: the network may have failed before, for a moment.
fn has_network_trouble(lines: &[String], fetches: bool) -> bool {
    let mut passed = false;
    let mut last = lines.iter().filter(|line| {
        // An indented line belongs to the one before it.
        passed = is_tried_again(line) || passed && line.starts_with("  ");
        !passed
    });
    last.any(|line| tells_of_trouble(line)) && !(fetches && lines.iter().any(|line| tells_otherwise(line)))
}

fn network_text(lines: &[String], fetches: bool, network: bool) -> &'static str {
    match (has_network_trouble(lines, fetches), network) {
        (false, _) => "",
        (true, true) => {
            "\nhint: the network did not answer, or the proxy that http_proxy and https_proxy name: try again when it does"
        }
        (true, false) => {
            "\nhint: this step has no network, since the spec says `network = false`: fetch what it needs in a step before it"
        }
    }
}

/// The last [`LAST_LINES`] lines of an output, and before them the first that say what went wrong.
#[derive(Debug, Default)]
pub struct Tail {
    why: Vec<String>,
    last: VecDeque<String>,
}

impl Tail {
    /// Adds a line.
    pub fn push(&mut self, line: &str) {
        if self.last.len() == LAST_LINES
            && let Some(line) = self.last.pop_front()
            && says_why(&line)
            && self.why.len() < FIRST_REASONS
        {
            self.why.push(line);
        }
        self.last.push_back(plain(line));
    }

    /// Returns the lines and forgets them.
    pub fn take(&mut self) -> Vec<String> {
        let Tail { why, last } = std::mem::take(self);
        why.into_iter().chain(last).collect()
    }

    /// Returns the lines.
    pub fn lines(&self) -> Vec<String> {
        self.why.iter().chain(&self.last).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    fn failed(lines: &[&str], fetches: bool) -> StepFailed {
        let mut tail = Tail::default();
        lines.iter().for_each(|line| tail.push(line));
        let (what, place) = ("install curl".to_owned(), "images/x/image.toml:2".to_owned());
        StepFailed { what, place, status: Some(100), last_lines: tail.take(), fetches, network: true }
    }

    #[test]
    fn what_went_wrong_comes_before_what_was_fetched() {
        let said = failed(&["only \u{1b}[31mthis\u{1b}[0m"], true).to_string();
        assert_eq!(
            said,
            "install curl failed with exit status 100\n  asked for at images/x/image.toml:2\n  its last line:\n  | only this"
        );
        let noise = ["Get:9 http://archive.example/debian trixie/main amd64 a amd64 1 [1 kB]"; 100];
        let lines = [
            &["Err:1 http://archive.example/debian trixie/main amd64 curl", "  404  Not Found"],
            &noise[..],
            &["E: Unable to fetch"],
        ]
        .concat();
        let said = failed(&lines, true).to_string();
        let (why, others) = said.split_once("  its other 39 lines:\n").expect("both");
        assert!(
            why.ends_with(
                "it says:\n  | Err:1 http://archive.example/debian trixie/main amd64 curl\n  | E: Unable to fetch\n"
            ),
            "{said}"
        );
        assert!(others.lines().all(|line| line.starts_with("  | Get:9 ")), "{said}");
    }

    #[test]
    fn an_archive_out_of_reach_is_told_from_a_package_that_is_none() {
        let lines = ["E: Failed to fetch http://x/InRelease  Could not connect to 127.0.0.1:9"];
        assert!(error::unreachable(&failed(&lines, true).into_error()).is_some());
        assert!(error::unreachable(&failed(&lines, false).into_error()).is_none());
        assert!(error::unreachable(&failed(&["E: Unable to locate package x"], true).into_error()).is_none());
    }

    #[test]
    fn the_network_is_not_why_a_step_fails_that_reached_it_at_the_next_attempt() {
        let again = "WARNING: Retrying (Retry(total=4, connect=None)) after connection broken by 'NewConnectionError(\"Failed to \
                     establish a new connection: [Errno 111] Connection refused\")': /simple/x/";
        let none = [
            "ERROR: Could not find a version that satisfies the requirement x (from versions: none)",
            "ERROR: No matching distribution found for x",
        ];
        let apt = ["Ign:1 http://archive.example/debian trixie InRelease", "  Connection failed [IP: 192.0.2.1 80]"];
        let bus = "Failed to connect to bus: No such file or directory";
        let dpkg = "E: Sub-process /usr/bin/dpkg returned an error code (1)";
        for lines in [
            &[again, none[0], none[1]][..],
            &[apt[0], apt[1], "Get:1 http://archive.example/debian trixie InRelease", "E: some other reason"],
            &["Err:1 http://x", "  Connection failed", "E: Unable to locate package tpyo"],
            &["npm http fetch GET https://x/y attempt 1 failed with ECONNRESET", "npm error code E404"],
            &["npm ERR! code ERESOLVE", "npm ERR! ERESOLVE could not resolve after ECONNRESET"],
            &[bus, "dpkg: error processing package x (--configure):", dpkg],
        ] {
            let failed = failed(lines, true);
            assert!(!failed.to_string().contains("hint: the network"), "{failed}");
            assert!(error::unreachable(&failed.into_error()).is_none(), "{lines:?}");
        }
        let last = again.replace("total=4", "total=0");
        for lines in [
            &[again, &last, none[0], none[1]][..],
            &[apt[0], apt[1], "Err:1 http://archive.example/debian trixie InRelease", apt[1]],
            &["npm error code ECONNREFUSED", "npm error A complete log of this run can be found in: /root/.npm"],
            &[
                "WARNING: fetching http://x: could not connect to server (check repositories file)",
                "ERROR: unable to select",
            ],
        ] {
            let failed = failed(lines, true);
            assert!(failed.to_string().contains("hint: the network"), "{failed}");
            assert!(error::unreachable(&failed.into_error()).is_some(), "{lines:?}");
        }
        let without = StepFailed { network: false, ..failed(&["wget: bad address 'archive.example'"], false) };
        assert!(without.to_string().contains("hint: this step has no network"), "{without}");
        // A command of the spec may go on after a package manager has failed.
        let said = failed(&["curl: (7) Failed to connect to x", "E: Unable to locate package x"], false).to_string();
        assert!(said.contains("hint: the network"), "{said}");
    }
}
