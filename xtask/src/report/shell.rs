//! Commands as text that a POSIX shell reads as the same words (POSIX.1-2024, "Shell Command Language", 2.2 Quoting).

use std::path::Path;

/// Characters beside letters and digits that no shell takes for its own.
const PLAIN: &str = "_@%+=:,./-";

/// Returns a command in one line.
pub fn line(words: &[impl AsRef<str>]) -> String {
    words.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// Returns a path as one word.
pub fn path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Returns a command with each of its options on a line of its own.
pub fn lines(words: &[String]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        text += match index {
            0 => "",
            _ if word.starts_with('-') => " \\\n    ",
            _ => " ",
        };
        text += &quoted(word);
    }
    text
}

fn quoted(word: &str) -> String {
    match !word.is_empty()
        && word.chars().all(|character| character.is_ascii_alphanumeric() || PLAIN.contains(character))
    {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use snug_process::child;
    use snug_process::program::HostProgram;

    use super::*;

    /// A shell is the judge.
    #[test]
    fn a_shell_reads_the_words_that_were_written() {
        const SH: HostProgram = HostProgram { name: "sh", package: "dash" };
        let words = [
            "printf",
            "%s\\n",
            "-append",
            "a b \"$HOME\" `x` \\ it's",
            "",
            "file=/a,,b",
            "~",
            "-x",
            "*",
            "#",
            "new\nline",
        ];
        let words: Vec<String> = words.map(str::to_owned).into();
        let meant: Vec<u8> = words[2..].iter().flat_map(|word| format!("{word}\n").into_bytes()).collect();
        for text in [line(&words), lines(&words)] {
            assert_eq!(child::run(SH.command().unwrap().args(["-c", &text]), &[]).unwrap(), meant, "{text}");
        }
        assert_eq!(lines(&words[..4]).lines().count(), 2);
    }
}
