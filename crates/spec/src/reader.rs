//! Reading a parsed TOML document: values and tables that report errors at their place, so that one reading finds every
//! error.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use toml_edit::{ArrayOfTables, Item, Table, TableLike, Value};

use super::error::{SpecError, SpecErrors, position};
use super::model::{Document, Located};
use super::nearest;

/// An error without its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub message: String,
    /// What would be right; may be empty.
    pub help: String,
}

impl Problem {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Problem { message: message.into(), help: help.into() }
    }
}

/// In one line, for values of the command line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.help.is_empty() { Ok(()) } else { write!(f, ": {}", self.help) }
    }
}

/// The errors found so far in one document.
#[derive(Debug)]
pub struct Diagnostics {
    document: Arc<Document>,
    errors: RefCell<Vec<SpecError>>,
}

impl Diagnostics {
    pub fn new(document: Arc<Document>) -> Self {
        Diagnostics { document, errors: RefCell::default() }
    }

    pub fn report(&self, span: Range<usize>, problem: Problem) {
        let error = SpecError::new(&self.document, span, problem.message);
        let error = if problem.help.is_empty() { error } else { error.help(problem.help) };
        self.errors.borrow_mut().push(error);
    }

    /// Returns `value` if nothing was reported.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, SpecErrors> {
        SpecErrors(self.errors.into_inner()).into_result(value)
    }
}

/// A value of the document, with its key.
#[derive(Clone)]
pub struct Node<'a> {
    diagnostics: &'a Diagnostics,
    name: Name<'a>,
    data: Data<'a>,
    span: Range<usize>,
}

