//! Reads one `image.toml` into an [`ImageSpec`], or all of its errors.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use snug_ext4::size::SizePolicy;
use snug_formats::FilesystemKind;
use snug_rootfs::platform::Platform;
use snug_rootfs::regular_file::{self, RegularFileError};
use snug_rootfs::tree::TreePath;

use super::error::{SpecError, SpecErrors};
use super::filesystem::FilesystemChoice;
use super::model::{
    Base, Boot, BootCheck, Document, EngineKind, FileSource, ImageSpec, Located, Packages, RunStep, SourcePath,
    Tolerance,
};
use super::reader::{Cursor, Diagnostics, Node, Problem};
use super::{SPEC_FILE, filesystem, names, nearest, placement, sources, values};

const KEYS: &[&str] = &[
    "description",
    "base",
    "packages",
    "env",
    "hostname",
    "init",
    "file",
    "device",
    "binary",
    "secret",
    "run",
    "exclude",
    "min-size",
    "max-size",
    "headroom",
    "free-inodes",
    "tolerance",
    "filesystem",
    "engine",
    "platforms",
    "boot",
];
/// Keys that only a writable filesystem has.
const SIZING_KEYS: &[&str] = &["min-size", "max-size", "headroom", "free-inodes"];
/// The kinds of base, of which a spec has exactly one, each with its further keys.
const BASE_KINDS: [(&str, &[&str]); 4] =
    [("debian", &["snapshot", "variant"]), ("oci", &[]), ("image", &[]), ("tar", &["sha256"])];
const BASE_KEYS: &[&str] = &["debian", "snapshot", "variant", "oci", "image", "tar", "sha256"];
const PACKAGE_KEYS: &[&str] = &["system", "npm", "pip"];
const BOOT_KEYS: &[&str] = &["kernel", "arguments", "checks"];
const RUN_KEYS: &[&str] = &["shell", "network"];
const CHECK_KEYS: &[&str] = &["run", "prints", "within"];

const BASE_HELP: &str = "as base = { debian = \"trixie\" }; or `oci`, `image`, `tar` instead of `debian`";

/// The largest spec that is read, in bytes: far more than a hand-written file has, and little enough to keep in memory.
const SPEC_SIZE_MAX: u64 = 1 << 20;

/// Reads the spec of the image in `folder`.
pub fn read_image(folder: &Path) -> Result<ImageSpec, SpecErrors> {
    let path = folder.join(SPEC_FILE);
    let unreadable =
        |error: io::Error| SpecError::whole(&path, format!("cannot read the spec: {}", sources::reason(&error)));
    let bytes = regular_file::read(&path, SPEC_SIZE_MAX).map_err(|error| match error {
        RegularFileError::Io(error) => unreadable(error),
        RegularFileError::NotRegular(_) => SpecError::whole(&path, "the spec is not a file"),
        RegularFileError::TooLarge(max) => {
            SpecError::whole(&path, format!("the spec is larger than {} KiB", max >> 10))
        }
    })?;
    match String::from_utf8(bytes) {
        Ok(text) => parse_image(folder, text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            let document = Arc::new(Document { path, text });
            Err(SpecError::new(&document, valid..valid + 1, "the spec is not UTF-8 from here on").into())
        }
    }
}

/// Reads `text` as the spec of the image in `folder`. The files that it names are looked for there.
pub fn parse_image(folder: &Path, text: String) -> Result<ImageSpec, SpecErrors> {
    let document = Arc::new(Document { path: folder.join(SPEC_FILE), text });
    let parsed = match toml_edit::Document::parse(document.text.as_str()) {
        Ok(parsed) => parsed,
        Err(error) => {
            let end = document.text.len();
            return Err(SpecError::new(&document, error.span().unwrap_or(end..end), error.message().trim()).into());
        }
    };
    let diagnostics = Diagnostics::new(document.clone());
    let spec = image(&Node::root(&diagnostics, parsed.as_table()), folder, &document);
    diagnostics.finish(spec)
}

