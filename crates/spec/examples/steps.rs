//! Reads the spec of an image and prints its steps, or its errors.
//!
//! ```text
//! cargo run -p snug-spec --example steps -- images/openclaw
//! ```

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: steps FOLDER, where FOLDER/{} is a spec", snug_spec::SPEC_FILE);
        return ExitCode::from(2);
    };
    // The name of an image is that of its folder, which `.` does not tell.
    let folder = folder.canonicalize().unwrap_or(folder);
    let spec = match snug_spec::read_image(&folder) {
        Ok(spec) => spec,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::FAILURE;
        }
    };
    println!("{}, from {:?}", spec.name, spec.base.value);
    for package in &spec.packages.system {
        println!("line {}: install {}", package.line, package.value);
    }
    for file in &spec.files {
        println!("line {}: file {}", file.line, file.to);
    }
    for step in &spec.run {
        println!("line {}: {}", step.line, step.shell.lines().next().unwrap_or_default());
    }
    ExitCode::SUCCESS
}
