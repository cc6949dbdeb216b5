//! How large a filesystem is to be: the smallest one that holds the content with its headroom, and at least `min-size`.
//!
//! [`decide`] takes numbers and returns a [`SizeDecision`]; it does no I/O. The overhead of a filesystem of a given size comes
//! from an [`OverheadModel`], which the writer of the filesystem implements.

mod largest;
mod search;

use std::fmt;

use serde::{Deserialize, Serialize};
use snug_rootfs::tree::RootTree;

pub use self::largest::{Weight, explain, largest};
use self::search::smallest;
pub use self::search::{NoFilesystem, Overhead, OverheadModel, WHOLE_GROUP};

/// Bytes of a filesystem block; every size is a multiple of it.
pub const BLOCK_SIZE: u64 = 4096;

/// The capacity of a filesystem as a multiple of its content: with 1.4, free space is equal to 40 % of the content. An integer
/// number of millionths, so that arithmetic is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headroom {
    /// 1_400_000 is 1.4. Less than 1_000_000 counts as 1.0.
    pub millionths: u32,
}

impl Headroom {
    /// 1.4, for guests that write.
    pub const DEFAULT: Headroom = Headroom { millionths: 1_400_000 };
    /// 1.0: a filesystem without free space.
    pub const NONE: Headroom = Headroom { millionths: 1_000_000 };

    /// Returns ⌈(headroom − 1) · amount⌉, the free blocks or inodes for `amount` used ones.
    pub fn free_for(self, amount: u64) -> u64 {
        let share = u128::from(self.millionths.saturating_sub(Self::NONE.millionths));
        u64::try_from((u128::from(amount) * share).div_ceil(1_000_000)).unwrap_or(u64::MAX)
    }
}

/// What a size must satisfy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizePolicy {
    /// Bytes that the filesystem has at least; rounded up to a block.
    pub min_size: u64,
    /// Bytes that the filesystem must not exceed; more is [`SizeError::ExceedsMax`].
    pub max_size: Option<u64>,
    /// Free blocks and inodes, in relation to the content.
    pub headroom: Headroom,
    /// Free inodes to leave at least, whatever the headroom.
    pub free_inodes: Option<u64>,
}

impl Default for SizePolicy {
    fn default() -> Self {
        SizePolicy { min_size: 0, max_size: None, headroom: Headroom::DEFAULT, free_inodes: None }
    }
}

/// What a tree needs of a filesystem, without headroom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Blocks of file contents (holes not counted), directories, extent trees, xattrs and long symlinks.
    pub data_blocks: u64,
    /// The tree's inodes and the filesystem's own ([`EXT4_OWN_INODES`]).
    pub inodes: u64,
}

/// Inodes that ext4 has in addition to the tree's: the ten reserved ones and lost+found.
pub const EXT4_OWN_INODES: u64 = 11;

impl Demand {
    /// The demand of `tree` on an ext4 in which its content takes `data_blocks`.
    pub fn ext4(tree: &RootTree, data_blocks: u64) -> Self {
        Demand { data_blocks, inodes: tree.inode_count() as u64 + EXT4_OWN_INODES }
    }
}

/// Blocks of a filesystem that hold no content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Structure {
    /// A noun in lower case: `inode tables`.
    pub name: String,
    /// How many blocks.
    pub blocks: u64,
}

impl Structure {
    /// A structure of this name with so many blocks.
    pub fn new(name: impl Into<String>, blocks: u64) -> Self {
        Structure { name: name.into(), blocks }
    }
}

/// What decided the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The content and its headroom.
    Content,
    /// [`SizePolicy::min_size`], which is more than that.
    MinSize,
}