/// The name of a value in messages.
#[derive(Clone)]
enum Name<'a> {
    Document,
    Key(&'a str),
    /// An item of the array under this key.
    ItemOf(&'a str),
}

#[derive(Clone, Copy)]
enum Data<'a> {
    Value(&'a Value),
    Table(&'a Table),
    Tables(&'a ArrayOfTables),
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Document => write!(f, "the spec"),
            Name::Key(key) => write!(f, "`{key}`"),
            Name::ItemOf(key) => write!(f, "each item of `{key}`"),
        }
    }
}

impl<'a> Node<'a> {
    /// Returns the root table of the document.
    pub fn root(diagnostics: &'a Diagnostics, table: &'a Table) -> Self {
        Node { diagnostics, name: Name::Document, data: Data::Table(table), span: 0..0 }
    }

    fn of_item(diagnostics: &'a Diagnostics, key: &'a str, item: &'a Item, key_span: Range<usize>) -> Option<Self> {
        let (data, span) = match item {
            Item::None => return None,
            Item::Value(value) => (Data::Value(value), value.span()),
            Item::Table(table) => (Data::Table(table), None),
            Item::ArrayOfTables(tables) => (Data::Tables(tables), None),
        };
        // The span of a table covers all of its lines, or is missing for dotted keys: its key is the better place.
        Some(Node { diagnostics, name: Name::Key(key), data, span: span.unwrap_or(key_span) })
    }

    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Returns the same value with another place, for errors about what was read from it.
    pub fn at(&self, span: Range<usize>) -> Node<'a> {
        Node { span, ..self.clone() }
    }

    /// Returns the value's text in the document.
    pub fn source(&self) -> &'a str {
        self.diagnostics.document.text.get(self.span()).unwrap_or_default()
    }

    /// Adds the place of this node to `value`.
    pub fn locate<T>(&self, value: T) -> Located<T> {
        let (line, column) = position(&self.diagnostics.document.text, self.span.start);
        Located { value, line, column, span: self.span() }
    }

    /// Reports an error here. Returns `None`, for the caller to return.
    pub fn fail<T>(&self, message: impl Into<String>, help: impl Into<String>) -> Option<T> {
        self.refuse(Problem::new(message, help))
    }

    /// As [`fail`](Self::fail), with a problem.
    pub fn refuse<T>(&self, problem: Problem) -> Option<T> {
        self.diagnostics.report(self.span(), problem);
        None
    }

    /// Reports that this has the wrong type; `wanted` has its article.
    pub fn wrong_type<T>(&self, wanted: &str, help: impl Into<String>) -> Option<T> {
        self.fail(format!("{} must be {wanted}, not {}", self.name, self.kind()), help)
    }

    fn kind(&self) -> &'static str {
        match self.data {
            Data::Value(Value::String(_)) => "a string",
            Data::Value(Value::Integer(_)) => "an integer",
            Data::Value(Value::Float(_)) => "a float",
            Data::Value(Value::Boolean(_)) => "a boolean",
            Data::Value(Value::Datetime(_)) => "a date",
            Data::Value(Value::Array(_)) => "an array",
            Data::Value(Value::InlineTable(_)) | Data::Table(_) => "a table",
            Data::Tables(_) => "an array of tables",
        }
    }

    pub fn as_str(&self) -> Option<&'a str> {
        match self.data {
            Data::Value(value) => value.as_str(),
            _ => None,
        }
    }

    pub fn as_integer(&self) -> Option<i64> {
        match self.data {
            Data::Value(value) => value.as_integer(),
            _ => None,
        }
    }

    pub fn is_float(&self) -> bool {
        matches!(self.data, Data::Value(Value::Float(_)))
    }

    pub fn is_array(&self) -> bool {
        matches!(self.data, Data::Value(Value::Array(_)) | Data::Tables(_))
    }

    pub fn as_table(&self) -> Option<&'a dyn TableLike> {
        match self.data {
            Data::Value(Value::InlineTable(table)) => Some(table),
            Data::Table(table) => Some(table),
            _ => None,
        }
    }

    /// Reads a string. NUL characters are errors, since neither paths nor arguments can have them.
    pub fn string(&self) -> Option<&'a str> {
        match self.as_str() {
            Some(text) if text.contains('\0') => self.fail(format!("{} holds a NUL character", self.name), ""),
            Some(text) => Some(text),
            None if self.as_integer().is_some() || self.is_float() => {
                self.wrong_type("a string", format!("write \"{}\"", self.source()))
            }
            None => self.wrong_type("a string", ""),
        }
    }

    /// Reads a string of any number of lines, with LF between them also where the spec itself is written with CRLF: TOML
    /// leaves that to its readers ("String"), and a shell takes a CR for a part of the last word.
    pub fn text(&self) -> Option<String> {
        let text = self.string()?;
        // A `\r` that is written as an escape is meant.
        Some(if self.source().contains("\r\n") { text.replace("\r\n", "\n") } else { text.to_owned() })
    }

    /// Reads a string of one line that is not blank.
    pub fn line(&self) -> Option<&'a str> {
        let text = self.string()?;
        if text.trim().is_empty() {
            return self.fail(format!("{} is empty", self.name), "");
        }
        if text.chars().any(|ch| ch.is_control() && ch != '\t') {
            return self.fail(format!("{} must be one line without control characters", self.name), "");
        }
        Some(text)
    }

    /// Reads a string and parses it.
    pub fn parse<T>(&self, parse: impl FnOnce(&str) -> Result<T, Problem>) -> Option<T> {
        parse(self.string()?).or_else(|problem| self.refuse(problem).ok_or(())).ok()
    }

    pub fn boolean(&self) -> Option<bool> {
        match self.data {
            Data::Value(Value::Boolean(value)) => Some(*value.value()),
            _ => self.wrong_type("`true` or `false`", ""),
        }
    }

    /// Reads an integer in `range`.
    pub fn integer(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let Some(value) = self.as_integer() else {
            return self.wrong_type("an integer", "");
        };
        match u32::try_from(value) {
            Ok(value) if range.contains(&value) => Some(value),
            _ => self.fail(format!("{} must be between {} and {}", self.name, range.start(), range.end()), ""),
        }
    }

    /// Returns the items of an array, or the tables of an array of tables.
    pub fn items(&self) -> Vec<Node<'a>> {
        let (diagnostics, Name::Key(key) | Name::ItemOf(key)) = (self.diagnostics, self.name.clone()) else {
            return Vec::new();
        };
        let item = |data, span: Option<Range<usize>>| Node {
            diagnostics,
            name: Name::ItemOf(key),
            data,
            span: span.unwrap_or(self.span()),
        };
        match self.data {
            Data::Value(Value::Array(array)) => {
                array.iter().map(|value| item(Data::Value(value), value.span())).collect()
            }
            Data::Tables(tables) => tables
                .iter()
                .map(|table| item(Data::Table(table), table.span().map(|span| self.header(span))))
                .collect(),
            Data::Table(_) | Data::Value(Value::InlineTable(_)) => {
                self.wrong_type("an array of tables", format!("begin each with [[{key}]]")).unwrap_or_default()
            }
            Data::Value(_) => self.wrong_type("an array", format!("write [{}]", self.source())).unwrap_or_default(),
        }
    }

    /// Reads every item of an array and returns those without errors.
    pub fn each<T>(&self, read: impl FnMut(&Node<'a>) -> Option<T>) -> Vec<T> {
        self.items().iter().filter_map(read).collect()
    }

    /// Returns the first line of a table's span: its header.
    fn header(&self, span: Range<usize>) -> Range<usize> {
        let text = self.diagnostics.document.text.get(span.clone()).unwrap_or_default();
        let line = text.split('\n').next().unwrap_or_default();
        span.start..span.start + line.trim_end().len()
    }

    /// Reads a table; keys other than `keys` are errors.
    pub fn table(&self, keys: &'static [&'static str]) -> Option<Cursor<'a>> {
        let mut cursor = self.open_table(keys, &format!("with the keys {}", nearest::list(keys.iter().copied())))?;
        for (key, place) in cursor.entries() {
            if !keys.contains(&key) {
                let help = nearest::suggestion(key, "the keys here are", keys.iter().copied());
                place.key_error(format!("unknown key `{key}`"), help);
                cursor.unknown.push(key);
            }
        }
        Some(cursor)
    }

    /// Reads a table whose keys the caller checks.
    pub fn open_table(&self, keys: &'static [&'static str], help: &str) -> Option<Cursor<'a>> {
        match self.as_table() {
            Some(table) => Some(Cursor { node: self.clone(), table, keys, unknown: Vec::new() }),
            None => self.wrong_type("a table", help),
        }
    }
}