fn image(root: &Node<'_>, folder: &Path, document: &Arc<Document>) -> Option<ImageSpec> {
    let table = root.table(KEYS)?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Err(problem) = names::image(name) {
        root.refuse::<()>(problem);
    }
    let base = table.require("base", BASE_HELP).and_then(|node| base(&node, folder));
    let choice = table.take("filesystem").and_then(|node| filesystem::filesystem(&node)).unwrap_or_default();
    let spec = ImageSpec {
        name: name.to_owned(),
        folder: folder.to_path_buf(),
        document: document.clone(),
        description: table.take("description").and_then(|node| node.line().map(ToOwned::to_owned)),
        packages: table.take("packages").map(|node| packages(&node)).unwrap_or_default(),
        env: table.take("env").map(|node| environment(&node)).unwrap_or_default(),
        hostname: table.take("hostname").and_then(|node| checked(&node, names::hostname)),
        init: table.take("init").and_then(|node| init(&node, folder)),
        files: table.each("file", |node| placement::file(node, folder).map(|file| node.locate(file))),
        devices: table.each("device", |node| placement::device(node).map(|device| node.locate(device))),
        binaries: table.each("binary", |node| placement::binary(node, folder).map(|binary| node.locate(binary))),
        secrets: table.each("secret", |node| placement::secret(node, folder).map(|secret| node.locate(secret))),
        run: table.each("run", run_step),
        exclude: table.each("exclude", |node| checked(node, names::glob).map(|glob| node.locate(glob))),
        sizing: sizing(&table, &choice),
        tolerance: table.take("tolerance").and_then(|node| tolerance(&node)),
        filesystem: choice.filesystem,
        verity: choice.verity,
        overlay: choice.overlay,
        overlay_device: choice.overlay_device,
        engine: table.take("engine").and_then(|node| engine(&node)),
        platforms: table.each("platforms", platform),
        boot: table.take("boot").and_then(|node| boot(&node)),
        // Without a base there is an error, and no spec.
        base: base?,
    };
    refuse_duplicates(root, &spec);
    Some(spec)
}

/// Reads a string that `check` accepts.
fn checked(node: &Node<'_>, check: fn(&str) -> Result<(), Problem>) -> Option<String> {
    node.parse(|text| check(text).map(|()| text.to_owned()))
}

fn base(node: &Node<'_>, folder: &Path) -> Option<Located<Base>> {
    if node.as_table().is_none() {
        return node.wrong_type("a table", BASE_HELP);
    }
    let table = node.table(BASE_KEYS)?;
    let given: Vec<_> = BASE_KINDS.into_iter().filter(|(kind, _)| table.take(kind).is_some()).collect();
    let (kind, options) = match given[..] {
        [] if table.has_unknown() => return None,
        [] => return node.fail("`base` does not say what to start from", BASE_HELP),
        [only] => only,
        [first, second, ..] => {
            table.place(second.0).key_error(
                format!("two bases: `{}` and `{}`", first.0, second.0),
                "an image starts from exactly one; keep one of them",
            );
            return None;
        }
    };
    for key in BASE_KEYS.iter().filter(|key| !options.contains(*key) && **key != kind) {
        if table.take(key).is_some() {
            let owner = BASE_KINDS.iter().find(|(_, options)| options.contains(key)).map_or("", |(owner, _)| owner);
            table.place(key).key_error(format!("`{key}` goes with `{owner}`, and this base is `{kind}`"), "");
        }
    }
    let value = table.take(kind)?;
    let base = match kind {
        "debian" => {
            let snapshot = table.take("snapshot").map(|node| checked(&node, names::snapshot));
            let variant = table.take("variant").map(|node| variant(&node));
            Base::Debian {
                suite: checked(&value, names::suite)?,
                snapshot: snapshot.flatten(),
                variant: variant.flatten(),
            }
        }
        "oci" => Base::Oci { reference: value.parse(names::oci_reference)? },
        "image" => Base::Image { name: checked(&value, names::image)? },
        _ => {
            let sha256 = table.take("sha256").and_then(|node| node.parse(values::sha256));
            let written = value.line()?;
            Base::Tar { path: SourcePath { written: written.into(), path: folder.join(written) }, sha256 }
        }
    };
    Some(value.locate(base))
}

