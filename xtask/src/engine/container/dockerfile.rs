//! A plan's steps as a Dockerfile, the same for docker and podman.

use std::fmt::Write;

use serde_json::json;
use snug_sandbox::{CA_BUNDLE, POLICY_PATH, SECRETS};

use crate::engine::environment::{self, Given};
use crate::engine::install::install_command;
use crate::plan::{BuildPlan, StepAction};

/// Names in the build context.
pub(super) const CERTIFICATES: &str = "ca.crt";
pub(super) const POLICY: &str = "policy-rc.d";

/// What a build needs beside its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extras {
    /// The host's certificates are in the context.
    pub trust: bool,
    /// So is the `policy-rc.d` that keeps Debian's packages from starting services.
    pub quiet: bool,
}

/// Returns the name of the tar of a step's files in the context.
pub(super) fn files_of(step: usize) -> String {
    format!("files-{step}.tar")
}

/// Returns the first command of a step's script: builders echo it, and [`step_in`] recognises the step by it.
fn mark(step: usize) -> String {
    format!(": step {step};")
}

/// Returns the step of the plan that a builder's line announces.
pub(super) fn step_in(line: &str) -> Option<usize> {
    let number = |after: &str, before: char| -> Option<usize> {
        let rest = &line[line.find(after)? + after.len()..];
        rest[..rest.find(before)?].parse().ok()
    };
    number(": step ", ';').or_else(|| number("ADD files-", '.'))
}

/// Gives a step the environment of every engine, and no more: engines add variables of their own, and this shell would
/// count as one around the step's. The arguments are `NAME=VALUE` words, `--`, and the step's command. The shell's own name
/// is that of the base, by which BuildKit's records of the build are found again.
const ENVIRONMENT: &str =
    "unset HOSTNAME container SHLVL; until [ \"$1\" = -- ]; do export \"$1\"; shift; done; shift; exec \"$@\"";

/// Writes the Dockerfile of `plan`, on an image of its base's tree.
///
/// Certificates lie below /run, as with the builtin engine: all there is left behind when the tree is normalised.
pub(super) fn write(plan: &BuildPlan, base: &str, extras: Extras) -> String {
    let mut text = format!("# {}: {}\nFROM {base}\n", plan.name, plan.base.describe());
    if extras.trust {
        line(&mut text, format_args!("COPY {CERTIFICATES} {CA_BUNDLE}"));
    }
    if extras.quiet {
        line(&mut text, format_args!("COPY {POLICY} /{POLICY_PATH}"));
    }
    for (index, step) in plan.steps.iter().enumerate() {
        line(&mut text, format_args!("\n# {}", one_line(&format!("{}: {}", step.place, step.describe()))));
        let (command, caches) = match &step.action {
            StepAction::Files(_) => {
                line(&mut text, format_args!("ADD {} /", files_of(index)));
                continue;
            }
            StepAction::Install { manager, packages } => (install_command(*manager, packages), true),
            StepAction::Shell { command, .. } => (["/bin/sh", "-e", "-c", command].map(Into::into).into(), false),
        };
        let mut words = vec!["/bin/sh".to_owned(), "-c".into(), format!("{} {ENVIRONMENT}", mark(index)), base.into()];
        let environment = environment::of_step(&plan.environment, Given { trust: extras.trust, caches, network: true });
        // Proxies are the daemon's own or come as build arguments, never in a file.
        let own = environment.into_iter().filter(|(name, _)| {
            plan.environment.iter().any(|(given, _)| given == name)
                || !crate::steps::environment::PASSED.contains(&name.as_str())
        });
        words.extend(own.map(|(name, value)| format!("{name}={value}")));
        words.push("--".into());
        words.extend(command);
        let secrets: String = plan
            .secrets
            .iter()
            .map(|secret| format!("--mount=type=secret,id={0},target={SECRETS}/{0} ", secret.id))
            .collect();
        line(&mut text, format_args!("RUN {secrets}{}", json!(words)));
    }
    text
}

fn line(text: &mut String, line: std::fmt::Arguments) {
    writeln!(text, "{line}").expect("a string takes all that is written");
}

/// A comment ends with its line.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{PackageManager, PlannedBase, Step};
    use snug_rootfs::platform::Platform;

    #[test]
    fn steps_are_found_again_in_what_the_builders_echo() {
        let step = |action| Step { action, place: "images/x/image.toml:7".into() };
        let plan = BuildPlan {
            name: "x".into(),
            base: PlannedBase::Tar { path: "base.tar".into(), sha256: "00".into(), stamp: Default::default() },
            base_place: "images/x/image.toml:1".into(),
            system: PackageManager::Apt,
            steps: vec![
                step(StepAction::Install { manager: PackageManager::Npm, packages: vec!["openclaw@1".into()] }),
                step(StepAction::Files(Vec::new())),
                step(StepAction::Shell { command: "echo one\necho \"two\"".into(), network: true }),
            ],
            environment: vec![("GREETING".into(), "a \"b\"\n$c".into())],
            platform: Platform::Amd64,
            files: Vec::new(),
            devices: Vec::new(),
            exclude: Vec::new(),
            hostname: None,
            secrets: Vec::new(),
            inputs: Default::default(),
            fingerprint: String::new(),
            layers: Vec::new(),
        };
        let text = write(&plan, "snug:base", Extras { trust: true, quiet: true });
        insta::assert_snapshot!(text);
        let steps: Vec<usize> = text.lines().filter_map(step_in).collect();
        assert_eq!(steps, [0, 1, 2]);
        assert_eq!(step_in("Step 4/7 : RUN [\"/bin/sh\",\"-c\",\": step 12; unset\"]"), Some(12));
        assert_eq!(step_in("#8 [4/7] ADD files-3.tar /"), Some(3));
        assert_eq!(step_in("Step 1/7 : FROM snug:base"), None);
    }
}
