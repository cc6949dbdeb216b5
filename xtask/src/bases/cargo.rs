//! `[[binary]]`: programs of Cargo packages, built for an image's platform and linked statically where the target allows,
//! so that they run on any root.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;
use snug_process::{Child, child};
use snug_rootfs::platform::Platform;
use snug_spec::ImageSpec;
use snug_spec::model::{BinarySpec, FileSource, FileSpec, Located, SourcePath};

use crate::report::progress::{Progress, Stage};
use crate::steps::LAST_LINES;
use crate::workspace::Workspace;

/// C libraries to link, best first: musl is always static, glibc when told so.
const C_LIBRARIES: [&str; 2] = ["musl", "gnu"];

/// Variables of the caller's cargo that still hold for the one started here: where it keeps things and how it reaches the
/// network. All others describe this tool's own build and would change that of the program.
const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];

/// How to come by the programs of a spec.
#[derive(Clone, Copy)]
pub enum Binaries<'a> {
    /// Has cargo build them, which is quick where nothing changed.
    Build(&'a Workspace, &'a Progress),
    /// Takes what an earlier build left, for plans that only tell; what is not there is left out.
    AsBuilt(&'a Workspace),
}

impl Binaries<'_> {
    /// The programs of `spec` for `platform`, as files to be placed in the tree.
    pub fn files(&self, spec: &ImageSpec, platform: Platform) -> Result<Vec<Located<FileSpec>>> {
        let mut files = Vec::new();
        for binary in &spec.binaries {
            let path = self
                .path(binary, platform)
                .with_context(|| format!("{}:{}: `[[binary]]`", spec.document.path.display(), binary.line))?;
            files.extend(path.map(|path| as_file(binary, path)));
        }
        Ok(files)
    }

    fn path(&self, binary: &Located<BinarySpec>, platform: Platform) -> Result<Option<PathBuf>> {
        let (Binaries::Build(workspace, _) | Binaries::AsBuilt(workspace)) = self;
        let place = Place::new(binary, workspace);
        match self {
            Binaries::Build(_, progress) => {
                let stage = progress.stage(format!("cargo build {} for {platform}", binary.bin));
                let program = place.build(binary, platform, &stage)?;
                stage.finish("");
                Ok(Some(program))
            }
            Binaries::AsBuilt(_) => Ok(C_LIBRARIES
                .iter()
                .map(|library| place.target.join(triple(platform, library)).join("release").join(&binary.bin))
                .find(|path| path.is_file())),
        }
    }
}

/// A program as a file of the spec: named in fingerprints by what it is, and not by where it was built.
fn as_file(binary: &Located<BinarySpec>, path: PathBuf) -> Located<FileSpec> {
    let written = format!("{}:{}", binary.package, binary.bin);
    Located {
        value: FileSpec {
            source: FileSource::From(SourcePath { written, path }),
            to: binary.to.clone(),
            mode: Some(binary.mode),
            owner: binary.owner.clone(),
            xattrs: Default::default(),
            capabilities: None,
        },
        line: binary.line,
        column: binary.column,
        span: binary.span.clone(),
    }
}

/// Where cargo works.
struct Place {
    folder: PathBuf,
    /// A target folder apart: other flags than those of the workspace's own builds would make both build anew each time.
    target: PathBuf,
}

impl Place {
    fn new(binary: &BinarySpec, workspace: &Workspace) -> Self {
        let target = workspace.target.join("binaries");
        match &binary.manifest_path {
            None => Place { folder: workspace.root.clone(), target },
            Some(manifest) => Place {
                folder: manifest.path.parent().unwrap_or(Path::new("/")).to_path_buf(),
                target: target.join(&binary.package),
            },
        }
    }

    fn build(&self, binary: &BinarySpec, platform: Platform, stage: &Stage) -> Result<PathBuf> {
        let target = target(platform)?;
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        scrub(&mut command);
        command.current_dir(&self.folder);
        command.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
        command.args(["--package", &binary.package, "--bin", &binary.bin, "--target", &target]);
        command.arg("--target-dir").arg(&self.target);
        if let Some(manifest) = &binary.manifest_path {
            command.arg("--manifest-path").arg(&manifest.path);
        }
        if !binary.features.is_empty() {
            command.args(["--features", &binary.features.join(",")]);
        }
        // For this target alone: given to all, they would reach build scripts and procedural macros, which cannot be
        // static.
        let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
        command.env(flags, "-C target-feature=+crt-static");
        let executable = run(command, binary, stage)?;
        executable.with_context(|| format!("cargo built no program `{}` in {}", binary.bin, binary.package))
    }
}

/// The best target of rustc's for `platform` whose standard library is installed.
fn target(platform: Platform) -> Result<String> {
    let installed = |target: &String| {
        let output = child::output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
        output.is_ok_and(|output| {
            output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
        })
    };
    C_LIBRARIES.iter().map(|library| triple(platform, library)).find(installed).with_context(|| {
        format!(
            "Rust's standard library for {platform} is not installed\nhint: rustup target add {}",
            triple(platform, C_LIBRARIES[0])
        )
    })
}

fn triple(platform: Platform, library: &str) -> String {
    format!("{}-unknown-linux-{library}", platform.machine())
}

/// Takes out of a command's environment what the cargo that runs this tool put there for the tool.
fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_cargo || text == "RUSTFLAGS" {
            command.env_remove(&name);
        }
    }
}

/// Runs cargo; what it says is shown, and the program that it names is the answer.
fn run(mut command: Command, binary: &BinarySpec, stage: &Stage) -> Result<Option<PathBuf>> {
    let mut cargo = Child::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let messages = BufReader::new(cargo.stdout.take().context("cargo has no output")?);
    let said = BufReader::new(cargo.stderr.take().context("cargo has no error output")?);
    let (executable, tail) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut executable = None;
            for message in Message::parse_stream(messages).map_while(Result::ok) {
                if let Message::CompilerArtifact(artifact) = message
                    && artifact.target.name == binary.bin
                    && let Some(path) = artifact.executable
                {
                    executable = Some(path.into_std_path_buf());
                }
            }
            executable
        });
        let mut tail = VecDeque::new();
        for line in said.lines().map_while(Result::ok) {
            stage.detail(&line);
            if tail.len() == LAST_LINES {
                tail.pop_front();
            }
            tail.push_back(line);
        }
        (reader.join().unwrap_or(None), tail)
    });
    let status = cargo.wait()?;
    if !status.success() {
        let shown: String = tail.iter().map(|line| format!("\n  | {line}")).collect();
        bail!("cargo cannot build {}:{} ({status}){shown}", binary.package, binary.bin);
    }
    Ok(executable)
}
