//! Running the outside programs that write filesystems: finding them, feeding them, and saying what they said.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::interrupt;

/// Lines of a failing program's standard error that are worth showing.
const STDERR_LINES: usize = 12;
/// A line longer than this is cut: some programs print whole progress bars in one.
const STDERR_LINE_BYTES: usize = 2048;

/// A program of the host, and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostProgram {
    pub name: &'static str,
    pub package: &'static str,
}

/// Something that a piece of work needs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Debian's package.
    pub package: &'static str,
    /// Programs on PATH, or absolute paths: any one of them meets the requirement.
    pub any_of: &'static [&'static str],
    /// What it is for, as in "to make Debian bases"; empty where the program's name says it.
    pub purpose: &'static str,
}

/// Requirements that this host does not meet. Says how to get them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this host lacks {}\nhint: {} (or run again with --setup)", listed(.0), install_command(.0))]
pub struct Missing(pub Vec<Lacked>);

/// One thing that a host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacked {
    pub package: &'static str,
    names: String,
    purpose: &'static str,
}

impl HostProgram {
    /// Where the program is: in PATH, or in the folders of the administrator's programs.
    pub fn find(self) -> Option<PathBuf> {
        find(self.name)
    }

    /// A command for the program, in a plain locale and without the variables that change what filesystem programs
    /// write, which is killed when the thread that starts it ends. A missing program is an error that names its package.
    pub fn command(self) -> Result<Command, Missing> {
        let path = self.find().ok_or_else(|| self.missing())?;
        let mut command = Command::new(path);
        interrupt::die_with_parent(&mut command);
        command.env("LC_ALL", "C");
        for variable in
            ["SOURCE_DATE_EPOCH", "E2FSPROGS_FAKE_TIME", "MKE2FS_CONFIG", "MKE2FS_SYNC", "E2FSPROGS_LIBMAGIC_SUPPRESS"]
        {
            command.env_remove(variable);
        }
        Ok(command)
    }

    /// The error that says that the program is missing.
    pub fn missing(self) -> Missing {
        Missing(vec![Lacked { package: self.package, names: self.name.to_owned(), purpose: "" }])
    }
}

impl Requirement {
    /// Where what meets the requirement stands.
    pub fn met_by(&self) -> Option<PathBuf> {
        self.any_of.iter().find_map(|name| find(name))
    }

    /// The requirement as one that is not met.
    pub fn lacked(&self) -> Lacked {
        Lacked { package: self.package, names: self.any_of.join(" or "), purpose: self.purpose }
    }
}

/// The command by which a person installs what is missing.
pub fn install_command(lacked: &[Lacked]) -> String {
    let packages: Vec<&str> = lacked.iter().map(|lacked| lacked.package).collect();
    format!("sudo apt-get install --no-install-recommends {}", packages.join(" "))
}

fn listed(lacked: &[Lacked]) -> String {
    let purpose = |lacked: &Lacked| match lacked.purpose {
        "" => String::new(),
        purpose => format!(" (to {purpose})"),
    };
    let words: Vec<String> = lacked.iter().map(|lacked| format!("{}{}", lacked.names, purpose(lacked))).collect();
    words.join(", ")
}

/// Where a program stands: on PATH, or in the folders of the administrator's programs, which users without root often
/// lack there. An absolute path is looked up as it is.
pub fn find(program: &str) -> Option<PathBuf> {
    if program.starts_with('/') {
        return Some(PathBuf::from(program)).filter(|path| path.exists());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Runs a command to its end and answers its standard output. Another exit status than 0, or than one of `accepted`,
/// is an error with the last lines of its standard error.
pub fn run(command: &mut Command, accepted: &[i32]) -> Result<Vec<u8>> {
    feed(command, accepted, |_| Ok(()))
}

/// As [`run`], with `write` providing the standard input. Where the program dies early, its own words are the error,
/// not the broken pipe.
pub fn feed(
    command: &mut Command,
    accepted: &[i32],
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<Vec<u8>> {
    let name = name_of(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut input = child.stdin.take().expect("was asked for");
    let mut output = child.stdout.take().expect("was asked for");
    let errors = child.stderr.take().expect("was asked for");

    let (written, said, tail) = thread::scope(|scope| {
        let said = scope.spawn(move || {
            let mut bytes = Vec::new();
            output.read_to_end(&mut bytes).map(|_| bytes)
        });
        let tail = scope.spawn(move || last_lines(errors));
        let written = write(&mut input);
        drop(input);
        (written, said.join().expect("reading does not panic"), tail.join().expect("reading does not panic"))
    });
    let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;

    let accept = status.success() || status.code().is_some_and(|code| accepted.contains(&code));
    match written {
        Err(error) if !is_broken_pipe(&error) => Err(error.context(format!("cannot feed {name}"))),
        Err(error) if accept => Err(error.context(format!("{name} closed its input early{}", indent(&tail)))),
        _ if !accept => bail!("{name} failed with {}{}", describe(status), indent(&tail)),
        _ => said.with_context(|| format!("cannot read what {name} says")),
    }
}

fn name_of(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    program.file_name().unwrap_or(OsStr::new("program")).to_string_lossy().into_owned()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>()).any(|io| io.kind() == io::ErrorKind::BrokenPipe)
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".into(),
    }
}

fn indent(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}

fn last_lines(errors: ChildStderr) -> Vec<String> {
    let mut tail = VecDeque::with_capacity(STDERR_LINES);
    let mut reader = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(STDERR_LINE_BYTES as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return tail.into(),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line);
        // Of a line that was drawn over, the last state is what was said.
        let text = text.trim_end().rsplit('\r').next().unwrap_or_default();
        if !text.is_empty() {
            if tail.len() == STDERR_LINES {
                tail.pop_front();
            }
            tail.push_back(text.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = HostProgram { name: "sh", package: "dash" }.command().unwrap();
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_failing_program_is_quoted_and_not_its_broken_pipe() {
        let error = feed(&mut shell("echo first >&2; echo why >&2; exit 3"), &[], |input| {
            loop {
                input.write_all(&[0; 65536])?;
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "sh failed with exit status 3\n  first\n  why");
    }

    #[test]
    fn a_program_that_stops_reading_has_not_succeeded() {
        let error = feed(&mut shell("exit 0"), &[], |input| {
            loop {
                input.write_all(&[0; 65536])?;
            }
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "sh closed its input early");
    }

    #[test]
    fn input_and_output_pass_each_other() {
        let output = feed(&mut shell("cat"), &[], |input| Ok(input.write_all(&vec![7; 1 << 20])?)).unwrap();
        assert_eq!(output.len(), 1 << 20);
        assert!(run(&mut shell("exit 1"), &[1]).is_ok());
    }

    #[test]
    fn what_is_missing_is_named_with_the_command_that_brings_it() {
        const MISSING: Requirement = Requirement {
            package: "no-such-package",
            any_of: &["no-such-program", "/no/such/file"],
            purpose: "show an error",
        };
        assert_eq!(MISSING.met_by(), None);
        assert_eq!(
            Missing(vec![MISSING.lacked()]).to_string(),
            "this host lacks no-such-program or /no/such/file (to show an error)\n\
             hint: sudo apt-get install --no-install-recommends no-such-package (or run again with --setup)"
        );
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = HostProgram { name: "no-such-mkfs", package: "mkfs-tools" }.command().unwrap_err();
        assert_eq!(
            error.to_string(),
            "this host lacks no-such-mkfs\n\
             hint: sudo apt-get install --no-install-recommends mkfs-tools (or run again with --setup)"
        );
    }
}
