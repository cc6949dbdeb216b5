//! Runs a command on the root filesystem of a tar file, in namespaces and without root.
//!
//! ```text
//! cargo run -p snug-sandbox --example run_in_root -- root.tar /bin/sh -c 'id; ls /'
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use snug_sandbox::{Action, Enter, Event, Job, Program};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    // The sandbox starts this program again to work inside the namespaces.
    if arguments.get(1).is_some_and(|verb| verb == snug_sandbox::VERB) {
        return snug_sandbox::child_main(&arguments[2..]);
    }
    let [_, tar, command @ ..] = &arguments[..] else { return usage() };
    if command.is_empty() {
        return usage();
    }
    match run(tar.into(), command.to_vec()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: run ROOT.tar COMMAND [ARGUMENT]...");
    ExitCode::from(2)
}

fn run(tar: PathBuf, command: Vec<String>) -> Result<()> {
    snug_sandbox::probe()?;
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    let enter = Enter {
        root: root.clone(),
        hostname: "example".into(),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        ca_bundle: None,
        caches: Vec::new(),
        secrets: Vec::new(),
    };
    let environment = vec![("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into())];
    let program = Program { command, environment, directory: None, network: true };
    let actions = vec![Action::materialise(tar, root.clone()), Action::Enter(enter), Action::Run(program)];
    let done = snug_sandbox::run_silent(&Job { actions }, |event| {
        if let Event::Line { text, .. } = event {
            println!("{text}");
        }
    });
    // The files belong to ids that only the namespace may touch.
    snug_sandbox::remove_folder(&root)?;
    done
}
