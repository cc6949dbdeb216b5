//! The arrays of tables of a spec: `[[file]]`, `[[device]]` and `[[binary]]`, which add to the tree, and `[[secret]]`.

use std::collections::BTreeMap;
use std::path::Path;

use snug_rootfs::capabilities::{Capabilities, CapabilityError};
use snug_rootfs::tree::TreePath;

use super::model::{BinarySpec, DeviceKind, DeviceSpec, FileSource, FileSpec, SecretSource, SecretSpec, SourcePath};
use super::reader::{Cursor, Node, Problem};
use super::{names, nearest, sources, values};

const FILE_KEYS: &[&str] = &["from", "content", "to", "mode", "owner", "xattrs", "capabilities"];
const DEVICE_KEYS: &[&str] = &["path", "type", "major", "minor", "mode", "owner"];
const BINARY_KEYS: &[&str] = &["package", "bin", "manifest-path", "features", "to", "mode", "owner"];
const SECRET_KEYS: &[&str] = &["id", "from"];
const SECRET_SOURCES: &[&str] = &["file", "env"];
const VALUE_FORMS: &[&str] = &["hex", "base64"];

/// The default folder of a `[[binary]]`.
const BINARY_FOLDER: &str = "/usr/local/bin";

/// Bits of Linux's device numbers as filesystems store them (`linux/kdev_t.h`, `new_encode_dev`).
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Reads an absolute path in the image other than the root.
fn tree_path(node: &Node<'_>) -> Option<TreePath> {
    let written = node.string()?;
    absolute(node, written, written.into())
}

/// Parses `path`, for which the spec has `written`.
fn absolute(node: &Node<'_>, written: &str, path: Vec<u8>) -> Option<TreePath> {
    if !written.starts_with('/') {
        return node.fail(format!("`{written}` is not an absolute path"), format!("write \"/{written}\""));
    }
    match TreePath::new(path) {
        Ok(path) if path.is_root() => node.fail("this is the root itself", "name the path inside the image"),
        Ok(path) => Some(path),
        Err(error) => node.fail(error.to_string(), ""),
    }
}

/// Reads one `[[file]]`.
pub(crate) fn file(node: &Node<'_>, folder: &Path) -> Option<FileSpec> {
    let table = node.table(FILE_KEYS)?;
    let (source, is_folder) = file_source(&table, folder).unzip();
    let to = table
        .require("to", "where in the image it goes, as to = \"/etc/motd\"")
        .and_then(|node| target(&node, source.as_ref(), is_folder == Some(true)));
    let mode = table.take("mode").map(|node| values::mode_of(&node));
    let owner = table.take("owner").map(|node| values::owner_of(&node));
    let xattrs = table.take("xattrs").map(|node| xattrs(&node)).unwrap_or_default();
    let capabilities = table.take("capabilities").map(|node| capabilities(&node));
    if is_folder == Some(true) {
        for key in ["xattrs", "capabilities"] {
            if table.take(key).is_some() {
                table.place(key).key_error(
                    format!("`{key}` needs a file, and `from` is a folder"),
                    "give the file a [[file]] of its own",
                );
            }
        }
    }
    if capabilities.is_some() && xattrs.contains_key("security.capability") {
        table
            .place("capabilities")
            .key_error("`capabilities` and the attribute `security.capability` are the same thing", "keep one of them");
    }
    Some(FileSpec {
        source: source?,
        to: to?,
        mode: mode.flatten(),
        owner: owner.flatten(),
        xattrs,
        capabilities: capabilities.flatten(),
    })
}

/// Reads the path of a `[[file]]` in the image. As for cp, a trailing slash names the folder to put a file into.
fn target(node: &Node<'_>, source: Option<&FileSource>, is_folder: bool) -> Option<TreePath> {
    let written = node.string()?;
    match source {
        Some(FileSource::Content(_)) if written.ends_with('/') => {
            node.fail("`to` names a folder, and `content` has no name of its own", "write the file's full path")
        }
        Some(FileSource::From(from)) if written.ends_with('/') && !is_folder => {
            let name = from.file_name().unwrap_or_default().as_encoded_bytes();
            absolute(node, written, [written.as_bytes(), name].concat())
        }
        _ => tree_path(node),
    }
}

