//! The key `filesystem`: a type, or a table with a type and that type's options.

use std::str::FromStr;

use snug_formats::{ErofsOptions, Ext4Options, Ext4Writer, Filesystem, FilesystemKind, SquashfsOptions};

use super::reader::{Cursor, Key, Node, Problem};
use super::{nearest, values};

/// Keys of every type.
const COMMON: &[&str] = &["type", "verity", "overlay", "overlay-device"];
const EXT4: &[&str] = &[
    "type",
    "journal",
    "reserved-percent",
    "label",
    "uuid",
    "growth",
    "writer",
    "verity",
    "overlay",
    "overlay-device",
];
const SQUASHFS: &[&str] = &["type", "compression", "block-size", "verity", "overlay", "overlay-device"];
const EROFS: &[&str] = &["type", "compression", "cluster-size", "dedupe", "verity", "overlay", "overlay-device"];

/// Bytes of ext4's `s_volume_name`.
const LABEL_MAX: usize = 16;
/// mke2fs's limit for reserved blocks.
const RESERVED_PERCENT_MAX: u32 = 50;
/// Bytes of the smallest and the largest block of squashfs and cluster of erofs.
const BLOCK_MIN: u64 = 4 << 10;
const BLOCK_MAX: u64 = 1 << 20;

/// Compressors of mksquashfs and tar2sqfs, with the levels they take.
const SQUASHFS_COMPRESSORS: &[(&str, Option<(u32, u32)>)] =
    &[("gzip", Some((1, 9))), ("zstd", Some((1, 22))), ("xz", None), ("lz4", None), ("lzo", Some((1, 9)))];
/// Compressors of mkfs.erofs, with the levels they take.
const EROFS_COMPRESSORS: &[(&str, Option<(u32, u32)>)] = &[
    ("lz4", None),
    ("lz4hc", Some((0, 12))),
    ("zstd", Some((0, 22))),
    ("lzma", Some((0, 109))),
    ("deflate", Some((0, 9))),
    ("none", None),
];

/// The value of the key `filesystem`.
#[derive(Debug)]
pub(crate) struct FilesystemChoice {
    pub filesystem: Option<Filesystem>,
    pub verity: bool,
    pub overlay: Option<u64>,
    pub overlay_device: bool,
}

impl Default for FilesystemChoice {
    fn default() -> Self {
        FilesystemChoice { filesystem: None, verity: false, overlay: None, overlay_device: true }
    }
}

fn keys_of(kind: FilesystemKind) -> &'static [&'static str] {
    match kind {
        FilesystemKind::Ext4 => EXT4,
        FilesystemKind::Squashfs => SQUASHFS,
        FilesystemKind::Erofs => EROFS,
    }
}

fn kind(node: &Node<'_>) -> Option<FilesystemKind> {
    node.parse(|text| {
        FilesystemKind::from_str(text).map_err(|_| {
            let names = FilesystemKind::ALL.map(FilesystemKind::as_str);
            Problem::new(
                format!("unknown filesystem `{}`", text),
                nearest::suggestion(text, "the filesystems are", names),
            )
        })
    })
}

/// Reads `filesystem`, in its short or its table form.
pub(crate) fn filesystem(node: &Node<'_>) -> Option<FilesystemChoice> {
    if node.as_table().is_none() {
        if node.as_str().is_none() {
            return node
                .wrong_type("a string or a table", "as filesystem = \"ext4\" or { type = \"ext4\", journal = false }");
        }
        let filesystem = Filesystem::default_of(kind(node)?);
        return Some(FilesystemChoice { filesystem: Some(filesystem), ..FilesystemChoice::default() });
    }
    let untyped = node.open_table(COMMON, "")?;
    let kind = untyped.require("type", "\"ext4\", \"squashfs\" or \"erofs\"").and_then(|node| kind(&node))?;
    let keys = keys_of(kind);
    let table = node.open_table(keys, "")?;
    for (name, key) in table.entries() {
        if !keys.contains(&name) {
            refuse_key(kind, name, &key);
        }
    }
    let verity = table.take("verity").and_then(|node| node.boolean()).unwrap_or(false);
    let overlay = table.take("overlay").and_then(|node| values::size_of(&node));
    let overlay_device = table.take("overlay-device").and_then(|node| node.boolean()).unwrap_or(true);
    let filesystem = match kind {
        FilesystemKind::Ext4 => Filesystem::Ext4(ext4(&table)),
        FilesystemKind::Squashfs => Filesystem::Squashfs(squashfs(&table)),
        FilesystemKind::Erofs => Filesystem::Erofs(erofs(&table)),
    };
    Some(FilesystemChoice { filesystem: Some(filesystem), verity, overlay, overlay_device })
}

