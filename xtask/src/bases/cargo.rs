//! `[[binary]]`: programs of Cargo packages, built for an image's platform and linked statically where the target allows,
//! so that they run on any root.

use std::collections::VecDeque;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base16ct::lower::encode_string as hex;
use cargo_metadata::Message;
use sha2::{Digest, Sha256};
use snug_process::{Child, child};
use snug_rootfs::digest;
use snug_rootfs::platform::Platform;

use crate::atomic::open_lock;
use crate::error::Failure;
use crate::report::progress::{Progress, Stage};
use crate::steps::LAST_LINES;
use crate::workspace::Workspace;

/// C libraries to link, best first: musl is always static, glibc when told so.
const C_LIBRARIES: [&str; 2] = ["musl", "gnu"];

/// Variables of the caller's cargo that still hold for the one started here: where it keeps things and how it reaches the
/// network. All others describe this tool's own build and would change that of the program.
const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];

/// Hexadecimal digits that distinguish one set of features from another.
const NAME_DIGITS: usize = 16;

/// Hexadecimal digits of a SHA-256.
const DIGEST_DIGITS: usize = 64;

/// After this time no build makes an image of a program that has been built anew since.
const OUT_OF_USE: Duration = Duration::from_secs(24 * 3600);

/// A program of a Cargo package.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    pub package: &'a str,
    /// Name of the binary target.
    pub bin: &'a str,
    /// The `Cargo.toml` of the package where it is not in the workspace of this tool.
    pub manifest: Option<&'a Path>,
    pub features: &'a [String],
    pub platform: Platform,
}

/// Where programs of Cargo packages come from.
#[derive(Clone, Copy)]
pub enum Binaries<'a> {
    /// cargo builds them, which is quick where nothing changed.
    Build(&'a Workspace, &'a Progress),
    /// An earlier build left them; for plans that are only shown.
    AsBuilt(&'a Workspace),
}

impl Binaries<'_> {
    /// Returns the path of `program`; `None` where it is to be as built and no build left it.
    pub fn get(&self, program: &Program) -> Result<Option<PathBuf>> {
        let (Binaries::Build(workspace, _) | Binaries::AsBuilt(workspace)) = self;
        let place = Place::new(program, workspace);
        match self {
            Binaries::Build(_, progress) => {
                let stage = progress.stage(format!("cargo build {} for {}", program.bin, program.platform));
                let _lock = place.lock(|| progress.note("another run builds programs of this workspace; waiting"))?;
                let path = place.build(program, &stage)?;
                stage.finish("");
                Ok(Some(path))
            }
            Binaries::AsBuilt(_) => Ok(place.newest()),
        }
    }
}

/// The folders that cargo works in.
struct Place {
    folder: PathBuf,
    /// A target folder of its own: these builds have other flags than the workspace's, and would invalidate its artifacts.
    target: PathBuf,
    /// What was built of this program with these features, each under its digest: cargo has one place for a program, where the
    /// next build puts that of other features or of changed sources, while images are still to be made of this one.
    built: PathBuf,
}

impl Place {
    fn new(program: &Program, workspace: &Workspace) -> Self {
        let target = workspace.target.join("binaries");
        let Program { package, bin, manifest, features, platform } = program;
        let inputs = format!("{package} {bin} {manifest:?} {features:?} {platform}");
        let built = target.join("programs").join(format!("{bin}-{}", &hex(&Sha256::digest(inputs))[..NAME_DIGITS]));
        match manifest {
            None => Place { folder: workspace.root.clone(), target, built },
            Some(manifest) => Place {
                folder: manifest.parent().unwrap_or(Path::new("/")).to_path_buf(),
                target: target.join(package),
                built,
            },
        }
    }