fn variant(node: &Node<'_>) -> Option<String> {
    let text = node.string()?;
    if names::VARIANTS.contains(&text) {
        return Some(text.to_owned());
    }
    node.fail(format!("unknown variant `{}`", text), nearest::suggestion(text, "the variants are", names::VARIANTS))
}

fn packages(node: &Node<'_>) -> Packages {
    let list = |node: &Node<'_>, check: fn(&str) -> Result<(), Problem>| {
        node.each(|item| checked(item, check).map(|package| item.locate(package)))
    };
    if node.is_array() {
        return Packages { system: list(node, names::system_package), ..Packages::default() };
    }
    if node.as_table().is_none() {
        return node
            .wrong_type("an array or a table", "as packages = [\"curl\"] or { system = […], npm = […], pip = […] }")
            .unwrap_or_default();
    }
    let Some(table) = node.table(PACKAGE_KEYS) else { return Packages::default() };
    let of = |key, check| table.take(key).map(|node| list(&node, check)).unwrap_or_default();
    Packages {
        system: of("system", names::system_package),
        npm: of("npm", names::npm_package),
        pip: of("pip", names::pip_package),
    }
}

fn environment(node: &Node<'_>) -> BTreeMap<String, String> {
    let Some(table) = node.open_table(&[], "as env = { LANG = \"C.UTF-8\" }") else { return BTreeMap::new() };
    let mut variables = BTreeMap::new();
    for (name, key) in table.entries() {
        if let Err(problem) = names::environment(name) {
            key.key_error(problem.message, problem.help);
        } else if let Some(value) = key.value.and_then(|value| value.string()) {
            variables.insert(name.to_owned(), value.to_owned());
        }
    }
    variables
}

fn init(node: &Node<'_>, folder: &Path) -> Option<Located<SourcePath>> {
    let source = node.parse(|written| sources::find(folder, written))?;
    if source.is_folder {
        return node.fail(format!("`{}` is a folder", source.path), "`init` names the file that becomes /init");
    }
    Some(node.locate(source.path))
}

/// Reads a command, or `{ shell = "…", network = false }`.
fn run_step(node: &Node<'_>) -> Option<Located<RunStep>> {
    if node.as_table().is_none() {
        return Some(node.locate(RunStep { shell: shell_command(node)?, network: true }));
    }
    let table = node.table(RUN_KEYS)?;
    let shell = table.require("shell", "the command that the step runs").and_then(|node| shell_command(&node));
    let network = table.take("network").map(|node| node.boolean());
    Some(node.locate(RunStep { shell: shell?, network: network.unwrap_or(Some(true))? }))
}

fn shell_command(node: &Node<'_>) -> Option<String> {
    let command = node.text()?;
    if command.trim().is_empty() {
        return node.fail("this step runs nothing", "");
    }
    Some(command)
}

fn sizing(table: &Cursor<'_>, choice: &FilesystemChoice) -> SizePolicy {
    let mut policy = SizePolicy::default();
    if let Some(bytes) = table.take("min-size").and_then(|node| values::size_of(&node)) {
        policy.min_size = bytes;
    }
    policy.max_size = table.take("max-size").and_then(|node| {
        let bytes = values::size_of(&node)?;
        if bytes < policy.min_size {
            let least = table.take("min-size").and_then(|least| least.as_str()).unwrap_or_default();
            let most = node.as_str().unwrap_or_default();
            return node.fail(
                format!("`min-size` ({least}) is above `max-size` ({most})"),
                "lower `min-size` or raise `max-size`",
            );
        }
        Some(bytes)
    });
    if let Some(headroom) = table.take("headroom").and_then(|node| values::headroom_of(&node)) {
        policy.headroom = headroom;
    }
    policy.free_inodes = table.take("free-inodes").and_then(|node| node.integer(0..=u32::MAX)).map(u64::from);
    let read_only =
        choice.filesystem.as_ref().map(|filesystem| filesystem.kind()).filter(|kind| *kind != FilesystemKind::Ext4);
    if let Some(kind) = read_only {
        for key in SIZING_KEYS.iter().filter(|key| table.take(key).is_some()) {
            table.place(key).key_error(
                format!("`{key}` has no meaning for {kind}, which is read-only and exactly as large as its content"),
                format!("remove `{key}`, or choose filesystem = \"ext4\""),
            );
        }
    }
    policy
}