fn refuse_key(kind: FilesystemKind, name: &str, key: &Key<'_>) {
    let others: Vec<&str> = FilesystemKind::ALL
        .into_iter()
        .filter(|&other| keys_of(other).contains(&name))
        .map(FilesystemKind::as_str)
        .collect();
    if others.is_empty() {
        let help = nearest::suggestion(name, &format!("the options of {kind} are"), keys_of(kind).iter().copied());
        key.key_error(format!("unknown option `{name}` of {kind}"), help);
    } else {
        let help = format!("the options of {kind} are: {}", nearest::list(keys_of(kind).iter().copied()));
        key.key_error(format!("`{name}` is an option of {}, and this is {kind}", others.join(" and ")), help);
    }
}

fn ext4(table: &Cursor<'_>) -> Ext4Options {
    let mut options = Ext4Options::default();
    if let Some(journal) = table.take("journal").and_then(|node| node.boolean()) {
        options.journal = journal;
    }
    if let Some(percent) = table.take("reserved-percent").and_then(|node| node.integer(0..=RESERVED_PERCENT_MAX)) {
        options.reserved_percent = u8::try_from(percent).unwrap_or_default();
    }
    options.label = table.take("label").and_then(|node| {
        let label = node.line()?;
        if label.len() > LABEL_MAX {
            return node.fail(format!("the label has {} bytes, more than {LABEL_MAX}", label.len()), "");
        }
        Some(label.to_owned())
    });
    options.uuid = table.take("uuid").and_then(|node| node.parse(values::uuid));
    options.growth = table.take("growth").and_then(|node| values::size_of(&node));
    if let Some(writer) = table.take("writer").and_then(|node| writer(&node)) {
        options.writer = writer;
    }
    options
}

fn writer(node: &Node<'_>) -> Option<Ext4Writer> {
    let text = node.string()?;
    text.parse().ok().or_else(|| {
        node.fail(
            format!("unknown writer `{text}`"),
            nearest::suggestion(text, "the writers are", ["native", "mke2fs", "loop"]),
        )
    })
}

fn squashfs(table: &Cursor<'_>) -> SquashfsOptions {
    let mut options = SquashfsOptions::default();
    if let Some(text) = table.take("compression").and_then(|node| compression(&node, SQUASHFS_COMPRESSORS)) {
        options.compression = text;
    }
    if let Some(size) = table.take("block-size").and_then(|node| block(&node)) {
        options.block_size = size;
    }
    options
}

fn erofs(table: &Cursor<'_>) -> ErofsOptions {
    let mut options = ErofsOptions::default();
    if let Some(text) = table.take("compression").and_then(|node| compression(&node, EROFS_COMPRESSORS)) {
        options.compression = text;
    }
    if let Some(size) = table.take("cluster-size").and_then(|node| block(&node)) {
        options.cluster_size = size;
    }
    if let Some(dedupe) = table.take("dedupe").and_then(|node| node.boolean()) {
        options.dedupe = dedupe;
    }
    options
}

/// Reads `zstd`, or `zstd:15`.
fn compression(node: &Node<'_>, compressors: &[(&str, Option<(u32, u32)>)]) -> Option<String> {
    node.parse(|text| {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let Some((name, levels)) = compressors.iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = compressors.iter().map(|(known, _)| *known).collect();
            let help = nearest::suggestion(name, "the compressors are", names.iter().copied());
            return Err(Problem::new(format!("unknown compressor `{}`", name), help));
        };
        match (level, levels) {
            (None, _) => Ok(text.to_owned()),
            (Some(_), None) => Err(Problem::new(format!("{name} has no levels"), format!("write \"{name}\""))),
            (Some(level), Some((low, high))) => match level.parse::<u32>() {
                Ok(number) if (*low..=*high).contains(&number) => Ok(format!("{name}:{number}")),
                _ => {
                    Err(Problem::new(format!("{name} has the levels {low} to {high}"), format!("as \"{name}:{high}\"")))
                }
            },
        }
    })
}

fn block(node: &Node<'_>) -> Option<u32> {
    let size = values::size_of(node)?;
    match u32::try_from(size) {
        Ok(size) if size.is_power_of_two() && (BLOCK_MIN..=BLOCK_MAX).contains(&u64::from(size)) => Some(size),
        _ => node.fail("the size must be a power of two between 4KiB and 1MiB", ""),
    }
}