/// Reads the content of a `[[file]]`, and whether that is a folder.
fn file_source(table: &Cursor<'_>, folder: &Path) -> Option<(FileSource, bool)> {
    match (table.take("from"), table.take("content")) {
        (Some(_), Some(_)) => {
            table.place("content").key_error("`from` and `content` exclude each other", "keep one of them");
            None
        }
        (Some(from), None) => {
            let source = from.parse(|written| sources::find(folder, written))?;
            Some((FileSource::From(source.path), source.is_folder))
        }
        (None, Some(content)) => Some((FileSource::Content(content.text()?), false)),
        (None, None) => table.node().fail(
            "`from` or `content` is missing",
            "`from` names a file or folder beside the spec, `content` is the text itself",
        ),
    }
}

/// Reads extended attributes. A name may be a quoted key, or a dotted one, which TOML reads as nested tables.
fn xattrs(node: &Node<'_>) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    if let Some(table) = node.open_table(&[], "as xattrs = { \"user.note\" = \"text\" }") {
        collect_xattrs(&table, "", &mut found);
    }
    found
}

fn collect_xattrs(table: &Cursor<'_>, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for (part, key) in table.entries() {
        let name = format!("{prefix}{part}");
        let Some(value) = &key.value else { continue };
        let is_value = |inner: &Cursor<'_>| inner.entries().iter().all(|(key, _)| VALUE_FORMS.contains(key));
        match value.as_table().and_then(|_| value.open_table(VALUE_FORMS, "")) {
            // A namespace alone has no value, so that a key below it is a part of a name, even `user.hex`.
            Some(inner) if names::XATTR_NAMESPACES.contains(&name.as_str()) || !is_value(&inner) => {
                collect_xattrs(&inner, &format!("{name}."), found);
            }
            _ => match names::xattr(&name) {
                Err(problem) => key.key_error(problem.message, problem.help),
                Ok(()) => {
                    if let Some(bytes) = xattr_value(value)
                        && found.insert(name, bytes).is_some()
                    {
                        key.key_error("this attribute is given twice", "");
                    }
                }
            },
        }
    }
}

/// Reads the value of an attribute: a string, `{ hex = "…" }` or `{ base64 = "…" }`.
fn xattr_value(node: &Node<'_>) -> Option<Vec<u8>> {
    if let Some(text) = node.as_str() {
        return bounded(node, text.as_bytes().to_vec());
    }
    if node.as_table().is_none() {
        return node.wrong_type("a string", "or { hex = \"…\" }, or { base64 = \"…\" } for bytes");
    }
    let table = node.table(VALUE_FORMS)?;
    match (table.take("hex"), table.take("base64")) {
        (Some(hex), None) => match values::hex(hex.string()?) {
            Some(bytes) => bounded(node, bytes),
            None => hex.fail("these are not hexadecimal digits, two a byte", ""),
        },
        (None, Some(base64)) => match values::base64(base64.string()?) {
            Some(bytes) => bounded(node, bytes),
            None => base64.fail("this is not base64 with its padding", ""),
        },
        _ => node.fail("an attribute's value is either `hex` or `base64`", ""),
    }
}

fn bounded(node: &Node<'_>, bytes: Vec<u8>) -> Option<Vec<u8>> {
    if bytes.len() > names::XATTR_SIZE_MAX {
        return node.fail(format!("the value has {} bytes, more than {}", bytes.len(), names::XATTR_SIZE_MAX), "");
    }
    Some(bytes)
}

fn capabilities(node: &Node<'_>) -> Option<Capabilities> {
    node.parse(|text| {
        Capabilities::parse(text).map_err(|error| {
            let known: Vec<String> = Capabilities::names().collect();
            let short = |name: &str| name.trim_start_matches("cap_").to_owned();
            let near = match &error {
                // The common prefix would make every name look near.
                CapabilityError::Unknown(name) => {
                    nearest::nearest(&short(name), known.iter().map(|known| &known["cap_".len()..]))
                        .map(ToOwned::to_owned)
                }
                _ => None,
            };
            let help = match near {
                Some(near) => format!("did you mean `cap_{near}`?"),
                None => "as \"cap_net_bind_service=ep\", the text form of setcap(8)".into(),
            };
            Problem::new(error.to_string(), help)
        })
    })
}

