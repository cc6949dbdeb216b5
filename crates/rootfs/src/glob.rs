//! Patterns for paths of a tree: rooted at `/`, on bytes; a match stands for its whole subtree.

use super::tree::{RootTree, TreePath};

/// A pattern for paths of the tree, such as `/usr/share/doc/**/*.gz`.
///
/// Within one name `*` is any number of bytes (a leading dot is nothing special), `?` one byte, `[a-z]` one of a set,
/// `[!a-z]` one outside it, and `\` escapes the next byte. `**` as a whole name is any number of directories, including
/// none; at the end it is everything below. A slash at the end matches directories only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    source: Box<str>,
    names: Vec<Name>,
    only_directories: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    /// `**`
    AnyDepth,
    Pattern(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    AnyByte,
    AnyBytes,
    Set { ranges: Vec<(u8, u8)>, negated: bool },
}

/// Why a text is not a [`Glob`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    /// It does not begin with a slash.
    #[error("the pattern is not rooted: write `/{0}` for a path, `/**/{0}` for a name anywhere")]
    NotRooted(String),
    /// It matches the root.
    #[error("the pattern names the root itself, which cannot be removed")]
    Root,
    /// A component is `.` or `..`.
    #[error("`.` and `..` name no entry of the tree")]
    Dots,
    /// `**` is only a part of a component.
    #[error("`**` must stand alone between slashes")]
    DoubleStarInName,
    /// A set is not closed.
    #[error("a `[` without its `]`; write `\\[` for the character itself")]
    OpenSet,
    /// A range of a set is empty.
    #[error("the range `{}-{}` is empty", from.escape_ascii(), to.escape_ascii())]
    EmptyRange {
        /// Its first byte.
        from: u8,
        /// Its last byte, which is less.
        to: u8,
    },
    /// A component ends in a backslash.
    #[error("a `\\` at the end of a name escapes nothing")]
    TrailingBackslash,
}

impl Glob {
    /// Parses a pattern.
    pub fn new(source: &str) -> Result<Self, GlobError> {
        let rooted = source.strip_prefix('/').ok_or_else(|| GlobError::NotRooted(source.to_string()))?;
        let mut names = Vec::new();
        for name in rooted.as_bytes().split(|&byte| byte == b'/') {
            match name {
                b"" => {}
                b"." | b".." => return Err(GlobError::Dots),
                b"**" if names.last() == Some(&Name::AnyDepth) => {}
                b"**" => names.push(Name::AnyDepth),
                _ => names.push(Name::Pattern(tokens(name)?)),
            }
        }
        if names.is_empty() {
            return Err(GlobError::Root);
        }
        if names.last() == Some(&Name::AnyDepth) {
            names.push(Name::Pattern(vec![Token::AnyBytes]));
        }
        Ok(Glob { source: source.into(), names, only_directories: source.ends_with('/') })
    }

    /// Returns the pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether the pattern matches `path` itself; paths below a match do not count.
    pub fn matches(&self, path: &TreePath, is_directory: bool) -> bool {
        self.matches_names(&path.components().collect::<Vec<_>>(), is_directory)
    }

    fn matches_names(&self, names: &[&[u8]], is_directory: bool) -> bool {
        if names.is_empty() || self.only_directories && !is_directory {
            return false;
        }
        let name_fits = |name: &&[u8], pattern: &Name| match pattern {
            Name::AnyDepth => false,
            Name::Pattern(tokens) => {
                wildcard(name, tokens, |token| *token == Token::AnyBytes, |&byte, token| token.matches(byte))
            }
        };
        wildcard(names, &self.names, |name| *name == Name::AnyDepth, name_fits)
    }
}

impl Token {
    fn matches(&self, byte: u8) -> bool {
        match self {
            Token::Byte(wanted) => *wanted == byte,
            Token::AnyByte => true,
            Token::AnyBytes => false,
            Token::Set { ranges, negated } => ranges.iter().any(|&(from, to)| (from..=to).contains(&byte)) != *negated,
        }
    }
}

/// Matches items against a pattern in which some elements stand for any number of items. Going back to the last of them
/// alone is enough, so this takes at most items × pattern steps.
fn wildcard<T, P>(items: &[T], pattern: &[P], is_star: impl Fn(&P) -> bool, fits: impl Fn(&T, &P) -> bool) -> bool {
    let (mut item, mut at) = (0, 0);
    let mut retry: Option<(usize, usize)> = None;
    while item < items.len() {
        if at < pattern.len() && is_star(&pattern[at]) {
            retry = Some((item, at + 1));
            at += 1;
        } else if at < pattern.len() && fits(&items[item], &pattern[at]) {
            item += 1;
            at += 1;
        } else if let Some((from, after_star)) = retry {
            retry = Some((from + 1, after_star));
            (item, at) = (from + 1, after_star);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(is_star)
}

fn tokens(name: &[u8]) -> Result<Vec<Token>, GlobError> {
    let mut tokens = Vec::new();
    let mut rest = name;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        tokens.push(match byte {
            b'?' => Token::AnyByte,
            b'*' if tokens.last() == Some(&Token::AnyBytes) => return Err(GlobError::DoubleStarInName),
            b'*' => Token::AnyBytes,
            b'[' => set(&mut rest)?,
            b'\\' => Token::Byte(take(&mut rest).ok_or(GlobError::TrailingBackslash)?),
            _ => Token::Byte(byte),
        });
    }
    Ok(tokens)
}

/// Reads a set from behind its `[`. A `]` in the first place and a `-` in the first or last are themselves.
fn set(rest: &mut &[u8]) -> Result<Token, GlobError> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    if negated {
        *rest = &rest[1..];
    }
    let mut ranges = Vec::new();
    loop {
        let from = match take(rest).ok_or(GlobError::OpenSet)? {
            b']' if !ranges.is_empty() => return Ok(Token::Set { ranges, negated }),
            b'\\' => take(rest).ok_or(GlobError::OpenSet)?,
            byte => byte,
        };
        let mut to = from;
        if let [b'-', end, ..] = **rest
            && end != b']'
        {
            *rest = &rest[2..];
            to = if end == b'\\' { take(rest).ok_or(GlobError::OpenSet)? } else { end };
        }
        if to < from {
            return Err(GlobError::EmptyRange { from, to });
        }
        ranges.push((from, to));
    }
}