fn tolerance(node: &Node<'_>) -> Option<Tolerance> {
    match node.as_integer() {
        Some(number) => node.fail("tolerance without a unit", format!("write \"{number}%\" or \"{number}MiB\"")),
        None => node.parse(values::tolerance),
    }
}

fn engine(node: &Node<'_>) -> Option<EngineKind> {
    node.parse(|text| {
        let names = EngineKind::ALL.map(EngineKind::as_str);
        EngineKind::from_str(text).map_err(|_| {
            Problem::new(format!("unknown engine `{}`", text), nearest::suggestion(text, "the engines are", names))
        })
    })
}

fn platform(node: &Node<'_>) -> Option<Platform> {
    node.parse(|text| {
        Platform::from_str(text).map_err(|_| {
            let help = match text.trim_start_matches("linux/") {
                "x86_64" | "x64" => format!("OCI calls it `{}`", Platform::Amd64),
                "aarch64" | "arm64/v8" => format!("OCI calls it `{}`", Platform::Arm64),
                _ => nearest::suggestion(text, "the platforms are", Platform::ALL.map(Platform::as_str)),
            };
            Problem::new(format!("unknown platform `{}`", text), help)
        })
    })
}

fn boot(node: &Node<'_>) -> Option<Boot> {
    let table = node.table(BOOT_KEYS)?;
    let kernel = table.take("kernel").and_then(|node| {
        if node.is_float() || node.as_integer().is_some() {
            let help = format!("write \"{}\": as numbers, 6.1 and 6.10 would be the same", node.source());
            return node.wrong_type("a string", help);
        }
        node.parse(values::kernel_version)
    });
    let arguments = table.each("arguments", |node| {
        let word = node.line()?;
        if word.contains(char::is_whitespace) && !word.contains('"') {
            return node.fail("one item is one word of the kernel's command line", "split it into several items");
        }
        Some(word.to_owned())
    });
    Some(Boot { kernel, arguments, checks: table.each("checks", boot_check) })
}

/// Reads `{ run = "…", prints = "…", within = "…" }`, or the command alone.
fn boot_check(node: &Node<'_>) -> Option<Located<BootCheck>> {
    if node.as_str().is_some() {
        return Some(node.locate(BootCheck { run: shell_command(node)?, prints: None, within: None }));
    }
    let table = node.table(CHECK_KEYS)?;
    let run = table.require("run", "the command to run in the guest").and_then(|node| shell_command(&node));
    let prints = table.take("prints").map(|node| node.string());
    let within = table.take("within").and_then(|node| node.parse(values::duration));
    Some(node.locate(BootCheck { run: run?, prints: prints.flatten().map(ToOwned::to_owned), within }))
}

/// Reports paths that are placed twice, and ids of secrets that are given twice: the later would silently win.
fn refuse_duplicates(root: &Node<'_>, spec: &ImageSpec) {
    let is_folder = |source: &FileSource| matches!(source, FileSource::From(path) if path.is_dir());
    let mut placed: BTreeMap<TreePath, usize> = BTreeMap::new();
    if let Some((init, path)) = spec.init.as_ref().zip(TreePath::new("init").ok()) {
        placed.insert(path, init.line);
    }
    let files = spec.files.iter().filter(|file| !is_folder(&file.source)).map(|file| (&file.to, file.line, &file.span));
    let binaries = spec.binaries.iter().map(|binary| (&binary.to, binary.line, &binary.span));
    let devices = spec.devices.iter().map(|device| (&device.path, device.line, &device.span));
    for (path, line, span) in files.chain(binaries).chain(devices) {
        if let Some(first) = placed.insert(path.clone(), line) {
            root.at(span.clone())
                .fail::<()>(format!("{path} is placed twice"), format!("the other one is on line {first}"));
        }
    }
    let mut secrets: BTreeMap<&str, usize> = BTreeMap::new();
    for secret in &spec.secrets {
        if let Some(first) = secrets.insert(&secret.id, secret.line) {
            let message = format!("two secrets have the id `{}`", secret.id);
            root.at(secret.span.clone()).fail::<()>(message, format!("the other one is on line {first}"));
        }
    }
}