/// Reads one `[[device]]`.
pub(crate) fn device(node: &Node<'_>) -> Option<DeviceSpec> {
    let table = node.table(DEVICE_KEYS)?;
    let path = table.require("path", "as path = \"/dev/ttyS0\"").and_then(|node| tree_path(&node));
    let kind = table.require("type", "\"char\" or \"block\"").and_then(|node| match node.string()? {
        "char" => Some(DeviceKind::Char),
        "block" => Some(DeviceKind::Block),
        other => node.fail(format!("`{other}` is not a type of device"), "\"char\" or \"block\""),
    });
    let major =
        table.require("major", "the driver's number, as `ls -l` shows it").and_then(|node| node.integer(0..=MAJOR_MAX));
    let minor =
        table.require("minor", "the device's number, as `ls -l` shows it").and_then(|node| node.integer(0..=MINOR_MAX));
    let mode = table.take("mode").map(|node| values::mode_of(&node));
    let owner = table.take("owner").map(|node| values::owner_of(&node));
    Some(DeviceSpec {
        path: path?,
        kind: kind?,
        major: major?,
        minor: minor?,
        mode: mode.unwrap_or(Some(DeviceSpec::DEFAULT_MODE))?,
        owner: owner.flatten(),
    })
}

/// Reads one `[[binary]]`.
pub(crate) fn binary(node: &Node<'_>, folder: &Path) -> Option<BinarySpec> {
    let table = node.table(BINARY_KEYS)?;
    let cargo_name = |node: &Node<'_>| node.parse(|text| names::cargo(text).map(|()| text.to_owned()));
    let package = table.require("package", "a package of this Cargo workspace").and_then(|node| cargo_name(&node));
    let bin = table.take("bin").map(|node| cargo_name(&node));
    let manifest_path = table.take("manifest-path").map(|node| {
        let written = node.line()?;
        Some(SourcePath { written: written.into(), path: folder.join(written) })
    });
    let features = table.each("features", cargo_name);
    let to = table.take("to").map(|node| tree_path(&node));
    let mode = table.take("mode").map(|node| values::mode_of(&node));
    let owner = table.take("owner").map(|node| values::owner_of(&node));
    let package = package?;
    let bin = bin.unwrap_or_else(|| Some(package.clone()))?;
    let to = to.unwrap_or_else(|| TreePath::new(format!("{BINARY_FOLDER}/{bin}")).ok())?;
    Some(BinarySpec {
        package,
        bin,
        manifest_path: manifest_path.map_or(Some(None), |path| path.map(Some))?,
        features,
        to,
        mode: mode.unwrap_or(Some(BinarySpec::DEFAULT_MODE))?,
        owner: owner.flatten(),
    })
}

/// Reads one `[[secret]]`.
pub(crate) fn secret(node: &Node<'_>, folder: &Path) -> Option<SecretSpec> {
    let table = node.table(SECRET_KEYS)?;
    let id = table
        .require("id", "the name that steps read it by, as id = \"token\"")
        .and_then(|node| node.parse(|text| names::secret(text).map(|()| text.to_owned())));
    let source = table
        .require("from", "{ env = \"NAME\" } or { file = \"path\" }")
        .and_then(|node| secret_source(&node, folder));
    Some(SecretSpec { id: id?, source: source? })
}

/// Reads `{ env = "NAME" }`, `{ file = "path" }`, or a path.
fn secret_source(node: &Node<'_>, folder: &Path) -> Option<SecretSource> {
    let file = |node: &Node<'_>| {
        let written = node.line()?;
        Some(SecretSource::File(SourcePath { written: written.into(), path: folder.join(written) }))
    };
    if node.as_str().is_some() {
        return file(node);
    }
    let table = node.table(SECRET_SOURCES)?;
    match (table.take("file"), table.take("env")) {
        (Some(path), None) => file(&path),
        (None, Some(name)) => {
            name.parse(|text| names::environment(text).map(|()| SecretSource::Environment(text.into())))
        }
        _ => node.fail("a secret comes from exactly one place", "{ env = \"NAME\" } or { file = \"path\" }"),
    }
}
