//! Programs of the host: where they are, and how to get one that is missing.

use std::path::PathBuf;
use std::process::Command;

pub use crate::path::find;
use crate::privilege::as_root;

/// Variables that change what the programs of filesystems write.
const SCRUBBED: [&str; 5] =
    ["SOURCE_DATE_EPOCH", "E2FSPROGS_FAKE_TIME", "MKE2FS_CONFIG", "MKE2FS_SYNC", "E2FSPROGS_LIBMAGIC_SUPPRESS"];

/// A program of the host, and the Debian package that brings it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostProgram {
    /// Its name on PATH.
    pub name: &'static str,
    /// Debian's package.
    pub package: &'static str,
}

/// Something that a task requires of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Requirement {
    /// Debian's package.
    pub package: &'static str,
    /// Programs on PATH, or absolute paths: any one of them meets the requirement.
    pub any_of: &'static [&'static str],
    /// What it is for, as in "to make Debian bases"; empty where the program's name says it.
    pub purpose: &'static str,
}

/// The error for what a host lacks, with the command that installs it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this host lacks {}\nhint: {}{}", listed(.lacked), install_command(.lacked), or(*.alternative))]
pub struct Missing {
    /// What is missing; never empty.
    pub lacked: Vec<Lacked>,
    /// What else helps, as in "or use another engine".
    pub alternative: Option<&'static str>,
}

/// One thing that a host lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacked {
    /// Debian's package.
    pub package: &'static str,
    names: String,
    purpose: &'static str,
}

impl HostProgram {
    /// Returns the path of the program, as [`find`] does.
    pub fn find(self) -> Option<PathBuf> {
        find(self.name)
    }

    /// Returns a command for the program, in the C locale and without the variables that change what filesystem programs
    /// write. [`Child::start`](crate::Child::start) and the functions of [`child`](crate::child) run it.
    pub fn command(self) -> Result<Command, Missing> {
        let mut command = Command::new(self.find().ok_or_else(|| self.missing())?);
        command.env("LC_ALL", "C");
        for variable in SCRUBBED {
            command.env_remove(variable);
        }
        Ok(command)
    }

    /// Returns the error for a host without the program.
    pub fn missing(self) -> Missing {
        let lacked = Lacked { package: self.package, names: self.name.to_owned(), purpose: "" };
        Missing { lacked: vec![lacked], alternative: None }
    }
}

impl Requirement {
    /// Returns the path of the first program or file that meets the requirement.
    pub fn met_by(&self) -> Option<PathBuf> {
        self.any_of.iter().find_map(|name| find(name))
    }

    /// Returns the requirement as one that is not met.
    pub fn lacked(&self) -> Lacked {
        Lacked { package: self.package, names: self.any_of.join(" or "), purpose: self.purpose }
    }
}

impl Missing {
    /// Adds what else helps, as in "use another engine".
    pub fn or(self, alternative: &'static str) -> Self {
        Missing { alternative: Some(alternative), ..self }
    }

    /// Returns the error and its hint in one line, for tables and notes.
    pub fn in_a_line(&self) -> String {
        format!("this host lacks {} ({})", listed(&self.lacked), install_command(&self.lacked))
    }
}

/// Returns the command that installs what is missing on Debian and Ubuntu.
pub fn install_command(lacked: &[Lacked]) -> String {
    let packages: Vec<&str> = lacked.iter().map(|lacked| lacked.package).collect();
    as_root(&format!("apt-get install --no-install-recommends {}", packages.join(" ")))
}

fn listed(lacked: &[Lacked]) -> String {
    let purpose = |lacked: &Lacked| match lacked.purpose {
        "" => String::new(),
        purpose => format!(" (to {purpose})"),
    };
    let words: Vec<String> = lacked.iter().map(|lacked| format!("{}{}", lacked.names, purpose(lacked))).collect();
    words.join(", ")
}

fn or(alternative: Option<&str>) -> String {
    alternative.map(|alternative| format!(" (or {alternative})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_brings_it() {
        const MISSING: Requirement = Requirement {
            package: "no-such-package",
            any_of: &["no-such-program", "/no/such/file"],
            purpose: "show an error",
        };
        assert_eq!(MISSING.met_by(), None);
        let missing = Missing { lacked: vec![MISSING.lacked()], alternative: None };
        let install = as_root("apt-get install --no-install-recommends no-such-package");
        let said = format!("this host lacks no-such-program or /no/such/file (to show an error)\nhint: {install}");
        assert_eq!(missing.to_string(), said);
        assert_eq!(missing.in_a_line(), said.replace("\nhint: ", " (") + ")");
        assert_eq!(missing.or("use another engine").to_string(), format!("{said} (or use another engine)"));
        assert!(find("sh").is_some_and(|path| path.ends_with("sh")));
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = HostProgram { name: "no-such-mkfs", package: "mkfs-tools" }.command().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("this host lacks no-such-mkfs\nhint: {}", install_command(&[error.lacked[0].clone()]))
        );
    }
}
