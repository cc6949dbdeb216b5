//! Layers made by the `tar` crate, merged by us; each test is named after a sentence of layer.md.

use super::super::tree::{Entry, Kind};
use super::*;

/// One entry: `dir/`, `file=content`, `link->target`, `link=>target` for a hard link.
fn layer(entries: &[&str]) -> Vec<u8> {
    let mut archive = ::tar::Builder::new(Vec::new());
    for entry in entries {
        let mut header = ::tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(1);
        let mut content = "";
        // The crate cleans names; a stranger does not.
        let name = |header: &mut ::tar::Header, name: &str| {
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        };
        if let Some((path, target)) = entry.split_once("->") {
            name(&mut header, path);
            header.set_entry_type(::tar::EntryType::Symlink);
            header.set_link_name_literal(target).unwrap();
        } else if let Some((path, target)) = entry.split_once("=>") {
            name(&mut header, path);
            header.set_entry_type(::tar::EntryType::Link);
            header.set_link_name_literal(target).unwrap();
        } else if let Some((path, text)) = entry.split_once('=') {
            name(&mut header, path);
            content = text;
        } else {
            name(&mut header, entry);
            header.set_entry_type(::tar::EntryType::Directory);
            header.set_mode(0o755);
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        archive.append(&header, content.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap()
}

fn merge(layers: &[&[&str]]) -> Result<RootTree, LayerError> {
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &LIMITS)?;
    for entries in layers {
        merged.apply(layer(entries).as_slice())?;
    }
    merged.finish()
}

/// The tree in the words of [`layer`], without the root.
fn show(tree: &RootTree) -> Vec<String> {
    let line = |entry: Entry<'_>| {
        let path = entry.path.to_string();
        let path = path.trim_start_matches('/');
        if let Some(first) = entry.hard_link_to {
            return format!("{path}=>{}", first.to_string().trim_start_matches('/'));
        }
        match &entry.inode.kind {
            Kind::Directory => format!("{path}/"),
            Kind::File(body) => {
                format!("{path}={}", String::from_utf8(tree.bodies().read_to_vec(body).unwrap()).unwrap())
            }
            Kind::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            other => format!("{path} is a {}", other.noun()),
        }
    };
    tree.entries().skip(1).map(line).collect()
}

#[track_caller]
fn assert_merges(layers: &[&[&str]], expected: &[&str]) {
    assert_eq!(show(&merge(layers).unwrap()), expected);
}

#[track_caller]
fn assert_refused(layers: &[&[&str]], expected: &str) {
    assert_eq!(merge(layers).map(|tree| show(&tree)).unwrap_err().to_string(), expected);
}

#[test]
fn a_whiteout_hides_a_file_or_a_directory_of_lower_layers() {
    let lower: &[&str] = &["etc/", "etc/a=1", "etc/b=2", "etc/d/", "etc/d/deep=3"];
    assert_merges(&[lower, &["etc/.wh.a=", "etc/.wh.d="]], &["etc/", "etc/b=2"]);
    // What is not there has nothing to hide.
    assert_merges(
        &[lower, &["etc/.wh.none=", "none/.wh.x=", "etc/a/.wh.x="]],
        &["etc/", "etc/a=1", "etc/b=2", "etc/d/", "etc/d/deep=3"],
    );
}

#[test]
fn a_whiteout_hides_nothing_of_its_own_layer_wherever_it_stands() {
    let expected = &["etc/", "etc/a=new"];
    assert_merges(&[&["etc/", "etc/a=old"], &["etc/a=new", "etc/.wh.a="]], expected);
    assert_merges(&[&["etc/", "etc/a=old"], &["etc/.wh.a=", "etc/a=new"]], expected);
    assert_merges(&[&["d/", "d/a=1", "d/s/", "d/s/x=1"], &["d/", "d/b=2", "d/.wh..wh..opq="]], &["d/", "d/b=2"]);
    assert_merges(&[&["d/", "d/a=1", "d/s/", "d/s/x=1"], &["d/", "d/.wh..wh..opq=", "d/s/"]], &["d/", "d/s/"]);
}

#[test]
fn a_file_replaces_a_directory_and_the_reverse() {
    assert_merges(&[&["a/", "a/b/", "a/b/c=1"], &["a=file"]], &["a=file"]);
    assert_merges(&[&["a=file"], &["a/", "a/b=1"]], &["a/", "a/b=1"]);
    assert_merges(&[&["a->b", "b/", "b/x=1"], &["a/", "a/y=2"]], &["a/", "a/y=2", "b/", "b/x=1"]);
    assert_merges(&[&["a/", "a/b=1", "f=2"], &["a=>f"]], &["a=2", "f=>a"]);
}

#[test]
fn a_directory_keeps_its_entries_and_takes_new_attributes() {
    let tree = merge(&[&["d/", "d/a=1"], &["d/"], &["d/b=2"]]).unwrap();
    assert_eq!(show(&tree), ["d/", "d/a=1", "d/b=2"]);
    // The third layer only implies the directory, which says nothing of its attributes.
    assert_eq!(tree.get(&TreePath::new("d").unwrap()).unwrap().mtime.seconds, 1);
}

#[test]
fn hard_links_reach_into_lower_layers_and_part_when_one_name_changes() {
    let lower: &[&str] = &["a=1", "b=>a"];
    assert_merges(&[lower, &["c=>b"]], &["a=1", "b=>a", "c=>a"]);
    assert_merges(&[lower, &["a=2"]], &["a=2", "b=1"]);
    assert_merges(&[lower, &[".wh.a="]], &["b=1"]);
    assert_merges(&[lower, &["a=2", "c=>a"], &[".wh.a="]], &["b=1", "c=2"]);
    assert_merges(&[lower, &["/d=>/b"]], &["a=1", "b=>a", "d=>a"]);
}

#[test]
fn a_symlink_on_the_way_is_followed_inside_the_tree() {
    let usrmerge: &[&str] = &["usr/", "usr/lib/", "usr/lib/a=1", "lib->usr/lib", "abs->/../usr/lib"];
    let expected = &["abs->/../usr/lib", "lib->usr/lib", "usr/", "usr/lib/", "usr/lib/b=2"];
    assert_merges(&[usrmerge, &["lib/b=2", "lib/.wh.a="]], expected);
    assert_merges(&[usrmerge, &["abs/b=2", "abs/.wh..wh..opq="]], expected);
    let linked = &["abs->/../usr/lib", "lib->usr/lib", "usr/", "usr/lib/", "usr/lib/a=1", "usr/lib/c=>usr/lib/a"];
    assert_merges(&[usrmerge, &["abs/c=>lib/a"]], linked);
}

#[test]
fn marks_of_aufs_mean_nothing() {
    assert_merges(
        &[&["a=1", ".wh..wh.plnk/", ".wh..wh.plnk/5.6=x", ".wh..wh.aufs=", "d/", "d/.wh..wh.x="]],
        &["a=1", "d/"],
    );
}

#[test]
fn an_empty_layer_and_one_without_an_end_marker_are_layers() {
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &LIMITS).unwrap();
    merged.apply(&[][..]).unwrap();
    let whole = layer(&["a=1"]);
    merged.apply(&whole[..1024]).unwrap();
    merged.apply(&layer(&["b=2"])[..1536]).unwrap();
    assert_eq!(show(&merged.finish().unwrap()), ["a=1", "b=2"]);
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &LIMITS).unwrap();
    assert_eq!(
        merged.apply(&whole[..512]).unwrap_err().to_string(),
        "`a`: the archive ends 1 byte before the entry's data does"
    );
}