/// How large a filesystem is, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SizeDecision {
    /// What decided.
    pub rule: Rule,
    /// [`SizePolicy::headroom`]
    pub headroom: Headroom,
    /// [`Demand::data_blocks`]
    pub data_blocks: u64,
    /// [`Demand::inodes`]
    pub inodes: u64,
    /// Free blocks that the policy requires: ⌈(headroom − 1) · data blocks⌉. With [`Rule::MinSize`] there are more.
    pub free_blocks: u64,
    /// Free inodes that the policy requires: ⌈(headroom − 1) · inodes⌉, or [`SizePolicy::free_inodes`] if that is more.
    pub free_inodes: u64,
    /// Inodes of the filesystem, free ones included: at least `inodes + free_inodes`.
    pub total_inodes: u64,
    /// Blocks that hold no content.
    pub overhead: Vec<Structure>,
    /// Blocks of every block group but the last: [`WHOLE_GROUP`], unless the inodes would need more groups of that size than
    /// the blocks do.
    #[serde(default = "whole_group")]
    pub blocks_per_group: u32,
    /// Blocks of the filesystem: at least data, free blocks and overhead together.
    pub total_blocks: u64,
    /// `total_blocks` in bytes.
    pub bytes: u64,
}

/// Manifests from before groups could be smaller do not state it.
fn whole_group() -> u32 {
    WHOLE_GROUP
}

/// Why no size satisfies a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The smallest filesystem is larger than [`SizePolicy::max_size`]. [`explain`] adds the paths that take the most space.
    #[error(
        "the image needs {} ({needed} bytes), and max-size is {} ({max} bytes)",
        human_bytes(*needed),
        human_bytes(*max)
    )]
    ExceedsMax {
        /// Bytes of that filesystem.
        needed: u64,
        /// [`SizePolicy::max_size`]
        max: u64,
    },
    /// No filesystem of this type is large enough.
    #[error("no filesystem holds {data_blocks} blocks of data and {inodes} inodes with the headroom asked for")]
    Unrepresentable {
        /// [`Demand::data_blocks`]
        data_blocks: u64,
        /// [`Demand::inodes`]
        inodes: u64,
    },
}

/// Decides the size (docs/architecture.md): the smallest filesystem that holds the content and has the free blocks and
/// inodes that the headroom asks for, and at least `min_size`.
///
/// # Errors
///
/// [`SizeError`], if that is more than `max_size` or than any filesystem can have.
pub fn decide(demand: Demand, policy: &SizePolicy, model: &dyn OverheadModel) -> Result<SizeDecision, SizeError> {
    let Demand { data_blocks, inodes } = demand;
    let unrepresentable = SizeError::Unrepresentable { data_blocks, inodes };
    let free_blocks = policy.headroom.free_for(data_blocks);
    let free_inodes = policy.headroom.free_for(inodes).max(policy.free_inodes.unwrap_or(0));
    let wanted = data_blocks.checked_add(free_blocks).ok_or(unrepresentable.clone())?;
    let wanted_inodes = inodes.checked_add(free_inodes).ok_or(unrepresentable.clone())?;

    let search = |from| smallest(from, wanted, wanted_inodes, model).ok_or(unrepresentable.clone());
    let by_content = search(wanted)?;
    let floor = policy.min_size.div_ceil(BLOCK_SIZE);
    let (rule, found) =
        if floor > by_content.blocks { (Rule::MinSize, search(floor)?) } else { (Rule::Content, by_content) };

    let bytes = found.blocks * BLOCK_SIZE;
    match policy.max_size {
        Some(max) if bytes > max => Err(SizeError::ExceedsMax { needed: bytes, max }),
        _ => Ok(SizeDecision {
            rule,
            headroom: policy.headroom,
            data_blocks,
            inodes,
            free_blocks,
            free_inodes,
            total_inodes: found.overhead.inodes,
            overhead: found.overhead.structures,
            blocks_per_group: found.overhead.blocks_per_group,
            total_blocks: found.blocks,
            bytes,
        }),
    }
}

