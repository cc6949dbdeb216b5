//! Masking secrets in what is printed: as they are, and as programs commonly print them, in base64, in hexadecimal digits and
//! percent-encoded; also where blanks or ends of lines came between, since programs break lines, and secrets have several.
//!
//! It protects against a step that prints a secret by mistake. One that means to give it away has other ways.

use std::borrow::Cow;
use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::secret::{SHORTEST, Secret};
use crate::report::escapes::plain;
use crate::report::proxies;

/// What replaces a secret in output.
const MASK: &str = "***";
/// Most lines without text that are held back with what may be the beginning of a secret.
const BLANK_LINES: usize = 1000;

/// Of a form that no other character has a part in.
const NO_EDGES: [bool; 2] = [false; 2];

/// What secrets look like in output.
#[derive(Debug, Default)]
pub struct Mask {
    forms: Vec<Form>,
    /// Whether a form begins with two bytes, by [`pair`]: nearly all places of a text are passed over by one look at this.
    /// Empty without secrets.
    begins: Vec<bool>,
}

/// One look of a secret.
#[derive(Debug)]
struct Form {
    /// Without blanks, as text is searched.
    bytes: Vec<u8>,
    /// Whether it is the secret itself, which also stands in what is percent-encoded.
    is_itself: bool,
    /// Whether the character before it, and the one after it, hold bits of the secret, too, as those of base64 may.
    has_edges: [bool; 2],
}

impl Mask {
    /// The mask of these secrets, and of the passwords of the caller's proxies.
    pub fn new(secrets: &[Secret]) -> Self {
        let mut mask = Mask::default();
        for secret in secrets {
            let core = secret.core();
            let text = plain(&String::from_utf8_lossy(core));
            // A secret of several lines is also masked line by line.
            for part in std::iter::once(text.as_str()).chain(text.lines()) {
                mask.add(part.as_bytes(), true, NO_EDGES);
            }
            mask.add(base16ct::lower::encode_string(core).as_bytes(), false, NO_EDGES);
            mask.add(base16ct::upper::encode_string(core).as_bytes(), false, NO_EDGES);
            // It may stand in the middle of what was encoded, as a password behind its user's name does: its bits then
            // begin at any of three places in a group of four characters.
            for before in 0..3 {
                let bytes = [&[0; 2][..before], core].concat();
                // Characters that hold nothing but bits of the secret: from the first whole one to the last.
                let whole = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
                let has_edges = [before > 0, bytes.len() * 8 % 6 > 0];
                for encoded in [STANDARD_NO_PAD.encode(&bytes), URL_SAFE_NO_PAD.encode(&bytes)] {
                    mask.add(encoded.get(whole.clone()).unwrap_or_default().as_bytes(), false, has_edges);
                }
            }
        }
        // Steps get these too, in the addresses of the caller's proxies.
        for text in proxies::secrets() {
            mask.add(text.as_bytes(), true, NO_EDGES);
        }
        mask
    }

    fn add(&mut self, text: &[u8], is_itself: bool, has_edges: [bool; 2]) {
        let bytes: Vec<u8> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        if let [first, second, ..] = bytes[..]
            && bytes.len() >= SHORTEST
        {
            self.begins.resize(1 << 16, false);
            self.begins[pair(first, second)] = true;
            if !self.forms.iter().any(|known| known.bytes == bytes && known.is_itself >= is_itself) {
                self.forms.push(Form { bytes, is_itself, has_edges });
            }
        }
    }

