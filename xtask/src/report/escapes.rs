//! Text for a terminal or a log. Nearly all of it has a part that strangers wrote (names in archives, what a registry, a step
//! or a guest says), so that nothing in it may be obeyed: titles, the clipboard, a cleared screen (ECMA-48; xterm's "Control
//! Sequences").
//!
//! The tool's own styles pass by [`with_styles`], and by the lines that move, which are written below all of this.

use std::borrow::Cow;

use snug_rootfs::printable::{escaped_but, is_printable};

/// Returns text without the escape sequences of terminals (ECMA-48) and without other control characters than the ends of
/// lines: what a program says for a terminal of its own. Tabs become spaces; what reorders text stays, for [`visible`].
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(next) = rest.next() {
        // Each control of 8 bits (C1) is another form of ESC and a character 0x40 below.
        let kind = match next {
            '\u{1b}' => rest.next_if(|c| *c != '\n'),
            '\u{80}'..='\u{9f}' => char::from_u32(u32::from(next) - 0x40),
            _ => None,
        };
        match (next, kind) {
            // A control sequence ends in a byte from `@` to `~`; none goes beyond its line.
            (_, Some('[')) => while rest.next_if(|c| *c != '\n').is_some_and(|c| !('@'..='~').contains(&c)) {},
            // Strings (operating system commands, device control, and so on) end in BEL or ST, which is ESC `\`.
            (_, Some(']' | 'P' | 'X' | '^' | '_')) => {
                while let Some(c) = rest.next_if(|c| *c != '\n') {
                    if matches!(c, '\u{7}' | '\u{9c}') || (c == '\u{1b}' && rest.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            // Of two characters, or of three where the second is an intermediate one.
            (_, Some(' '..='/')) => drop(rest.next_if(|c| *c != '\n')),
            (_, Some(_)) => {}
            ('\t', None) => plain.push(' '),
            // A progress bar overwrites its line: the last state is what counts.
            ('\r', None) if !matches!(rest.peek(), None | Some('\n')) => {
                plain.truncate(plain.rfind('\n').map_or(0, |end| end + 1));
            }
            ('\n', None) => plain.push(next),
            (c, None) if c.is_control() => {}
            (c, None) => plain.push(c),
        }
    }
    plain
}

/// Returns text in its lines, with all else that is not [printable](is_printable) escaped: `\u{1b}`, `\r`. Tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    escaped_but(text, |ch| matches!(ch, '\n' | '\t'))
}

/// As [`visible`], with colours and other styles as they are (ECMA-48, "Select graphic rendition"), for text that the tool has
/// styled.
pub fn with_styles(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        let (before, sequence) = rest.split_at(start);
        shown += &visible(before);
        let parameters = sequence[2..].find(|c: char| !(c.is_ascii_digit() || matches!(c, ';' | ':')));
        let end = parameters.map(|end| end + 2).filter(|end| sequence[*end..].starts_with('m'));
        let (kept, after) = sequence.split_at(end.map_or(2, |end| end + 1));
        if end.is_some() {
            shown.push_str(kept)
        } else {
            shown += &visible(kept)
        }
        rest = after;
    }
    shown + &visible(rest)
}

/// Returns JSON in which nothing is left for a terminal or a log to obey: strings are the only place where such characters may
/// stand (RFC 8259, 7), and there they can be escaped. So is `##[`, the older form of [commands](super::github).
pub fn in_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for ch in json.chars() {
        if is_printable(ch) || ch == '\n' {
            shown.push(ch);
        } else {
            for unit in ch.encode_utf16(&mut [0; 2]) {
                shown += &format!("\\u{unit:04x}");
            }
        }
    }
    shown.replace("##[", r"\u0023#[")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_go_and_text_stays() {
        let text = "\u{1b}[1;31mred\u{1b}[0m\tand\u{1b}]0;title\u{7} \u{1b}]8;;x\u{1b}\\plain\u{1b}(B\u{8}\r\n 1 %\r99 %\rend \u{1b}[2K\u{1b}7…";
        assert_eq!(plain(text), "red and plain\nend …");
        assert_eq!(plain("\u{1b}"), "");
    }

    #[test]
    fn no_sequence_takes_more_than_its_line_and_those_of_8_bits_are_known() {
        assert_eq!(plain("a\u{9b}31mb\u{9d}0;title\u{9c}c\u{90}q\u{1b}\\d\u{85}e"), "abcde");
        for open in ["\u{1b}]52;c;", "\u{1b}[", "\u{1b}P", "\u{1b}(", "\u{1b}", "\u{9d}"] {
            assert_eq!(plain(&format!("{open}\nnext")), "\nnext", "{open:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        let hostile = "a\u{1b}]0;x\u{7}\u{1b}]52;c;eA==\u{7}\u{1b}[2J\u{9b}2J\r::warning::\u{202e}b\tc\nd";
        assert_eq!(
            visible(hostile),
            "a\\u{1b}]0;x\\u{7}\\u{1b}]52;c;eA==\\u{7}\\u{1b}[2J\\u{9b}2J\\r::warning::\\u{202e}b\tc\nd"
        );
        assert!(matches!(visible("plain\ntext"), Cow::Borrowed(_)));
    }

    #[test]
    fn styles_pass_where_they_are_the_tools_own_and_nothing_else_does() {
        let styled = "\u{1b}[1m\u{1b}[38;5;1merror:\u{1b}[0m \u{1b}[2J\u{1b}]0;x\u{7}\u{1b}[";
        assert_eq!(with_styles(styled), "\u{1b}[1m\u{1b}[38;5;1merror:\u{1b}[0m \\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{1b}[");
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({ "name": "a\u{9b}2J\u{202e}\u{7f}\u{2028}##[error]\n😀é" });
        let shown = in_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(shown.chars().all(|ch| is_printable(ch) || ch == '\n') && !shown.contains("##["), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
