//! How large a filesystem is to be: the smallest one that holds the content with its headroom, and at least `min-size`.
//!
//! [`decide`] takes numbers and returns a [`SizeDecision`]; it does no I/O. The overhead of a filesystem of a given size comes
//! from an [`OverheadModel`], which the writer of the filesystem implements.

use std::fmt;

use serde::{Deserialize, Serialize};
use snug_rootfs::tree::{Kind, RootTree, TreePath};

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

/// What a filesystem of a given size consists of apart from content and free space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overhead {
    /// Inodes of the filesystem: at least as many as were asked for, rounded up in every group.
    pub inodes: u64,
    /// Blocks by structure (`journal`, `inode tables`, …), reserved blocks among them.
    pub structures: Vec<Structure>,
}

impl Overhead {
    /// Returns the blocks of all structures together.
    pub fn blocks(&self) -> u64 {
        self.structures.iter().fold(0, |sum, structure| sum.saturating_add(structure.blocks))
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

/// The overhead of a type of filesystem as a function of its size.
pub trait OverheadModel {
    /// Returns the overhead of a filesystem of exactly `blocks` blocks with at least `inodes` inodes; `None` if there is no
    /// such filesystem, because its last group would be too small for its metadata, for example.
    fn overhead(&self, blocks: u64, inodes: u64) -> Option<Overhead>;

    /// Returns the largest size in blocks, at least `blocks`, up to which the overhead does not decrease. Since inodes are
    /// rounded up in every group, one group more can need fewer blocks; for ext4 this is the end of the last group.
    fn monotonic_until(&self, blocks: u64) -> u64 {
        let _ = blocks;
        u64::MAX
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
    /// Blocks of the filesystem: at least data, free blocks and overhead together.
    pub total_blocks: u64,
    /// `total_blocks` in bytes.
    pub bytes: u64,
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

/// Where the search ends: ext4's own limit, the 48-bit block numbers of extents.
const BLOCKS_MAX: u64 = 1 << 48;

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
    let (rule, (total_blocks, overhead)) =
        if floor > by_content.0 { (Rule::MinSize, search(floor)?) } else { (Rule::Content, by_content) };

    let bytes = total_blocks * BLOCK_SIZE;
    match policy.max_size {
        Some(max) if bytes > max => Err(SizeError::ExceedsMax { needed: bytes, max }),
        _ => Ok(SizeDecision {
            rule,
            headroom: policy.headroom,
            data_blocks,
            inodes,
            free_blocks,
            free_inodes,
            total_inodes: overhead.inodes,
            overhead: overhead.structures,
            total_blocks,
            bytes,
        }),
    }
}

/// Finds the smallest filesystem of at least `from` blocks that has `wanted` blocks apart from its overhead, and `inodes`
/// inodes.
fn smallest(from: u64, wanted: u64, inodes: u64, model: &dyn OverheadModel) -> Option<(u64, Overhead)> {
    let mut blocks = from.max(1);
    while blocks <= BLOCKS_MAX {
        let Some(overhead) = model.overhead(blocks, inodes) else {
            blocks += 1;
            continue;
        };
        let needed = wanted.checked_add(overhead.blocks())?;
        if needed <= blocks {
            return Some((blocks, overhead));
        }
        // As long as the overhead does not decrease, no size below `needed` suffices.
        blocks = needed.min(model.monotonic_until(blocks).saturating_add(1).max(blocks + 1));
    }
    None
}

/// A path and the space that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// A file or a directory.
    pub path: TreePath,
    /// Bytes of the file, or of all files below the directory, each rounded up to blocks; hard links count once.
    pub bytes: u64,
}

/// Returns the `count` paths that take the most space, largest first. A directory is left out if more than half of its bytes
/// are those of one child, which is listed in its place; so is the root.
pub fn largest(tree: &RootTree, count: usize) -> Vec<Weight> {
    struct Open<'tree> {
        path: &'tree TreePath,
        bytes: u64,
        largest_child: u64,
    }
    fn close<'tree>(open: &mut Vec<Open<'tree>>, weights: &mut Vec<(u64, &'tree TreePath)>) {
        let Some(done) = open.pop() else { return };
        if let Some(parent) = open.last_mut() {
            parent.bytes = parent.bytes.saturating_add(done.bytes);
            parent.largest_child = parent.largest_child.max(done.bytes);
            if done.bytes > 0 && done.largest_child <= done.bytes / 2 {
                weights.push((done.bytes, done.path));
            }
        }
    }
    let (mut open, mut weights) = (Vec::<Open>::new(), Vec::new());
    for entry in tree.entries() {
        while open.last().is_some_and(|last| !entry.path.is_within(last.path)) {
            close(&mut open, &mut weights);
        }
        let bytes = match &entry.inode.kind {
            Kind::File(body) if entry.hard_link_to.is_none() => {
                body.data_bytes().div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE)
            }
            _ => 0,
        };
        open.push(Open { path: entry.path, bytes, largest_child: 0 });
    }
    while !open.is_empty() {
        close(&mut open, &mut weights);
    }
    weights.sort_by(|(a_bytes, a), (b_bytes, b)| b_bytes.cmp(a_bytes).then_with(|| a.cmp(b)));
    weights.into_iter().take(count).map(|(bytes, path)| Weight { path: path.clone(), bytes }).collect()
}

/// How many paths [`explain`] lists.
const LARGEST_NAMED: usize = 10;