    /// Returns a whole text with the secrets masked.
    pub fn text<'text>(&self, text: &'text str) -> Cow<'text, str> {
        let mut hidden = vec![false; text.len()];
        self.hide(text, &mut hidden);
        masked(text, &hidden)
    }

    /// Returns the mask over an output that comes line by line.
    pub fn over_lines(&self) -> MaskedLines<'_> {
        MaskedLines { mask: self, held: String::new(), hidden: Vec::new() }
    }

    /// Notes for each byte of the text whether it is to be hidden. Returns where a secret may begin that goes on behind the
    /// text.
    fn hide(&self, text: &str, hidden: &mut [bool]) -> Option<usize> {
        if self.forms.is_empty() {
            return None;
        }
        let view = View::of(text);
        let begun = self.hide_in(&view, |_| true, text, hidden);
        let decoded = view.decoded();
        let begun_decoded = decoded.and_then(|view| self.hide_in(&view, |form| form.is_itself, text, hidden));
        begun.into_iter().chain(begun_decoded).min()
    }

    fn hide_in(&self, view: &View, looks: impl Fn(&Form) -> bool, text: &str, hidden: &mut [bool]) -> Option<usize> {
        let mut begun = None;
        // Written for a build without optimisation: every byte of an output comes here.
        let (mut at, bytes) = (0, view.bytes.as_slice());
        while at + 1 < bytes.len() {
            let is_any = self.begins[pair(bytes[at], bytes[at + 1])];
            at += 1;
            if !is_any {
                continue;
            }
            let at = at - 1;
            for form in self.forms.iter().filter(|form| looks(form)) {
                let rest = &bytes[at..];
                if rest.starts_with(&form.bytes) {
                    hidden[view.place(at, form, text)].fill(true);
                } else if begun.is_none() && View::is_begun(rest, form) {
                    begun = Some(view.places[at].start);
                }
            }
        }
        // Of one that begins with the last byte there is no pair.
        let last = view.bytes.last().zip(view.places.last());
        begun.or_else(|| {
            let (last, place) = last?;
            let begins = |form: &Form| looks(form) && form.bytes[0] == *last;
            self.forms.iter().any(begins).then_some(place.start)
        })
    }

    /// Bytes of the longest form.
    fn longest(&self) -> usize {
        self.forms.iter().map(|form| form.bytes.len()).max().unwrap_or(0)
    }
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

/// Returns text with the hidden bytes masked, the ends of its lines excepted.
fn masked<'text>(text: &'text str, hidden: &[bool]) -> Cow<'text, str> {
    if !hidden.contains(&true) {
        return text.into();
    }
    let (mut shown, mut in_secret) = (String::with_capacity(text.len()), false);
    for (at, ch) in text.char_indices() {
        let is_hidden = ch != '\n' && hidden[at..at + ch.len_utf8()].contains(&true);
        match (is_hidden, in_secret) {
            (true, false) => shown.push_str(MASK),
            (true, true) => {}
            (false, _) => shown.push(ch),
        }
        in_secret = is_hidden;
    }
    shown.into()
}

/// Lines of an output, of which those are held back in which a secret may have begun.
#[derive(Debug)]
pub struct MaskedLines<'mask> {
    mask: &'mask Mask,
    /// Each with its end.
    held: String,
    /// By byte of `held`.
    hidden: Vec<bool>,
}

impl MaskedLines<'_> {
    /// Takes a line of the output, without its end, and returns the lines that can be shown.
    pub fn push(&mut self, line: &str) -> Vec<String> {
        self.held.extend([line, "\n"]);
        if self.mask.forms.is_empty() {
            return self.show(self.held.len());
        }
        self.hidden.resize(self.held.len(), false);
        let begun = self.mask.hide(&self.held, &mut self.hidden);
        match begun {
            Some(start) if self.held.matches('\n').count() <= self.mask.longest() + BLANK_LINES => {
                self.show(self.held[..start].rfind('\n').map_or(0, |end| end + 1))
            }
            _ => self.show(self.held.len()),
        }
    }

    /// Returns the lines that were held back, since the output has ended. What may have been the beginning of a secret is
    /// masked, if it is long enough not to be found by chance.
    pub fn end(&mut self) -> Vec<String> {
        self.hidden.resize(self.held.len(), false);
        if let Some(start) = self.mask.hide(&self.held, &mut self.hidden)
            && self.held[start..].bytes().filter(|byte| !byte.is_ascii_whitespace()).count() >= SHORTEST
        {
            self.hidden[start..].fill(true);
        }
        self.show(self.held.len())
    }

    /// Takes lines out, up to this byte.
    fn show(&mut self, end: usize) -> Vec<String> {
        self.hidden.resize(self.held.len(), false);
        let lines = masked(&self.held[..end], &self.hidden[..end]).lines().map(ToOwned::to_owned).collect();
        self.held.drain(..end);
        self.hidden.drain(..end);
        lines
    }
}

