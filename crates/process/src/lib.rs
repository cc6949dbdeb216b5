//! Programs of the host, and the processes started from them.
//!
//! [`program`] finds a program and says which Debian package brings one that is missing. [`child`] starts it: a [`Child`]
//! dies with its parent, is killed when a signal ends the tool, and is killed and waited for when it is dropped, so that no
//! process is ever forgotten. [`interrupt`] is the handler of signals that ends them. [`terminal`] keeps the
//! settings of a terminal that they change.
//!
//! ```
//! use snug_process::child;
//! use snug_process::program::HostProgram;
//!
//! const CAT: HostProgram = HostProgram { name: "cat", package: "coreutils" };
//!
//! let said = child::feed(&mut CAT.command()?, &[], |input| Ok(input.write_all(b"through a pipe")?))?;
//! assert_eq!(said, b"through a pipe");
//!
//! let missing = HostProgram { name: "no-such-mkfs", package: "mkfs-tools" }.command().unwrap_err();
//! assert!(missing.to_string().starts_with("this host lacks no-such-mkfs\nhint: "));
//! # anyhow::Ok(())
//! ```

#![warn(missing_docs)]

pub mod child;
pub mod interrupt;
pub mod lines;
mod path;
pub mod privilege;
pub mod program;
pub mod terminal;

pub use child::Child;