/// A table of the document.
pub struct Cursor<'a> {
    node: Node<'a>,
    table: &'a dyn TableLike,
    keys: &'static [&'static str],
    /// Keys that were reported as unknown.
    unknown: Vec<&'a str>,
}

/// A key with its place and value.
pub struct Key<'a> {
    diagnostics: &'a Diagnostics,
    span: Range<usize>,
    pub value: Option<Node<'a>>,
}

impl Key<'_> {
    /// Reports an error at the key, not at its value.
    pub fn key_error(&self, message: impl Into<String>, help: impl Into<String>) {
        self.diagnostics.report(self.span.clone(), Problem::new(message, help));
    }
}

impl<'a> Cursor<'a> {
    pub fn node(&self) -> &Node<'a> {
        &self.node
    }

    /// Returns the keys of the table in the order of the text.
    pub fn entries(&self) -> Vec<(&'a str, Key<'a>)> {
        self.table.iter().map(|(key, _)| (key, self.key(key))).collect()
    }

    fn key(&self, key: &'a str) -> Key<'a> {
        let diagnostics = self.node.diagnostics;
        let (span, value) = match self.table.get_key_value(key) {
            Some((key_place, item)) => {
                let span = key_place.span().unwrap_or(self.node.span());
                (span.clone(), Node::of_item(diagnostics, key, item, span))
            }
            None => (self.node.span(), None),
        };
        Key { diagnostics, span, value }
    }

    /// Returns the value of `key`, if the table has it.
    pub fn take(&self, key: &'static str) -> Option<Node<'a>> {
        debug_assert!(self.keys.contains(&key), "`{key}` is missing in the table of valid keys");
        self.key(key).value
    }

    /// Returns a key that the table has, with its place.
    pub fn place(&self, key: &'static str) -> Key<'a> {
        self.key(key)
    }

    /// Returns whether the table has unknown keys.
    pub fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Returns the value of a required key. A missing one is an error, unless an unknown key looks like its misspelling.
    pub fn require(&self, key: &'static str, help: &str) -> Option<Node<'a>> {
        let misspelt = |unknown: &&str| nearest::nearest(unknown, self.keys.iter().copied()) == Some(key);
        self.take(key).or_else(|| match self.unknown.iter().find(|unknown| misspelt(unknown)) {
            Some(_) => None,
            None => self.node.fail(format!("`{key}` is missing"), help),
        })
    }

    /// Reads the items of the array under `key`, if the table has it.
    pub fn each<T>(&self, key: &'static str, read: impl FnMut(&Node<'a>) -> Option<T>) -> Vec<T> {
        self.take(key).map(|node| node.each(read)).unwrap_or_default()
    }
}