/// Text as it is searched: its bytes without blanks.
struct View {
    bytes: Vec<u8>,
    /// Where each byte is in the text.
    places: Vec<Range<usize>>,
}

impl View {
    fn of(text: &str) -> Self {
        let mut view = View { bytes: Vec::with_capacity(text.len()), places: Vec::with_capacity(text.len()) };
        for (at, byte) in text.bytes().enumerate() {
            if !byte.is_ascii_whitespace() {
                view.bytes.push(byte);
                view.places.push(at..at + 1);
            }
        }
        view
    }

    /// Returns the view with its percent-encoding undone (RFC 3986, 2.1), if it has any.
    fn decoded(self) -> Option<Self> {
        memchr::memchr(b'%', &self.bytes)?;
        let mut decoded = View { bytes: Vec::new(), places: Vec::new() };
        let mut at = 0;
        while at < self.bytes.len() {
            let (byte, count) = match self.bytes[at..] {
                [b'%', high, low, ..] => byte_of(high, low).map_or((b'%', 1), |byte| (byte, 3)),
                [byte, ..] => (byte, 1),
                [] => break,
            };
            if !byte.is_ascii_whitespace() {
                decoded.bytes.push(byte);
                decoded.places.push(self.places[at].start..self.places[at + count - 1].end);
            }
            at += count;
        }
        Some(decoded)
    }

    /// Returns where a form is in the text that was found at a byte, with its edges.
    fn place(&self, start: usize, form: &Form, text: &str) -> Range<usize> {
        let end = start + form.bytes.len();
        // base64 is broken by ends of lines, and not by blanks.
        let follows = |at: usize| {
            let between = &text[self.places[at - 1].end..self.places[at].start];
            between.is_empty() || between.contains('\n')
        };
        let [leads, trails] = form.has_edges;
        let first = start - usize::from(leads && start > 0 && follows(start) && is_base64(self.bytes[start - 1]));
        let last = end - usize::from(!(trails && end < self.bytes.len() && follows(end) && is_base64(self.bytes[end])));
        self.places[first].start..self.places[last].end
    }

    /// Whether `rest`, the end of the text, is the beginning of the form.
    fn is_begun(rest: &[u8], form: &Form) -> bool {
        // The last bytes may be those of an encoded one.
        let open = rest.iter().rev().take(2).position(|byte| *byte == b'%').map_or(0, |at| at + 1);
        form.bytes.starts_with(rest) || open < rest.len() && form.bytes.starts_with(&rest[..rest.len() - open])
    }
}

