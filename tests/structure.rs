//! The layers of the code: a module of `xtask/src` imports only modules below it, and neighbours in one folder never import
//! each other in a cycle. Crates need no such test, since cargo refuses cycles of crates. `docs/architecture.md` has the same
//! list for people.
//!
//! Nothing is compiled: the sources are read for `mod`, `use` and paths that begin with `crate`, `self` or `super`. Tests are
//! left out; they may import anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use snug_tests::workspace;

/// The modules of `xtask/src` from the top down, each with the crates of this workspace that it may import. A module imports
/// only modules below it. `docs/architecture.md` has the same list.
const LAYOUT: &[(&str, &[&str])] = &[
    ("cli", &["process", "sandbox"]),
    ("commands", &["ext4", "formats", "process", "rootfs", "sandbox", "spec"]),
    ("bench", &["formats", "process", "rootfs"]),
    ("image", &["ext4", "formats", "process", "rootfs", "spec"]),
    ("check", &["ext4", "formats", "process", "rootfs"]),
    ("tree", &["process", "rootfs"]),
    ("engine", &["process", "rootfs", "sandbox"]),
    ("manifest", &["ext4", "formats", "rootfs"]),
    ("plan", &["rootfs", "spec"]),
    ("filesystem", &["ext4", "formats", "process", "rootfs", "sandbox"]),
    ("bases", &["process", "rootfs", "sandbox"]),
    ("steps", &["process", "sandbox"]),
    ("cache", &["process", "rootfs", "sandbox"]),
    ("atomic", &["process", "rootfs"]),
    ("host", &["process", "sandbox"]),
    ("report", &["ext4", "rootfs"]),
    ("error", &["process", "spec"]),
    ("jobs", &[]),
    ("workspace", &[]),
];

/// One import: the file that has it, what it imports as a path of modules from the crate's root, and the words themselves.
#[derive(Debug, Clone)]
struct Import {
    file: PathBuf,
    from: Vec<String>,
    to: Vec<String>,
    written: String,
}

/// The modules of one crate and what they import of each other and of this workspace's crates.
struct Sources {
    /// Path from the crate's root, and its file.
    modules: BTreeMap<Vec<String>, PathBuf>,
    imports: Vec<Import>,
}

impl Sources {
    /// Reads the crate whose root module is `src/lib.rs` in `folder`.
    fn read(folder: &Path) -> Self {
        let mut sources = Sources { modules: BTreeMap::new(), imports: Vec::new() };
        let root = folder.join("src/lib.rs");
        let mut texts = BTreeMap::new();
        sources.declare(Vec::new(), &root, &mut texts);
        for (module, text) in &texts {
            for written in paths(text) {
                let Some(to) = sources.resolve(module, &written, &texts) else { continue };
                let (file, from) = (sources.modules[module].clone(), module.clone());
                sources.imports.push(Import { file, from, to, written: written.join("::") });
            }
        }
        sources
    }

    /// Notes the module and, by its `mod` lines, those in it.
    fn declare(&mut self, module: Vec<String>, file: &Path, texts: &mut BTreeMap<Vec<String>, String>) {
        let text = without_tests(&without_comments(&fs::read_to_string(file).expect("a source")));
        let folder = match file.file_name().and_then(|name| name.to_str()) {
            Some("lib.rs" | "mod.rs") => file.parent().expect("a folder").to_path_buf(),
            _ => file.with_extension(""),
        };
        for name in text.lines().filter_map(declared) {
            let beside = folder.join(format!("{name}.rs"));
            let inside = folder.join(name).join("mod.rs");
            let place = if beside.is_file() { beside } else { inside };
            let path = [module.clone(), vec![name.to_owned()]].concat();
            self.declare(path, &place, texts);
        }
        self.modules.insert(module.clone(), file.to_path_buf());
        texts.insert(module, text);
    }

