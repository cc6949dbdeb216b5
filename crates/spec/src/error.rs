//! Errors that show their place: file, line, column, the line itself with a caret, and help.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use snug_rootfs::printable::is_printable;
use unicode_width::UnicodeWidthChar;

use super::model::{Document, Located};

/// Columns of the terminal that a shown line may take; of a longer one, the part around the caret is shown.
const SHOWN_WIDTH: usize = 100;
/// Columns kept before the caret when the beginning of a line is cut off.
const CONTEXT_WIDTH: usize = 40;
/// Columns of a tab in a shown line, whatever the terminal's tab stops are.
const TAB_WIDTH: usize = 4;

/// One thing that is wrong with one spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecError {
    document: Arc<Document>,
    /// `None`: the file as a whole, which cannot be read.
    span: Option<Range<usize>>,
    message: String,
    help: Vec<String>,
}

/// Everything that is wrong with one spec or more, in the order of the text. Never empty as an `Err`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecErrors(pub Vec<SpecError>);

impl SpecError {
    /// Makes an error at `span`, in bytes of the document's text.
    pub fn new(document: &Arc<Document>, span: Range<usize>, message: impl Into<String>) -> Self {
        let end = document.text.len();
        let span = span.start.min(end)..span.end.clamp(span.start.min(end), end);
        SpecError { document: document.clone(), span: Some(span), message: message.into(), help: Vec::new() }
    }

    /// Makes an error at a value that was read from the document.
    pub fn at<T>(document: &Arc<Document>, place: &Located<T>, message: impl Into<String>) -> Self {
        Self::new(document, place.span.clone(), message)
    }

    /// Makes an error about a file as a whole.
    pub fn whole(path: &Path, message: impl Into<String>) -> Self {
        let document = Arc::new(Document { path: path.to_path_buf(), text: String::new() });
        SpecError { document, span: None, message: message.into(), help: Vec::new() }
    }

    /// Adds a sentence that says what would be right.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// Returns the path of the spec.
    pub fn path(&self) -> &Path {
        &self.document.path
    }

    /// Returns what is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what would be right, one sentence each.
    pub fn helps(&self) -> &[String] {
        &self.help
    }

    /// Returns the place in bytes of the text; `None`: the file as a whole.
    pub fn span(&self) -> Option<Range<usize>> {
        self.span.clone()
    }

    /// Returns line and column, in characters, both counted from 1; `None`: the file as a whole.
    pub fn position(&self) -> Option<(usize, usize)> {
        self.span.as_ref().map(|span| position(&self.document.text, span.start))
    }
}

impl SpecErrors {
    /// Returns `value` if there are no errors, else the errors in order.
    pub(super) fn into_result<T>(mut self, value: Option<T>) -> Result<T, SpecErrors> {
        self.0.sort_by_key(|error| error.span.as_ref().map(|span| (span.start, span.end)));
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl From<SpecError> for SpecErrors {
    fn from(error: SpecError) -> Self {
        SpecErrors(vec![error])
    }
}

impl std::error::Error for SpecError {}
impl std::error::Error for SpecErrors {}

/// Returns line and column, in characters, of a byte of `text`, both counted from 1.
pub fn position(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "error: {}", printable(&self.message))?;
        let path = printable(&relative(&self.document.path).to_string_lossy());
        let Some(span) = &self.span else {
            write!(f, " --> {path}")?;
            return self.help.iter().try_for_each(|help| write!(f, "\n = help: {}", printable(help)));
        };
        let (line, column) = position(&self.document.text, span.start);
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let (shown, before, under) = excerpt(&self.document.text, span);
        writeln!(f, "{margin}--> {path}:{line}:{column}")?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{}", format!("{number} | {shown}").trim_end())?;
        write!(f, "{margin} | {}{}", " ".repeat(before), "^".repeat(under))?;
        self.help.iter().try_for_each(|help| write!(f, "\n{margin} = help: {}", printable(help)))
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        for error in &self.0 {
            write!(f, "{between}{error}")?;
            between = "\n\n";
        }
        Ok(())
    }
}

/// Returns the path from the current directory, if it is below that or is that itself.
fn relative(path: &Path) -> &Path {
    let current = std::env::current_dir().unwrap_or_default();
    match path.strip_prefix(current) {
        Ok(below) if below.as_os_str().is_empty() => Path::new("."),
        Ok(below) => below,
        Err(_) => path,
    }
}

/// Returns the line that `span` starts in, safe for a terminal, with the columns before and under the caret.
fn excerpt(text: &str, span: &Range<usize>) -> (String, usize, usize) {
    let line_start = text[..span.start].rfind('\n').map_or(0, |newline| newline + 1);
    let line_end = text[span.start..].find('\n').map_or(text.len(), |newline| span.start + newline);
    let cells: Vec<(usize, String, usize)> = text[line_start..line_end]
        .char_indices()
        .map(|(at, ch)| {
            let (cell, width) = cell(ch);
            (line_start + at, cell, width)
        })
        .collect();
    let columns = |from: usize, to: usize| -> usize {
        cells.iter().filter(|(at, ..)| (from..to).contains(at)).map(|(.., width)| width).sum()
    };
    let mut before = columns(0, span.start);
    let under = columns(span.start, span.end.min(line_end)).max(1);
    if before + under.min(SHOWN_WIDTH - CONTEXT_WIDTH) <= SHOWN_WIDTH && columns(0, usize::MAX) <= SHOWN_WIDTH {
        return (cells.into_iter().map(|(_, cell, _)| cell).collect(), before, under);
    }
    // The shown part starts with some context before the caret, and ends where the width is used up.
    let hidden = if before + under > SHOWN_WIDTH { before.saturating_sub(CONTEXT_WIDTH) } else { 0 };
    let (mut column, mut shown, mut shown_width, mut cut) = (0, String::new(), 0, 0);
    for (_, cell, width) in cells {
        if column < hidden {
            cut += width;
        } else if shown_width + width > SHOWN_WIDTH {
            shown.push('…');
            break;
        } else {
            shown.push_str(&cell);
            shown_width += width;
        }
        column += width;
    }
    before -= cut;
    if cut > 0 {
        shown.insert(0, '…');
        before += 1;
        shown_width += 1;
    }
    (shown, before, under.min(shown_width.saturating_sub(before)).max(1))
}

