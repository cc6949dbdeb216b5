//! Parses what a builder prints: which step runs, the step's own output, and how it failed.

use std::io::{BufReader, PipeReader};

use anyhow::Error;
use snug_process::lines::read_line;

use super::dockerfile::step_in;
use crate::error::quoted;
use crate::plan::{BuildPlan, EngineKind};
use crate::report::escapes::plain;
use crate::report::progress::{Progress, Stage};
use crate::steps::mask::{Mask, MaskedLines};
use crate::steps::{StepFailed, Tail};

/// What precedes the number of an exit status in errors of the classic builder, buildah and BuildKit.
const STATUS: [&str; 3] = ["returned a non-zero code: ", "exit status ", "exit code: "];

/// How lines begin that builders add to the output of steps.
const CHATTER: [&str; 6] = [
    " ---> ",
    "--> ",
    "Removing intermediate container ",
    "Sending build context ",
    "COMMIT ",
    "subprocess exited with status ",
];

/// Bytes of a builder's error that are kept: it repeats the step, which is a few lines.
const VERDICT_MAX: usize = 64 << 10;

/// The builder that prints, and so the format of its lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Builder {
    /// docker's classic builder, or buildah within podman: output of steps, between a few lines of the builder's.
    Classic,
    /// Every line begins with the number of its step and the time: `#7 0.123 text`.
    BuildKit,
}

/// Shows a build as progress, step by step.
pub(super) struct Watch<'a> {
    plan: &'a BuildPlan,
    engine: EngineKind,
    builder: Builder,
    mask: &'a Mask,
    /// The output of the running step.
    output: MaskedLines<'a>,
    progress: &'a Progress,
    step: Option<usize>,
    stage: Option<Stage>,
    tail: Tail,
    /// The builder's error, after which it repeats the step, line breaks included.
    verdict: Option<String>,
}

/// A line of a builder.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    /// The builder starts this step of the plan.
    Step(usize),
    /// A line of the builder's own.
    Chatter,
    /// The builder's error.
    Verdict(&'a str),
    Output(&'a str),
}

impl<'a> Watch<'a> {
    /// All output is masked.
    pub(super) fn new(
        plan: &'a BuildPlan,
        engine: EngineKind,
        builder: Builder,
        mask: &'a Mask,
        progress: &'a Progress,
    ) -> Self {
        let (tail, output) = (Tail::default(), mask.over_lines());
        Watch { plan, engine, builder, mask, output, progress, step: None, stage: None, tail, verdict: None }
    }

    /// Reads to the end of the output.
    pub(super) fn follow(&mut self, output: PipeReader) {
        let mut lines = BufReader::new(output);
        let mut line = Vec::new();
        while read_line(&mut lines, &mut line).is_ok_and(|found| found) {
            let text = without_colours(&String::from_utf8_lossy(&line));
            let line_of = match self.builder {
                Builder::Classic => parse,
                Builder::BuildKit => parse_buildkit,
            };
            match (line_of(text.trim_end()), &mut self.verdict) {
                (Line::Step(step), _) => self.begin(step),
                (Line::Verdict(text), verdict) => *verdict = Some(text.to_owned()),
                // What a step prints may look like a builder's error, and go on for ever.
                (Line::Output(text), Some(verdict)) if verdict.len() < VERDICT_MAX => verdict.extend(["\n", text]),
                (Line::Output(_), Some(_)) => {}
                (Line::Chatter, _) => {}
                (Line::Output(text), None) => {
                    // Escape sequences within a secret would keep it from being found.
                    let lines = self.output.push(&plain(text));
                    self.show(&lines);
                }
            }
        }
        self.end_output();
    }

    /// Shows what was held back of the running step's output.
    fn end_output(&mut self) {
        let lines = self.output.end();
        self.show(&lines);
    }

    fn show(&mut self, lines: &[String]) {
        for line in lines {
            self.tail.push(line);
            if let Some(stage) = &self.stage {
                stage.detail(line);
            }
        }
    }

    fn begin(&mut self, step: usize) {
        if self.step == Some(step) {
            return;
        }
        self.end_output();
        self.succeeded();
        let title = self.plan.steps.get(step).map(|step| step.describe()).unwrap_or_default();
        (self.step, self.stage) = (Some(step), Some(self.progress.stage(title)));
        self.tail.take();
        self.verdict = None;
    }

    /// Ends the progress of the running step.
    pub(super) fn succeeded(&mut self) {
        if let Some(stage) = self.stage.take() {
            stage.finish("");
        }
    }

    /// Returns the error of a failed build, in a step or before the first one. `said` is the builder's standard error.
    pub(super) fn failed(mut self, said: &str) -> Error {
        self.stage = None;
        let verdict = plain(&format!("{}\n{said}", self.verdict.unwrap_or_default()));
        let verdict = self.mask.text(verdict.trim());
        let mut last_lines = self.tail.take();
        let Some(step) = self.step.and_then(|step| self.plan.steps.get(step)) else {
            let said = format!("{}\n{verdict}", last_lines.join("\n"));
            return anyhow::anyhow!("{} build failed: {}", self.engine, quoted(&said));
        };
        let status = status_in(&verdict);
        if status.is_none() {
            last_lines.extend(verdict.lines().map(ToOwned::to_owned));
        }
        let fetches = step.action.fetches();
        StepFailed { what: step.describe(), place: step.place.clone(), status, last_lines, fetches, network: true }
            .into_error()
    }
}

fn parse(line: &str) -> Line<'_> {
    if let Some(number) = line.strip_prefix("Step ").or_else(|| line.strip_prefix("STEP "))
        && number.starts_with(|first: char| first.is_ascii_digit())
    {
        return step_in(line).map_or(Line::Chatter, Line::Step);
    }
    if CHATTER.iter().any(|start| line.starts_with(start)) {
        return Line::Chatter;
    }
    if line.starts_with("Error: building at STEP ") {
        return Line::Verdict(line);
    }
    Line::Output(line)
}