    /// The module that a path written in `module` leads to, as far as its words are modules; a name that the module at its
    /// end only hands on is followed once. Paths of this workspace's crates begin with `snug_`.
    fn resolve(
        &self,
        module: &[String],
        written: &[String],
        texts: &BTreeMap<Vec<String>, String>,
    ) -> Option<Vec<String>> {
        let mut words = written.iter();
        let first = words.next()?;
        let mut at = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module[..module.len().checked_sub(1)?].to_vec(),
            name if name.starts_with("snug_") => return Some(vec![name.to_owned()]),
            // `use x::Name` of a module in this one.
            name => {
                let child = [module, &[name.to_owned()]].concat();
                self.modules.contains_key(&child).then_some(child)?
            }
        };
        for word in words {
            if word == "super" {
                at.pop()?;
                continue;
            }
            let next = [at.clone(), vec![word.clone()]].concat();
            if self.modules.contains_key(&next) {
                at = next;
                continue;
            }
            let handed_on = paths(&texts[&at]).into_iter().find(|path| path.last() == Some(word) && path.len() > 1);
            let leads = handed_on.filter(|path| path[0] == "self" || self.is_child(&at, &path[0]));
            if let Some(path) = leads {
                let path: Vec<String> = path.into_iter().filter(|word| word != "self").collect();
                let child = [at.clone(), vec![path[0].clone()]].concat();
                if self.modules.contains_key(&child) {
                    at = child;
                }
            }
            break;
        }
        Some(at)
    }

    fn is_child(&self, module: &[String], name: &str) -> bool {
        self.modules.contains_key(&[module, &[name.to_owned()]].concat())
    }
}

/// The name that a line `mod name;` declares.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line
        .strip_prefix("mod ")
        .or_else(|| line.split_once(" mod ").filter(|(before, _)| before.starts_with("pub")).map(|(_, rest)| rest))?;
    rest.strip_suffix(';')
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

/// The text without the item behind each `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept += &rest[..at];
        let item = &rest[at..];
        let (end, open) = (item.find(';'), item.find('{'));
        rest = match (end, open) {
            (Some(end), Some(open)) if end < open => &item[end + 1..],
            (Some(end), None) => &item[end + 1..],
            // A module of tests closes at the margin.
            _ => item.find("\n}").map_or("", |close| &item[close + 2..]),
        };
    }
    kept + rest
}

/// Every path in the text that begins with `crate`, `self`, `super` or a crate of this workspace, and every path of a `use`.
fn paths(text: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for statement in text.split(';') {
        let start = statement.rfind("\nuse ").or_else(|| statement.rfind("use ")).filter(|at| {
            let before = statement[..*at].trim_end();
            before.is_empty() || before.ends_with(['}', ']', ')', '{']) || before.ends_with("pub")
        });
        if let Some(at) = start {
            expand(statement[at..].trim_start().trim_start_matches("use "), &[], &mut found);
        }
    }
    for head in ["crate::", "super::", "self::", "snug_"] {
        for (at, _) in text.match_indices(head) {
            let inside_word =
                text[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':');
            if !inside_word {
                let path: Vec<String> = text[at..]
                    .split("::")
                    .map_while(|word| {
                        let end = word.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(word.len());
                        (end > 0).then(|| (word[..end].to_owned(), end == word.len()))
                    })
                    .scan(true, |goes_on, (word, whole)| std::mem::replace(goes_on, whole).then_some(word))
                    .collect();
                found.push(path);
            }
        }
    }
    found
}

