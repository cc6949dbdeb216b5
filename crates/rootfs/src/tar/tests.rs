//! The reader and the writer against each other.

use std::io::Write as _;

use super::*;
use crate::tree::{Body, BodySource, DataRange, Inode, Kind, RootTree, Timestamp, TreePath};

mod hostile;
mod identity;
mod names;
mod oracles;