/// BuildKit's plain progress: `#7 [3/9] RUN …`, `#7 0.123 text`, `#7 ERROR: …`, and at the end, without a number, all of the
/// error once more.
fn parse_buildkit(line: &str) -> Line<'_> {
    let numbered = line.strip_prefix('#').and_then(|rest| rest.split_once(' '));
    let Some((_, rest)) = numbered.filter(|(number, _)| number.bytes().all(|byte| byte.is_ascii_digit())) else {
        return Line::Output(line);
    };
    if rest.starts_with('[') {
        return step_in(rest).map_or(Line::Chatter, Line::Step);
    }
    if rest.starts_with("ERROR: ") {
        return Line::Verdict(rest);
    }
    let (time, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_time = time.contains('.') && time.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    if is_time { Line::Output(text) } else { Line::Chatter }
}

/// Returns the exit status that a builder's error ends with.
fn status_in(verdict: &str) -> Option<i32> {
    let after = STATUS.iter().filter_map(|words| Some(verdict.rfind(words)? + words.len())).max()?;
    let digits: String = verdict[after..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// docker shows a step's standard error in red, terminal or not (ECMA-48, "select graphic rendition").
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let sequence = &rest[start + 2..];
        let end = sequence.find(|c: char| !(c.is_ascii_digit() || c == ';')).unwrap_or(sequence.len());
        rest = match sequence[end..].strip_prefix('m') {
            Some(rest) => rest,
            None => {
                plain.push_str("\u{1b}[");
                sequence
            }
        };
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builders_lines_are_told_from_the_steps_own() {
        assert_eq!(parse("Step 5/9 : RUN [\"/bin/sh\",\"-c\",\": step 2; unset\"]"), Line::Step(2));
        assert_eq!(parse("STEP 5/9: ADD files-1.tar /"), Line::Step(1));
        assert_eq!(parse("Step 1/9 : FROM localhost/snug:x-base"), Line::Chatter);
        assert_eq!(parse("Step by step we go"), Line::Output("Step by step we go"));
        assert_eq!(parse(" ---> Running in 13a38997df2d"), Line::Chatter);
        let verdict = "Error: building at STEP \"RUN …\": while running runtime: exit status 7";
        assert_eq!(parse(verdict), Line::Verdict(verdict));
        assert_eq!(parse("subprocess exited with status 7"), Line::Chatter);
        assert_eq!(parse("Error: no such thing"), Line::Output("Error: no such thing"));
    }

    #[test]
    fn buildkits_lines_are_told_apart_by_their_numbers() {
        let step = "#7 [3/9] RUN --mount=type=secret,id=token [\"/bin/sh\",\"-c\",\": step 2; unset\"]";
        assert_eq!(parse_buildkit(step), Line::Step(2));
        assert_eq!(parse_buildkit("#8 [4/9] ADD files-3.tar /"), Line::Step(3));
        assert_eq!(parse_buildkit("#1 [internal] load build definition from Dockerfile"), Line::Chatter);
        assert_eq!(parse_buildkit("#7 0.180 #9 [1/2] says the step"), Line::Output("#9 [1/2] says the step"));
        assert_eq!(parse_buildkit("#7 0.180"), Line::Output(""));
        for chatter in ["#7 DONE 0.2s", "#7 sha256:bbe4fd7c", "#2 transferring context: 2B done", "#4 CACHED"] {
            assert_eq!(parse_buildkit(chatter), Line::Chatter, "{chatter}");
        }
        let verdict = "ERROR: executor failed running [/bin/sh -c : step 2; exit 7]: exit code: 7";
        assert_eq!(parse_buildkit(&format!("#7 {verdict}")), Line::Verdict(verdict));
        assert_eq!(parse_buildkit("------"), Line::Output("------"));
    }

    #[test]
    fn the_status_is_found_in_every_builders_words() {
        assert_eq!(status_in("The command '/bin/sh -c exit status 3' returned a non-zero code: 7"), Some(7));
        assert_eq!(status_in("Error: building at STEP \"RUN [exit 5]\": exit status 9"), Some(9));
        assert_eq!(status_in("process \"/bin/sh -c x\" did not complete successfully: exit code: 127"), Some(127));
        assert_eq!(status_in("no space left on device"), None);
    }

    #[test]
    fn colours_go_and_brackets_stay() {
        assert_eq!(without_colours("\u{1b}[91mred\u{1b}[0m plain \u{1b}[2K["), "red plain \u{1b}[2K[");
    }
}