/// Takes `a::{b, c::d}` apart.
fn expand(tree: &str, before: &[String], found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    if let Some((head, group)) = tree.split_once('{') {
        let mut path = before.to_vec();
        path.extend(head.split("::").map(str::trim).filter(|word| !word.is_empty()).map(ToOwned::to_owned));
        let (mut depth, mut start) = (0, 0);
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    expand(&group[start..at], &path, found);
                    return;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    expand(&group[start..at], &path, found);
                    start = at + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let name = tree.split(" as ").next().unwrap_or_default();
    let mut path = before.to_vec();
    path.extend(
        name.split("::")
            .map(str::trim)
            .filter(|word| !word.is_empty() && *word != "self" || before.is_empty())
            .map(ToOwned::to_owned),
    );
    if path.len() > before.len() || (!before.is_empty() && name == "self") {
        found.push(path);
    }
}

/// An arrow from a module to a neighbour in the same folder, with one import that makes it.
type Arrows = BTreeMap<(Vec<String>, Vec<String>), Import>;

/// What the neighbours of every folder import of each other.
fn arrows(sources: &Sources) -> Arrows {
    let mut arrows = Arrows::new();
    for import in &sources.imports {
        let shared = import.from.iter().zip(&import.to).take_while(|(a, b)| a == b).count();
        // A module and one that holds it are no neighbours.
        if import.from.len() > shared && import.to.len() > shared && !import.to[0].starts_with("snug_") {
            let ends = (import.from[..=shared].to_vec(), import.to[..=shared].to_vec());
            arrows.entry(ends).or_insert_with(|| import.clone());
        }
    }
    arrows
}

/// One cycle of neighbours, if there is any, as the imports that make it.
fn cycle(arrows: &Arrows) -> Option<Vec<&Import>> {
    let starts: BTreeSet<&Vec<String>> = arrows.keys().map(|(from, _)| from).collect();
    starts.into_iter().find_map(|start| {
        let (mut pending, mut came_by) = (vec![start], BTreeMap::new());
        while let Some(at) = pending.pop() {
            for ((from, to), import) in arrows {
                if from != at || came_by.contains_key(to) {
                    continue;
                }
                came_by.insert(to, (from, import));
                if to == start {
                    let (mut way, mut here) = (Vec::new(), start);
                    loop {
                        let (before, import) = came_by[here];
                        way.push(import);
                        here = before;
                        if here == start {
                            way.reverse();
                            return Some(way);
                        }
                    }
                }
                pending.push(to);
            }
        }
        None
    })
}

fn crates() -> Vec<PathBuf> {
    let folder = workspace().join("crates");
    let mut crates: Vec<PathBuf> =
        fs::read_dir(folder).expect("crates/").map(|entry| entry.expect("an entry").path()).collect();
    crates.push(workspace().join("xtask"));
    crates.sort();
    crates
}

fn shown(import: &Import, sources: &Sources) -> String {
    let here = |path: &Path| path.strip_prefix(workspace()).unwrap_or(path).display().to_string();
    let there = sources.modules.get(&import.to).map(|file| here(file)).unwrap_or_else(|| import.to.join("::"));
    format!("{} imports `{}` of {there}", here(&import.file), import.written)
}

#[test]
fn no_neighbours_import_each_other_in_a_cycle() {
    for folder in crates() {
        let sources = Sources::read(&folder);
        assert!(sources.modules.len() > 1 && !sources.imports.is_empty(), "{} was not read", folder.display());
        let arrows = arrows(&sources);
        if let Some(cycle) = cycle(&arrows) {
            let cycle: Vec<String> = cycle.into_iter().map(|import| shown(import, &sources)).collect();
            panic!("a cycle:\n  {}", cycle.join("\n  "));
        }
    }
}

#[test]
fn modules_import_only_modules_below_them() {
    let sources = Sources::read(&workspace().join("xtask"));
    let rank = |module: &str| LAYOUT.iter().position(|(name, _)| *name == module);
    let mut wrong = Vec::new();
    for module in sources.modules.keys().filter(|module| module.len() == 1) {
        if rank(&module[0]).is_none() {
            wrong.push(format!("{} has no place in the layout of tests/structure.rs", module[0]));
        }
    }
    for import in &sources.imports {
        let (Some(from), Some(to)) = (import.from.first(), import.to.first()) else { continue };
        let Some(place) = rank(from) else { continue };
        let allowed = match to.strip_prefix("snug_") {
            Some(name) => LAYOUT[place].1.contains(&name),
            None => from == to || rank(to).is_some_and(|below| below > place),
        };
        if !allowed {
            wrong.push(shown(import, &sources));
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "the layout forbids:\n  {}", wrong.join("\n  "));
}

/// The rows of the table below `title` in `docs/architecture.md`: the name in the first column, and those in the last one.
fn documented(title: &str) -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(workspace().join("docs/architecture.md")).expect("docs/architecture.md");
    let (_, section) = text.split_once(&format!("\n### {title}\n")).expect("the title");
    let section = section.split("\n#").next().expect("a first part");
    let names = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect() };
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|line| line.trim_matches('|').split('|').collect::<Vec<_>>());
    cells.map(|cells| (names(cells[0]).remove(0), names(cells[cells.len() - 1]))).collect()
}

#[test]
fn the_documented_layers_are_these() {
    let modules = LAYOUT.iter().map(|(name, crates)| ((*name).to_owned(), crates.iter().map(|&name| name.to_owned())));
    let modules: Vec<(String, Vec<String>)> = modules.map(|(name, crates)| (name, crates.collect())).collect();
    assert_eq!(documented("Modules of `xtask/src`"), modules);

    let mut documented = documented("Crates");
    documented.sort();
    let libraries = crates().into_iter().filter(|folder| !folder.ends_with("xtask"));
    let manifests = libraries.map(|folder| {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("a manifest");
        let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap_or_default();
        let dependencies = dependencies.lines().take_while(|line| !line.starts_with('['));
        let ours = dependencies.filter_map(|line| line.strip_prefix("snug-")?.split(['.', ' ', '=']).next());
        let name = folder.strip_prefix(workspace()).expect("a crate of the workspace").display().to_string();
        (name, ours.map(ToOwned::to_owned).collect())
    });
    assert_eq!(documented, manifests.collect::<Vec<(String, Vec<String>)>>());
}