/// Adds the largest paths of `tree` to [`SizeError::ExceedsMax`], as text for people; other errors stay as they are.
pub fn explain(error: SizeError, tree: &RootTree) -> anyhow::Error {
    if !matches!(error, SizeError::ExceedsMax { .. }) {
        return error.into();
    }
    let mut text = String::from("the content is too large for its max-size; the largest paths:");
    for Weight { path, bytes } in largest(tree, LARGEST_NAMED) {
        text.push_str(&format!("\n  {:>10}  {path}", human_bytes(bytes)));
    }
    text.push_str("\nhint: `exclude` what the image does not need, or raise max-size");
    anyhow::Error::new(error).context(text)
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
    use snug_rootfs::tree::{Body, BodySource, Inode};

    /// A simplified ext4: groups with bitmaps, inodes rounded up in each, a journal whose size grows in steps, and no last
    /// group smaller than its metadata.
    #[derive(Debug, Clone)]
    struct Groups {
        group: u64,
        inodes_per_block: u64,
    }

    impl OverheadModel for Groups {
        fn overhead(&self, blocks: u64, inodes: u64) -> Option<Overhead> {
            let groups = blocks.div_ceil(self.group);
            let table = inodes.div_ceil(groups).div_ceil(self.inodes_per_block);
            let last = blocks - (groups - 1) * self.group;
            let structures = vec![
                Structure::new("journal", if blocks < 4 * self.group { 5 } else { 40 }),
                Structure::new("inode tables", table * groups),
                Structure::new("bitmaps", 2 * groups),
            ];
            (last > 2).then_some(Overhead { inodes: table * self.inodes_per_block * groups, structures })
        }

        fn monotonic_until(&self, blocks: u64) -> u64 {
            blocks.next_multiple_of(self.group)
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
        (50..300_u64, 1..20_u64).prop_map(|(group, inodes_per_block)| Groups { group, inodes_per_block })
    }

    fn satisfies(blocks: u64, decision: &SizeDecision, model: &Groups) -> bool {
        let wanted_inodes = decision.inodes + decision.free_inodes;
        model.overhead(blocks, wanted_inodes).is_some_and(|overhead| {
            decision.data_blocks + decision.free_blocks + overhead.blocks() <= blocks
                && overhead.inodes >= wanted_inodes
        })
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
            prop_assert!(satisfies(decision.total_blocks, &decision, &model));
            prop_assert!(decision.bytes >= policy.min_size);
            let floor = policy.min_size.div_ceil(BLOCK_SIZE);
            for blocks in floor.max(1)..decision.total_blocks {
                prop_assert!(!satisfies(blocks, &decision, &model), "{} blocks suffice", blocks);
            }
            prop_assert_eq!(decision.rule == Rule::MinSize, (1..floor).any(|blocks| satisfies(blocks, &decision, &model)));
        }

        #[test]
        fn more_content_headroom_or_floor_is_never_smaller(
            data_blocks in 0..2000_u64, inodes in 11..500_u64, more in 0..500_u64, policy in policies(),
            model in models()
        ) {
            // An overhead that never decreases: with real groups, one group more can need fewer blocks.
            struct Monotonic(Groups);
            impl OverheadModel for Monotonic {
                fn overhead(&self, blocks: u64, inodes: u64) -> Option<Overhead> {
                    let structures = vec![
                        Structure::new("bitmaps", 2 * blocks.div_ceil(self.0.group)),
                        Structure::new("inode tables", inodes.div_ceil(self.0.inodes_per_block)),
                    ];
                    Some(Overhead { inodes, structures })
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
                fn overhead(&self, blocks: u64, inodes: u64) -> Option<Overhead> {
                    Some(Overhead { inodes, structures: vec![Structure::new("bitmaps", blocks.div_ceil(32768))] })
                }
            }
            let _ = decide(Demand { data_blocks, inodes }, &policy, &Flat);
        }
    }

    #[test]
    fn a_size_above_max_is_refused_with_the_largest_paths() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        let file = |size| Inode::new(Kind::File(Body::contiguous(size, 0)), 0o644);
        for (path, size) in
            [("usr/lib/node/a", 900_000), ("usr/lib/node/b", 800_000), ("usr/bin/sh", 5000), ("etc/x", 10)]
        {
            tree.insert(TreePath::new(path).unwrap(), file(size)).unwrap();
        }
        tree.link(TreePath::new("usr/bin/ash").unwrap(), &TreePath::new("usr/bin/sh").unwrap()).unwrap();
        let policy = SizePolicy { max_size: Some(1 << 20), ..SizePolicy::default() };
        let model = Groups { group: 1000, inodes_per_block: 16 };
        let error = decide(Demand { data_blocks: 420, inodes: 20 }, &policy, &model).unwrap_err();
        assert_eq!(error, SizeError::ExceedsMax { needed: 597 * 4096, max: 1 << 20 });
        insta::assert_snapshot!(explain(error, &tree), @r"
        the content is too large for its max-size; the largest paths:
             880 KiB  /usr/lib/node/a
             784 KiB  /usr/lib/node/b
              8192 B  /usr/bin/ash
              4096 B  /etc/x
        hint: `exclude` what the image does not need, or raise max-size
        ");
    }

    #[test]
    fn sizes_are_formatted_in_binary_units() {
        assert_eq!(human_bytes(4096), "4096 B");
        assert_eq!(human_bytes(312 << 20), "312 MiB");
        assert_eq!(human_bytes(1_154_666_496), "1.08 GiB");
        assert_eq!([Headroom::DEFAULT, Headroom::NONE].map(|headroom| headroom.to_string()), ["1.4", "1.0"]);
    }
}