#[test]
fn hostile_layers_are_refused_by_name() {
    let hides = "a whiteout that hides no name that a directory can hold";
    assert_refused(&[&["etc/", "etc/.wh...="]], &format!("/etc/.wh...: {hides}"));
    assert_refused(&[&["etc/.wh..="]], &format!("/etc/.wh..: {hides}"));
    assert_refused(&[&[".wh.="]], &format!("/.wh.: {hides}"));
    let above = "would leave the root through `..`\nhint: archive a root filesystem relative to its root, as `tar -C ROOT -c .` does";
    assert_refused(&[&["../.wh.etc="]], &format!("`../.wh.etc`: the name {above}"));
    assert_refused(
        &[&["a=1"], &[".wh..wh..opq="]],
        "/.wh..wh..opq: an opaque whiteout at the root, which would hide every layer below",
    );
    assert_refused(&[&[".wh.a/", ".wh.a/b=1"]], "/.wh.a/b is below a whiteout, which holds nothing");
    assert_refused(
        &[&["a->b", "b->a", "a/x=1"]],
        "/a/x: too many symlinks on the way to /a (ELOOP)\nhint: they lead round in a circle, through more than 40 others, or through thousands of names",
    );
    assert_refused(
        &[&["a->../../f", "f=1"], &["a/b/x=1"]],
        "/a/b/x is below a symlink that leads to /f, and that is a file",
    );
    assert_refused(&[&["a=1"], &["a/b=1"]], "/a/b needs /a to be a directory, and it is a file");
    let missing = |path: &str, target: &str| {
        format!(
            "{path} is a hard link to {target}, which does not exist\n\
             hint: the file comes before its links; was it left out when the archive was made, or moved behind them?"
        )
    };
    assert_refused(&[&["a=>later", "later=1"]], &missing("/a", "/later"));
    assert_refused(&[&["a=>b", "b=>a"]], &missing("/a", "/b"));
    assert_refused(&[&["a=>a"]], &missing("/a", "/a"));
    assert_refused(
        &[&["a=1"], &["b=>/../../a"]],
        "`b`: hard link to `/../../a`: the target would leave the root through `..`\n\
         hint: the target of a hard link is the name of another entry, relative to the root and not to the link",
    );
    assert_refused(&[&["d/"], &["a=>d"]], "/a is a hard link to /d, which is a directory");
    assert_refused(&[&["a/", "a/b=1"], &["a=>a/b"]], "/a is already a directory and cannot become a hard link");
    assert_refused(&[&["./=>a"]], &missing("/", "/a"));
}