/// `1.4`, as in image.toml.
impl fmt::Display for Headroom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:06}", self.millionths % 1_000_000);
        let fraction = fraction.trim_end_matches('0');
        write!(f, "{}.{}", self.millionths / 1_000_000, if fraction.is_empty() { "0" } else { fraction })
    }
}

/// Formats a size in binary units with three digits: `1.40 GiB`, `312 MiB`; below 10 KiB in bytes: `4096 B`.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 10 * 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if value < 10.0 {
        format!("{value:.2} {unit}")
    } else if value < 100.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A simplified ext4: groups with bitmaps, inodes rounded up in each, of which there can be so many, a journal whose size
    /// grows in steps, descriptors of which smaller groups need more, and no last group smaller than its metadata.
    #[derive(Debug, Clone)]
    struct Groups {
        whole: u32,
        inodes_per_block: u64,
        tables_per_group: u64,
    }

    impl OverheadModel for Groups {
        fn overhead(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem> {
            let group = u64::from(blocks_per_group);
            let groups = blocks.div_ceil(group);
            let table = inodes.div_ceil(groups).div_ceil(self.inodes_per_block);
            let last = blocks - (groups - 1) * group;
            if table > self.tables_per_group {
                return Err(NoFilesystem { below: groups * group + 1 });
            }
            if last <= 2 {
                return Err(NoFilesystem { below: blocks + 1 });
            }
            let structures = vec![
                Structure::new("journal", if blocks < 4 * u64::from(self.whole) { 5 } else { 40 }),
                Structure::new("inode tables", table * groups),
                Structure::new("bitmaps", 2 * groups),
                Structure::new("descriptors", u64::from(self.whole) / group),
            ];
            Ok(Overhead { inodes: table * self.inodes_per_block * groups, blocks_per_group, structures })
        }

        fn whole_group(&self) -> u32 {
            self.whole
        }

        fn smaller_groups(&self) -> Vec<u32> {
            (8..self.whole).rev().collect()
        }
    }

    fn policies() -> impl Strategy<Value = SizePolicy> {
        (1_000_000..3_000_000_u32, 0..5_000_000_u64, prop::option::of(0..2000_u64)).prop_map(
            |(millionths, min_size, free_inodes)| SizePolicy {
                min_size,
                max_size: None,
                headroom: Headroom { millionths },
                free_inodes,
            },
        )
    }

    fn models() -> impl Strategy<Value = Groups> {
        (50..300_u32, 1..20_u64, 1..100_u64).prop_map(|(whole, inodes_per_block, tables_per_group)| Groups {
            whole,
            inodes_per_block,
            tables_per_group,
        })
    }

    /// Returns the blocks without a purpose in a filesystem of this size; `None` if it does not hold what is decided.
    fn left_over(blocks: u64, blocks_per_group: u32, decision: &SizeDecision, model: &Groups) -> Option<u64> {
        let inodes = decision.inodes + decision.free_inodes;
        let overhead = model.overhead(blocks, blocks_per_group, inodes).ok()?;
        let used = decision.data_blocks + decision.free_blocks + overhead.blocks();
        blocks.checked_sub(used).filter(|_| overhead.inodes >= inodes)
    }

    proptest! {
        #[test]
        fn nothing_smaller_suffices(
            data_blocks in 0..2000_u64, inodes in 11..500_u64, policy in policies(), model in models()
        ) {
            let decided = decide(Demand { data_blocks, inodes }, &policy, &model);
            // Groups smaller than their own inode tables never hold anything.
            prop_assume!(decided.is_ok());
            let decision = decided.unwrap();
            let holds = |blocks, group| left_over(blocks, group, &decision, &model).is_some();
            let total = decision.total_blocks;
            let unused = left_over(total, decision.blocks_per_group, &decision, &model);
            prop_assert!(unused.is_some());
            prop_assert!(decision.bytes >= policy.min_size);
            let floor = policy.min_size.div_ceil(BLOCK_SIZE);
            // Neither whole groups nor, where those leave blocks to nobody, any smaller ones.
            let with_purpose = decision.blocks_per_group == model.whole && (unused == Some(0) || total == floor);
            let others = if with_purpose { model.whole..=model.whole } else { 8..=model.whole };
            for group in others {
                let smaller = (floor.max(1)..total).find(|&blocks| holds(blocks, group));
                prop_assert_eq!(smaller, None, "groups of {} blocks", group);
            }
            // Of those that give the same size, the largest.
            let larger = (decision.blocks_per_group + 1..=model.whole).find(|&group| holds(total, group));
            prop_assert_eq!(larger, None);
            // Whole groups without a block to spare are taken, also where some smaller ones would need less than the floor.
            let tried = if with_purpose && decision.rule == Rule::Content { model.whole } else { 8 }..=model.whole;
            let below_floor = (1..floor).any(|blocks| tried.clone().any(|group| holds(blocks, group)));
            prop_assert_eq!(decision.rule == Rule::MinSize, below_floor);
        }

        #[test]
        fn more_content_headroom_or_floor_is_never_smaller(
            data_blocks in 0..2000_u64, inodes in 11..500_u64, more in 0..500_u64, policy in policies(),
            model in models()
        ) {
            // An overhead that never decreases: with real groups, one group more can need fewer blocks.
            struct Monotonic(Groups);
            impl OverheadModel for Monotonic {
                fn overhead(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem> {
                    let structures = vec![
                        Structure::new("bitmaps", 2 * blocks.div_ceil(self.0.whole.into())),
                        Structure::new("inode tables", inodes.div_ceil(self.0.inodes_per_block)),
                    ];
                    Ok(Overhead { inodes, blocks_per_group, structures })
                }
            }
            let model = Monotonic(model);
            let size = |data_blocks, inodes, policy: &SizePolicy| {
                decide(Demand { data_blocks, inodes }, policy, &model).unwrap().total_blocks
            };
            let base = size(data_blocks, inodes, &policy);
            prop_assert!(size(data_blocks + more, inodes, &policy) >= base);
            prop_assert!(size(data_blocks, inodes + more, &policy) >= base);
            let roomier = Headroom { millionths: policy.headroom.millionths + more as u32 * 1000 };
            let roomier = SizePolicy { headroom: roomier, ..policy.clone() };
            prop_assert!(size(data_blocks, inodes, &roomier) >= base);
            let higher = SizePolicy { min_size: policy.min_size + more * 1000, ..policy.clone() };
            prop_assert!(size(data_blocks, inodes, &higher) >= base);
        }

        #[test]
        fn no_numbers_overflow(
            data_blocks: u64, inodes: u64, millionths: u32, min_size: u64, max_size: Option<u64>,
            free_inodes: Option<u64>
        ) {
            let policy = SizePolicy { min_size, max_size, headroom: Headroom { millionths }, free_inodes };
            struct Flat;
            impl OverheadModel for Flat {
                fn overhead(&self, blocks: u64, blocks_per_group: u32, inodes: u64) -> Result<Overhead, NoFilesystem> {
                    let bitmaps = Structure::new("bitmaps", blocks.div_ceil(blocks_per_group.into()));
                    Ok(Overhead { inodes, blocks_per_group, structures: vec![bitmaps] })
                }
            }
            let _ = decide(Demand { data_blocks, inodes }, &policy, &Flat);
        }
    }

    #[test]
    fn sizes_are_formatted_in_binary_units() {
        assert_eq!(human_bytes(4096), "4096 B");
        assert_eq!(human_bytes(312 << 20), "312 MiB");
        assert_eq!(human_bytes(1_154_666_496), "1.08 GiB");
        assert_eq!([Headroom::DEFAULT, Headroom::NONE].map(|headroom| headroom.to_string()), ["1.4", "1.0"]);
    }
}
