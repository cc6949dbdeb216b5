//! GitHub's workflow commands. A runner obeys lines that begin with `::` (blanks before it do not count) or hold `##[`, whoever
//! printed them, on either stream: `::error::`, `::add-path::` (GitHub's "Workflow commands for GitHub Actions";
//! `ActionCommand.cs` of its runner). What is printed here has parts that strangers wrote.
//!
//! Standard error is fenced: from the first line on, nothing is obeyed until a token comes that nobody can guess. Results on
//! standard output may be read by a program, which a fence would disturb: there such lines are made harmless one by one.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, OnceLock};

/// Is `true` where a runner of GitHub reads what is printed (GitHub's "Default environment variables").
pub const VARIABLE: &str = "GITHUB_ACTIONS";

/// The token that ends the fence, while there is one.
static FENCE: Mutex<Option<String>> = Mutex::new(None);

fn is_reading() -> bool {
    static READING: OnceLock<bool> = OnceLock::new();
    *READING.get_or_init(|| std::env::var_os(VARIABLE).is_some_and(|value| value == "true"))
}

/// Returns the line that begins the fence, for standard error, where a runner reads and there is no fence yet.
pub(super) fn begin() -> Option<String> {
    let mut fence = FENCE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !is_reading() || fence.is_some() {
        return None;
    }
    // Without one, no other process could be told from us: nothing is fenced, and that is rather the kernel's end.
    let token = token()?;
    let line = format!("::stop-commands::{token}\n");
    *fence = Some(token);
    Some(line)
}

/// Returns the line that ends the fence, if there is one.
pub(super) fn end() -> Option<String> {
    let mut fence = FENCE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    fence.take().map(|token| format!("::{token}::\n"))
}

/// 128 bits that nobody can guess (random(4)).
fn token() -> Option<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut bytes)).ok()?;
    Some(format!("snug-{:032x}", u128::from_ne_bytes(bytes)))
}

/// Returns a result as text in which a runner finds no command, where one reads.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    if is_reading() { without_commands(text) } else { text.into() }
}

fn without_commands(text: &str) -> Cow<'_, str> {
    if !text.contains("::") && !text.contains("##[") {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for line in text.split_inclusive('\n') {
        let start = line.len() - line.trim_start().len();
        shown += &line[..start];
        match line[start..].strip_prefix("::") {
            Some(rest) => shown += &format!(r"\u{{3a}}:{rest}"),
            None => shown += &line[start..],
        }
    }
    shown.replace("##[", r"\u{23}#[").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_of_a_result_is_a_command() {
        let text = "::error::a\n \t::add-path::/x\nstd::fs ::notice::\na ##[set-env name=x]y\nplain\n";
        assert_eq!(
            without_commands(text),
            "\\u{3a}:error::a\n \t\\u{3a}:add-path::/x\nstd::fs ::notice::\na \\u{23}#[set-env name=x]y\nplain\n"
        );
        assert!(matches!(without_commands("a: b\n"), Cow::Borrowed(_)));
    }

    #[test]
    fn no_two_tokens_are_the_same() {
        let [first, second] = [token(), token()].map(|token| token.expect("/dev/urandom"));
        assert!(first != second && first.len() == 37, "{first} {second}");
    }
}