/// Escapes newlines and control characters of a spec's text for a message.
fn printable(text: &str) -> String {
    text.chars().map(|ch| if ch == '\n' { ch.escape_default().to_string() } else { cell(ch).0 }).collect()
}

/// Returns how a character is shown, and its columns. Control characters are escaped: a spec is untrusted input, and a
/// terminal would obey them.
fn cell(ch: char) -> (String, usize) {
    match ch {
        '\t' => (" ".repeat(TAB_WIDTH), TAB_WIDTH),
        '\r' => (String::new(), 0),
        ch if !is_printable(ch) => {
            let escaped = ch.escape_unicode().to_string();
            let width = escaped.len();
            (escaped, width)
        }
        ch => (ch.to_string(), columns_of(ch)),
    }
}

/// Returns the columns of a printable character in a terminal: two for wide ones, none for combining ones (Unicode's UAX #11).
fn columns_of(ch: char) -> usize {
    ch.width().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error at `needle` in `text`, as a person sees it.
    fn shown(text: &str, needle: &str) -> String {
        let document = Arc::new(Document { path: "images/x/image.toml".into(), text: text.into() });
        let start = text.find(needle).unwrap();
        SpecError::new(&document, start..start + needle.len(), "wrong").to_string()
    }

    /// Where the caret points, seen in columns: what stands above it in the shown line.
    fn above_caret(shown: &str) -> String {
        let lines: Vec<&str> = shown.lines().collect();
        let column =
            |line: &str| -> Vec<char> { line.chars().flat_map(|ch| std::iter::repeat_n(ch, columns_of(ch))).collect() };
        let (text, carets) = (column(lines[3]), column(lines[4]));
        text.iter().zip(carets).filter(|(_, caret)| *caret == '^').map(|(ch, _)| *ch).collect()
    }

    #[test]
    fn the_form_is_that_of_rustc() {
        let document = Arc::new(Document { path: "images/x/image.toml".into(), text: "a = 1\nbad = 2\n".into() });
        let error = SpecError::new(&document, 6..9, "unknown key `bad`").help("did you mean `base`?");
        insta::assert_snapshot!(error, @r"
        error: unknown key `bad`
         --> images/x/image.toml:2:1
          |
        2 | bad = 2
          | ^^^
          = help: did you mean `base`?
        ");
        insta::assert_snapshot!(SpecError::whole(Path::new("images"), "cannot read it").help("look"), @r"
        error: cannot read it
         --> images
         = help: look
        ");
    }

    #[test]
    fn the_caret_stands_under_its_text_whatever_is_before_it() {
        assert_eq!(above_caret(&shown("\t\ta\t= key", "key")), "key");
        assert_eq!(above_caret(&shown("\"größe\" = key", "key")), "key");
        assert_eq!(above_caret(&shown("\"日本語\" = key", "key")), "key");
        assert_eq!(above_caret(&shown("\"e\u{301}🎉\" = key", "key")), "key");
        assert_eq!(above_caret(&shown("\u{1b}[31m\u{202e} = key\r\nnext", "key")), "key");
        assert_eq!(above_caret(&shown("x = \"日本\"", "\"日本\"")), "\"日日本本\"");
        for before in [0, 39, 40, 41, 80, 97, 98, 99, 100, 101, 500, 5000] {
            for after in [0, 1, 50, 99, 100, 101, 5000] {
                let text = format!("{}key{}", "é".repeat(before), "-".repeat(after));
                let shown = shown(&text, "key");
                assert_eq!(above_caret(&shown), "key", "{before} {after}\n{shown}");
                assert!(shown.lines().all(|line| line.chars().count() < SHOWN_WIDTH + 10), "{shown}");
            }
        }
    }

    #[test]
    fn a_span_over_several_lines_is_marked_on_its_first() {
        let shown = shown("run = \"\"\"\none\ntwo\"\"\"\n", "\"\"\"\none\ntwo\"\"\"");
        assert_eq!(above_caret(&shown), "\"\"\"");
        assert_eq!(shown.lines().count(), 5);
    }

    #[test]
    fn an_error_at_the_end_or_beyond_has_a_caret() {
        let document = Arc::new(Document { path: "x".into(), text: "a".into() });
        for span in [1..1, 0..9, 7..9] {
            assert!(SpecError::new(&document, span, "wrong").to_string().contains('^'));
        }
    }

    #[test]
    fn a_terminal_gets_nothing_to_obey() {
        let document = Arc::new(Document { path: "a\u{1b}b".into(), text: "\u{1b}[2J\u{7}".into() });
        let shown = SpecError::new(&document, 0..1, "unknown key `\u{1b}\n`").help("\u{202e}").to_string();
        assert!(shown.chars().all(|ch| ch == '\n' || is_printable(ch)), "{shown}");
        assert!(shown.starts_with("error: unknown key `\\u{1b}\\n`\n"));
    }
}
