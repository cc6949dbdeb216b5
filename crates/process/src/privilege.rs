//! How this user runs what only root may do.

use nix::unistd::Uid;

use crate::path;

/// What raises privileges, where the host has it.
const SUDO: &str = "sudo";

/// How this user becomes root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// This is root.
    Already,
    /// By sudo.
    Sudo,
    /// Not from here: another account has to.
    OtherAccount,
}

impl Root {
    /// Returns how the user of this process becomes root.
    pub fn here() -> Self {
        match (Uid::effective().is_root(), path::find(SUDO)) {
            (true, _) => Root::Already,
            (false, Some(_)) => Root::Sudo,
            (false, None) => Root::OtherAccount,
        }
    }

    /// Returns a command as it is to be typed, for messages.
    fn words(self, command: &str) -> String {
        match self {
            Root::Already => command.to_owned(),
            Root::Sudo => format!("{SUDO} {command}"),
            Root::OtherAccount => format!("as root: {command}"),
        }
    }
}

/// Returns a command that needs root as this user has to type it: `sudo apt-get …`, to root without the first word.
pub fn as_root(command: &str) -> String {
    Root::here().words(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sudo_is_named_to_whom_it_helps() {
        let said = [Root::Already, Root::Sudo, Root::OtherAccount].map(|root| root.words("apt-get install x"));
        assert_eq!(said, ["apt-get install x", "sudo apt-get install x", "as root: apt-get install x"]);
        assert_eq!(Root::here() == Root::Already, Uid::effective().is_root());
    }
}
