//! Which characters of text that strangers wrote may be shown as they are: names in archives, attributes, what a registry or
//! a build step says.

use std::borrow::Cow;

/// Whether a terminal, a log or a reader takes the character for no more than itself.
///
/// Not printable are control characters (C0, DEL and C1: terminals obey them, ECMA-48), the separators of lines and paragraphs
/// (U+2028, U+2029), and those that reorder the text around them (Unicode's UAX #9, "Directional Formatting Characters"),
/// which can show a name as another one.
pub fn is_printable(ch: char) -> bool {
    let reorders =
        matches!(ch, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let ends_line = matches!(ch, '\u{2028}' | '\u{2029}');
    !(ch.is_control() || reorders || ends_line)
}

/// Returns text in one line, with what is not [printable](is_printable) as Rust escapes it: `\n`, `\u{1b}`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, |_| false)
}

/// As [`escaped`], with the characters that `keep` returns true for as they are.
pub fn escaped_but(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    let shown_as_it_is = |ch: char| is_printable(ch) || keep(ch);
    if text.chars().all(shown_as_it_is) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for ch in text.chars() {
        if shown_as_it_is(ch) { shown.push(ch) } else { shown.extend(ch.escape_default()) }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_and_what_reorders_text_is_not_printable() {
        for ch in ['\0', '\t', '\n', '\r', '\u{1b}', '\u{7f}', '\u{80}', '\u{9b}', '\u{9f}', '\u{202e}', '\u{2069}'] {
            assert!(!is_printable(ch), "{ch:?}");
        }
        for ch in [' ', '~', '\u{a0}', 'é', '東', '\u{301}', '😀'] {
            assert!(is_printable(ch), "{ch:?}");
        }
        assert_eq!(escaped("a\u{1b}]0;x\u{7}\r\nb\u{9b}\u{202e}"), r"a\u{1b}]0;x\u{7}\r\nb\u{9b}\u{202e}");
        assert_eq!(escaped_but("a\n\tb\r", |ch| ch == '\n'), "a\n\\tb\\r");
    }
}