fn take(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, after) = rest.split_first()?;
    *rest = after;
    Some(byte)
}

/// Removes what the patterns match, with all below it. Returns for each pattern how many paths it matched, whatever the
/// others matched too, so that one that matches nothing can be reported.
pub fn exclude(tree: &mut RootTree, globs: &[Glob]) -> Vec<usize> {
    let (paths, counts) = matched(tree, globs);
    for path in paths {
        tree.remove(&path);
    }
    counts
}

/// Returns the paths that any pattern matches, without those below another one, and how many each pattern matches.
pub(super) fn matched(tree: &RootTree, globs: &[Glob]) -> (Vec<TreePath>, Vec<usize>) {
    let mut counts = vec![0; globs.len()];
    let mut inside: Vec<Option<&TreePath>> = vec![None; globs.len()];
    let mut paths: Vec<TreePath> = Vec::new();
    for entry in tree.entries() {
        let names: Vec<&[u8]> = entry.path.components().collect();
        for (index, glob) in globs.iter().enumerate() {
            // A directory is followed by all that is in it, so the last match alone can hold this path.
            if inside[index].is_some_and(|top| entry.path.is_within(top))
                || !glob.matches_names(&names, entry.inode.is_directory())
            {
                continue;
            }
            counts[index] += 1;
            inside[index] = Some(entry.path);
            if !paths.last().is_some_and(|top| entry.path.is_within(top)) {
                paths.push(entry.path.clone());
            }
        }
    }
    (paths, counts)
}

#[cfg(test)]
mod tests {
    use super::super::tree::{BodySource, Inode, Kind};
    use super::*;

    fn matches(glob: &str, raw: &str) -> bool {
        Glob::new(glob).unwrap().matches(&TreePath::new(raw).unwrap(), false)
    }

    #[test]
    fn patterns_match_as_their_documentation_says() {
        for (glob, yes, no) in [
            ("/a/*.gz", &["a/x.gz", "a/.gz"][..], &["a/b/x.gz", "a/x.gz/y", "x.gz"][..]),
            ("/a/**/b", &["a/b", "a/x/b", "a/x/y/b", "a/b/b"], &["a", "a/x/c", "ab", "a/xb"]),
            ("/a/**", &["a/b", "a/b/c"], &["a", "b"]),
            ("/**/__pycache__", &["__pycache__", "x/y/__pycache__"], &["x/__pycache__.d", "x__pycache__"]),
            ("/**/a*b*c/**/d", &["abc/d", "x/aXbXc/y/d"], &["x/acb/d", "abc"]),
            ("/[a-cx]?", &["a1", "x2"], &["d1", "a", "a12"]),
            ("/[!a-c]", &["d", "]"], &["a"]),
            ("/[]-]", &["]", "-"], &["a"]),
            (r"/\*\[", &["*["], &["a["]),
            (r"/[\]a]", &["]", "a"], &["\\"]),
            ("//a//b", &["a/b"], &["a"]),
        ] {
            yes.iter().for_each(|path| assert!(matches(glob, path), "{glob} should match {path}"));
            no.iter().for_each(|path| assert!(!matches(glob, path), "{glob} should not match {path}"));
        }
        let raw = TreePath::new(b"caf\xe9").unwrap();
        assert!(Glob::new("/caf?").unwrap().matches(&raw, false));
        assert!(Glob::new("/*/").unwrap().matches(&raw, true) && !Glob::new("/*/").unwrap().matches(&raw, false));
    }

    #[test]
    fn a_bad_pattern_says_what_is_wrong() {
        let errors = ["usr/doc", "/", "/a/../b", "/a**", "/[a", "/[z-a]", r"/a\", "/[]"];
        let errors: Vec<String> = errors.iter().map(|raw| format!("{raw}: {}", Glob::new(raw).unwrap_err())).collect();
        insta::assert_snapshot!(errors.join("\n"));
    }

    #[test]
    fn a_match_takes_the_subtree_and_every_pattern_is_counted_alone() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for name in ["usr/doc/a/x.gz", "usr/doc/b.gz", "usr/bin/sh", "usr-doc"] {
            tree.insert(TreePath::new(name).unwrap(), Inode::new(Kind::Fifo, 0o644)).unwrap();
        }
        let globs = ["/usr/doc", "/**/*.gz", "/nothing"].map(|raw| Glob::new(raw).unwrap());
        assert_eq!(exclude(&mut tree, &globs), [1, 2, 0]);
        let left: Vec<String> = tree.entries().map(|entry| entry.path.to_string()).collect();
        assert_eq!(left, ["/", "/usr", "/usr/bin", "/usr/bin/sh", "/usr-doc"]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_pattern_or_an_error(raw in ".*", path in "[a-z*/.\\[]{0,40}") {
            if let (Ok(glob), Ok(path)) = (Glob::new(&raw), TreePath::new(path)) {
                glob.matches(&path, true);
            }
        }
    }
}