/// A process that is started by the standard library alone may outlive the tool, and no signal ends it.
#[test]
fn child_processes_are_started_by_snug_process() {
    // A killed dpkg leaves packages half configured: what `--setup` starts as root is left to end.
    let may = ["xtask/src/host/setup.rs"].map(|path| workspace().join(path));
    let starts = [".spawn()", "command.status()", "command.output()"];
    let mut wrong = Vec::new();
    for (_, file) in Sources::read(&workspace().join("xtask")).modules {
        let text = without_tests(&without_comments(&fs::read_to_string(&file).expect("a source")));
        if !may.contains(&file) && starts.iter().any(|start| text.contains(start)) {
            wrong.push(file);
        }
    }
    assert!(wrong.is_empty(), "snug_process::Child starts processes, not std: {wrong:?}");
}

/// A print macro panics where its stream fails, and nothing else writes to the streams than what is made for that.
#[test]
fn what_is_printed_may_fail() {
    let may = [
        "xtask/src/report/streams.rs",
        // The sandbox's child speaks to its parent, and the shell of a failed step to the terminal.
        "crates/sandbox/src/lib.rs",
        "crates/sandbox/src/child.rs",
        "crates/sandbox/src/terminal.rs",
    ];
    let macros = ["println!(", "print!(", "eprintln!(", "eprint!(", "dbg!("];
    let handles =
        ["stdout().lock()", "stderr().lock()", "io::stdout().write", "io::stderr().write", "mut io::stdout()"];
    let mut wrong = Vec::new();
    for folder in crates() {
        for (_, file) in Sources::read(&folder).modules {
            let text = without_tests(&without_comments(&fs::read_to_string(&file).expect("a source")));
            let exempt = may.iter().any(|place| workspace().join(place) == file);
            if macros.iter().any(|name| text.contains(name))
                || !exempt && handles.iter().any(|name| text.contains(name))
            {
                wrong.push(file);
            }
        }
    }
    assert!(wrong.is_empty(), "report::streams writes to the standard streams: {wrong:?}");
}

/// `docs/security.md` has a row for each file with unsafe code, and each block has its reason before it, which clippy asserts.
#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let here = |path: &Path| path.strip_prefix(workspace()).expect("a file of the workspace").display().to_string();
    let mut found = Vec::new();
    for folder in crates() {
        let sources = Sources::read(&folder);
        for (_, file) in sources.modules {
            let text = without_tests(&without_comments(&fs::read_to_string(&file).expect("a source")));
            let words = text.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            if words.into_iter().any(|word| word == "unsafe") {
                found.push(here(&file));
            }
        }
    }
    found.sort();
    let text = fs::read_to_string(workspace().join("docs/security.md")).expect("docs/security.md");
    let (_, section) = text.split_once("\n## Unsafe code\n").expect("the title");
    let rows = section.split("\n#").next().expect("a first part").lines();
    let listed: Vec<&str> = rows.filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(found, listed, "the code, and docs/security.md");
}

#[test]
fn the_test_sees_what_it_is_there_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let place = folder.path().join("src").join(name);
        fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        fs::write(place, text).expect("a source");
    };
    write("lib.rs", "pub mod a;\nmod b;\npub(crate) mod c;\n");
    write(
        "a.rs",
        "//! use crate::b::Not;\nuse std::io;\nuse crate::{\n    b::Thing,\n    c,\n};\n#[cfg(test)]\nmod tests {\n    use crate::x::Y;\n}\n",
    );
    write("b.rs", "pub struct Thing;\nfn f() { crate::c::g() }\n");
    write("c/mod.rs", "mod deep;\npub use deep::Handed;\npub fn g() {}\n");
    write("c/deep.rs", "use super::g;\npub struct Handed;\nfn h() { super::super::b::f() }\n");
    let sources = Sources::read(folder.path());
    assert_eq!(sources.modules.len(), 5);
    let arrows = arrows(&sources);
    let names: Vec<String> = arrows.keys().map(|(from, to)| format!("{}>{}", from.join("::"), to.join("::"))).collect();
    assert_eq!(names, ["a>b", "a>c", "b>c", "c>b"]);
    let cycle = cycle(&arrows).expect("b and c");
    assert_eq!(cycle.len(), 2);
    assert!(cycle.iter().any(|import| import.written == "super::super::b::f"), "{cycle:?}");
}