/// Returns the byte of two hexadecimal digits.
fn byte_of(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HUNTER: &str = "hunter22/zürich?";
    const PEM: &str = "-----BEGIN-----\nQUJDREVGRw\nSElKSw\n-----END-----\n";

    fn mask(values: &[&str]) -> Mask {
        let secret = |value: &&str| Secret { id: "token".into(), value: value.as_bytes().into() };
        Mask::new(&values.iter().map(secret).collect::<Vec<_>>())
    }

    /// What is shown of an output.
    fn shown(mask: &Mask, output: &str) -> String {
        let mut lines = mask.over_lines();
        let mut shown: Vec<String> = output.lines().flat_map(|line| lines.push(line)).collect();
        shown.extend(lines.end());
        assert_eq!(shown.len(), output.lines().count());
        shown.join("\n")
    }

    #[test]
    fn lines_tell_no_secret_not_even_one_of_many_lines() {
        let mask = mask(&["hunter22\n", PEM]);
        assert_eq!(mask.text("login hunter22, again hunter22"), "login ***, again ***");
        assert_eq!(mask.text("QUJDREVGRw"), "***");
        assert_eq!(mask.text("nothing to see"), "nothing to see");
        assert_eq!(shown(&mask, PEM.trim_end()), "***\n***\n***\n***");
        // On one line, with other ends of lines, and broken otherwise.
        assert_eq!(shown(&mask, &PEM.replace('\n', " ")), "***");
        assert_eq!(shown(&mask, "-----BEGIN-----QUJD\r\n  REVGRwSElKSw-----EN\r\nD-----"), "***\n***\n***");
    }

    #[test]
    fn programs_that_encode_a_secret_tell_nothing_of_it() {
        let mask = mask(&[HUNTER]);
        let encode = |text: &str| [STANDARD_NO_PAD.encode(text), URL_SAFE_NO_PAD.encode(text)];
        // As it is, behind a user's name of any length, with something behind it, with a newline.
        for text in
            [HUNTER, &format!("{HUNTER}\n"), &format!("a:{HUNTER}"), &format!("me:{HUNTER}x"), &format!("you:{HUNTER}")]
        {
            for encoded in encode(text) {
                let said = shown(&mask, &format!("Basic {encoded}; ok"));
                assert!(said.starts_with("Basic ") && said.ends_with("; ok") && said.contains(MASK), "{text}: {said}");
                assert!(said.len() <= "Basic dXNlc***x; ok".len() + 2, "{text}: {said} of {encoded}");
                // As base64(1) breaks it.
                let (first, second) = encoded.split_at(9);
                let said = shown(&mask, &format!("{first}\n{second}\n"));
                assert!(said.split('\n').all(|line| line.contains(MASK) && line.len() <= 9), "{text}: {said}");
            }
        }
        let hex: String = HUNTER.bytes().map(|byte| format!("{byte:02x}")).collect();
        let pairs = HUNTER.bytes().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(" ");
        for encoded in [hex.clone(), hex.to_uppercase(), pairs, hex[..10].to_owned() + "\n" + &hex[10..]] {
            assert!(
                shown(&mask, &format!("x={encoded}.")).split('\n').all(|line| line.contains(MASK) && line.len() <= 6)
            );
        }
        for encoded in
            ["hunter22%2Fz%C3%BCrich%3F", "hunter22/z%c3%bcrich%3f", "%68unter22/zürich?", "hunter22%\n2Fz%C3%BCrich?"]
        {
            let said = shown(&mask, &format!("q={encoded}&b"));
            assert!(said == "q=***&b" || said == "q=***\n***&b", "{said}");
        }
    }

    #[test]
    fn a_secret_that_goes_over_lines_is_masked_in_all_of_them_and_no_other_line_waits() {
        let mask = mask(&["hunter22"]);
        let mut lines = mask.over_lines();
        assert_eq!(lines.push("nothing to see"), ["nothing to see"]);
        assert_eq!(lines.push("before hun"), [""; 0]);
        assert_eq!(lines.push("ter22 after"), ["before ***", "*** after"]);
        assert_eq!(lines.push("a hunt"), [""; 0]);
        assert_eq!(lines.push("is on"), ["a hunt", "is on"]);
        for letter in "hunter2".chars() {
            assert_eq!(lines.push(&letter.to_string()), [""; 0]);
        }
        assert_eq!(lines.push("2"), ["***"; 8]);
        // Too little, and enough to be told apart from other text.
        assert_eq!(lines.push("hun"), [""; 0]);
        assert_eq!(lines.end(), ["hun"]);
        assert_eq!(lines.push("x hunte"), [""; 0]);
        assert_eq!(lines.end(), ["x ***"]);
        // Two that follow each other, with the first half of a third.
        assert_eq!(lines.push("hunter22hunter22 hun"), [""; 0]);
        assert_eq!(lines.push("ter22"), ["*** ***", "***"]);
        // Blank lines are not held for ever.
        assert_eq!(lines.push("h"), [""; 0]);
        let held = (0..2 * BLANK_LINES).map(|_| lines.push("")).take_while(Vec::is_empty).count();
        assert!(held <= BLANK_LINES + mask.longest(), "{held}");
        assert_eq!(Mask::default().over_lines().push("hunter22"), ["hunter22"]);
    }

    #[test]
    fn short_secrets_and_bytes_that_are_no_text_do_no_harm() {
        let mask = mask(&["abcd", "\u{1b}[1mbold\u{1b}[0m"]);
        assert_eq!(mask.text("xabcdx YWJjZA== bold é"), "x***x ***== *** é");
        assert_eq!(
            Mask::new(&[Secret { id: "x".into(), value: vec![0xff; 8] }]).text("ffffffffffffffff //////////8="),
            "*** ***="
        );
    }
}
