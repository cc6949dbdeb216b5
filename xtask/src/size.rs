//! How large a filesystem should be: `size = max(min-size, what the content asks for)`, decided exactly.
//!
//! Pure: numbers in, a [`SizeDecision`] out. What a filesystem of a given size spends on itself is asked of a
//! [`Geometry`], which the filesystem writer brings.

use serde::{Deserialize, Serialize};

/// Bytes of one filesystem block; every size is rounded up to it.
pub const BLOCK_SIZE: u64 = 4096;

/// Room for growth as a factor of the content, in millionths, so that `0.4 × data` is exact: 1.4 is 1_400_000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headroom {
    pub millionths: u32,
}

impl Headroom {
    /// What a guest that writes needs, unless the spec knows better.
    pub const DEFAULT: Headroom = Headroom { millionths: 1_400_000 };
    /// An exactly full filesystem.
    pub const NONE: Headroom = Headroom { millionths: 1_000_000 };

    /// ⌈(headroom − 1) · amount⌉
    pub fn free_for(self, amount: u64) -> u64 {
        let share = u128::from(self.millionths - Self::NONE.millionths);
        u64::try_from((u128::from(amount) * share).div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// What the spec or the command line says about size. `min_size` and `max_size` are bytes of the filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizePolicy {
    pub min_size: u64,
    pub max_size: Option<u64>,
    pub headroom: Headroom,
    /// Free inodes to leave, where that is more than the headroom gives.
    pub free_inodes: Option<u64>,
}

impl Default for SizePolicy {
    fn default() -> Self {
        SizePolicy { min_size: 0, max_size: None, headroom: Headroom::DEFAULT, free_inodes: None }
    }
}