#[test]
fn the_limits_hold_for_all_layers_together() {
    let limits = Limits { entries: 4, ..LIMITS };
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &limits).unwrap();
    merged.apply(layer(&["a=1", "b=2"]).as_slice()).unwrap();
    let error = merged.apply(layer(&["a=1", "b=2", "c=3"]).as_slice()).unwrap_err();
    assert_eq!(error.to_string(), "`c` exceeds the limit of 4 entries");
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &limits).unwrap();
    merged.apply(layer(&["a=1"]).as_slice()).unwrap();
    let error = merged.apply(layer(&["1/2/3/4/5=x"]).as_slice()).unwrap_err();
    assert_eq!(error.to_string(), "`1/2/3/4/5` exceeds the limit of 4 entries");
    let limits = Limits { data_bytes: 3, ..LIMITS };
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &limits).unwrap();
    merged.apply(layer(&["a=12"]).as_slice()).unwrap();
    let error = merged.apply(layer(&["b=34"]).as_slice()).unwrap_err();
    assert_eq!(error.to_string(), "`b` exceeds the limit of 3 bytes of data");
}

/// A layer of a million and one empty files, counted from 0, never in memory as a whole.
struct TooMany {
    block: [u8; 512],
    next: usize,
    at: usize,
}

impl TooMany {
    fn new() -> Self {
        let block = layer(&["0000000="])[..512].try_into().unwrap();
        TooMany { block, next: 0, at: 512 }
    }

    /// The header of the next file: the same but for its name and checksum (ustar: name at 0, checksum at 148).
    fn turn(&mut self) {
        self.block[..7].copy_from_slice(format!("{:07}", self.next).as_bytes());
        self.block[148..156].fill(b' ');
        let sum: u32 = self.block.iter().map(|&byte| u32::from(byte)).sum();
        self.block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.next += 1;
        self.at = 0;
    }
}

impl Read for TooMany {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == 512 {
            if self.next > LIMITS.entries {
                return Ok(0);
            }
            self.turn();
        }
        let count = buffer.len().min(512 - self.at);
        buffer[..count].copy_from_slice(&self.block[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[test]
fn one_entry_more_than_a_million_is_refused() {
    let mut merged = Layers::new(tempfile::tempfile().unwrap(), &LIMITS).unwrap();
    let error = merged.apply(TooMany::new()).unwrap_err();
    // Counted from 0: the million before it were taken.
    assert_eq!(error.to_string(), "`1000000` exceeds the limit of 1000000 entries");
}