    /// Locks the folder that cargo builds in, until the program is out of it.
    fn lock(&self, waiting: impl FnOnce()) -> Result<File> {
        fs::create_dir_all(&self.target).with_context(|| format!("cannot make {}", self.target.display()))?;
        let path = self.target.join("builds.lock");
        let lock = open_lock(&path)?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            waiting();
        }
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(lock)
    }

    /// Copies what cargo built to where no other build changes it.
    fn keep(&self, executable: &Path) -> Result<PathBuf> {
        fs::create_dir_all(&self.built).with_context(|| format!("cannot make {}", self.built.display()))?;
        // Also where it is there: its time says which was built last. The copy is hashed, which nobody writes to.
        let copy = tempfile::NamedTempFile::new_in(&self.built).context("cannot write the program")?;
        fs::copy(executable, copy.path()).context("cannot write the program")?;
        let digest = digest::of_file(copy.path(), &mut |_| {})
            .with_context(|| format!("cannot read {}", copy.path().display()))?;
        let place = self.built.join(hex(&digest));
        for (path, age) in self.ages() {
            if path != place && path != copy.path() && age > OUT_OF_USE {
                let _ = fs::remove_file(path);
            }
        }
        copy.persist(&place).with_context(|| format!("cannot rename to {}", place.display()))?;
        Ok(place)
    }

    /// Returns what was built last. A copy that is being made has no digest for a name.
    fn newest(&self) -> Option<PathBuf> {
        let is_digest = |path: &Path| {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            name.len() == DIGEST_DIGITS && name.iter().all(u8::is_ascii_hexdigit)
        };
        let kept = self.ages().into_iter().filter(|(path, _)| is_digest(path));
        kept.min_by_key(|(_, age)| *age).map(|(path, _)| path)
    }

    fn ages(&self) -> Vec<(PathBuf, Duration)> {
        let entries = fs::read_dir(&self.built).into_iter().flatten().flatten();
        let age = |entry: &fs::DirEntry| entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        entries.filter_map(|entry| Some((entry.path(), age(&entry)?))).collect()
    }

    fn build(&self, program: &Program, stage: &Stage) -> Result<PathBuf> {
        let target = target(program.platform)?;
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        scrub(&mut command);
        command.current_dir(&self.folder);
        command.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
        command.args(["--package", program.package, "--bin", program.bin, "--target", &target]);
        command.arg("--target-dir").arg(&self.target);
        if let Some(manifest) = program.manifest {
            command.arg("--manifest-path").arg(manifest);
        }
        if !program.features.is_empty() {
            command.args(["--features", &program.features.join(",")]);
        }
        // For this target alone: given to all, they would reach build scripts and procedural macros, which cannot be
        // static.
        let flags = format!("CARGO_TARGET_{}_RUSTFLAGS", target.to_uppercase().replace('-', "_"));
        command.env(flags, "-C target-feature=+crt-static");
        let executable = run(command, program, stage)?;
        let executable =
            executable.with_context(|| format!("cargo built no program `{}` in {}", program.bin, program.package))?;
        self.keep(&executable)
    }
}

/// Returns the preferred rustc target for `platform` whose standard library is installed.
fn target(platform: Platform) -> Result<String> {
    let installed = |target: &String| {
        let output = child::output(Command::new("rustc").args(["--print", "target-libdir", "--target", target]));
        output.is_ok_and(|output| {
            output.status.success() && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir()
        })
    };
    C_LIBRARIES.iter().map(|library| triple(platform, library)).find(installed).ok_or_else(|| {
        let hint = format!("rustup target add {}", triple(platform, C_LIBRARIES[0]));
        let said = format!("Rust's standard library for {platform} is not installed\nhint: {hint}");
        Failure::Unsupported(said).into()
    })
}

fn triple(platform: Platform, library: &str) -> String {
    format!("{}-unknown-linux-{library}", platform.machine())
}

/// Removes from a command's environment what the cargo that runs this tool set for the tool.
fn scrub(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO_") && !KEPT.iter().any(|kept| text.starts_with(kept));
        if of_cargo || text == "RUSTFLAGS" {
            command.env_remove(&name);
        }
    }
}

/// Runs cargo and shows its messages. Returns the path of the program that it built.
fn run(mut command: Command, program: &Program, stage: &Stage) -> Result<Option<PathBuf>> {
    let mut cargo = Child::start(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let messages = BufReader::new(cargo.stdout.take().context("cargo has no output")?);
    let said = BufReader::new(cargo.stderr.take().context("cargo has no error output")?);
    let (executable, tail) = std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut executable = None;
            for message in Message::parse_stream(messages).map_while(Result::ok) {
                if let Message::CompilerArtifact(artifact) = message
                    && artifact.target.name == program.bin
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
        bail!("cargo cannot build {}:{} ({status}){shown}", program.package, program.bin);
    }
    Ok(executable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_built_last_is_never_a_copy_that_is_being_made() {
        let folder = tempfile::tempdir().unwrap();
        let built = folder.path().join("built");
        let place = Place { folder: folder.path().into(), target: folder.path().into(), built: built.clone() };
        assert_eq!(place.newest(), None);
        let program = folder.path().join("program");
        fs::write(&program, "a program").unwrap();
        let kept = place.keep(&program).unwrap();
        fs::write(built.join(".tmpAbCdEf"), "a prog").unwrap();
        // The younger of the two.
        let earlier = std::time::SystemTime::now() - Duration::from_secs(3600);
        File::options().write(true).open(&kept).and_then(|file| file.set_modified(earlier)).unwrap();
        assert_eq!(place.newest(), Some(kept));
    }
}
