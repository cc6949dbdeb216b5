//! The caller's proxies, whose addresses may hold a user name and a password: `http://user:password@proxy:3128`. Nothing that
//! is printed tells them.

use std::borrow::Cow;
use std::sync::OnceLock;

/// Variables that name the proxies of the network; both spellings are in use.
pub const VARIABLES: [&str; 8] =
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY"];

/// What replaces a user name and a password.
const MASK: &str = "***";

/// User name and password of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Credentials {
    /// Both, as they are written in the address.
    written: String,
    /// The password as it is written in the address, and as it is meant, if there is one.
    password: Option<(String, String)>,
}

/// Returns text without the user names and passwords of the proxies' addresses.
pub fn mask(text: &str) -> Cow<'_, str> {
    mask_all(text, ours())
}

/// Returns what a program may print of a proxy's address that is nobody's business: user name and password in one, and the
/// password alone.
pub fn secrets<'a>() -> impl Iterator<Item = &'a str> {
    ours().iter().flat_map(|credentials| {
        let passwords = credentials.password.iter().flat_map(|(written, meant)| [written, meant]);
        [&credentials.written].into_iter().chain(passwords).map(String::as_str)
    })
}

fn ours() -> &'static [Credentials] {
    static OURS: OnceLock<Vec<Credentials>> = OnceLock::new();
    OURS.get_or_init(|| {
        VARIABLES.iter().filter_map(|name| std::env::var(name).ok()).filter_map(|value| in_address(&value)).collect()
    })
}

fn mask_all<'text>(text: &'text str, all: &[Credentials]) -> Cow<'text, str> {
    let mut masked = Cow::Borrowed(text);
    for credentials in all {
        // With what follows it in an address: a short name alone would be found in other words.
        let written = format!("{}@", credentials.written);
        if masked.contains(&written) {
            masked = masked.replace(&written, &format!("{MASK}@")).into();
        }
    }
    masked
}

/// Returns the user information of an address (RFC 3986, section 3.2.1), which may have no scheme.
fn in_address(address: &str) -> Option<Credentials> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    // A password that is not written as it should be may hold any other character.
    let (written, _) = rest.rsplit_once('@').filter(|(written, _)| !written.is_empty())?;
    let password = written.split_once(':').map(|(_, password)| (password.to_owned(), decoded(password)));
    Some(Credentials { written: written.to_owned(), password })
}

/// Returns text with `%21` as `!` (RFC 3986, section 2.1).
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_and_passwords_of_addresses_are_found() {
        let of = |address: &str| {
            let Credentials { written, password } = in_address(address)?;
            let (as_written, meant) = password.unwrap_or_default();
            Some([written, as_written, meant].join(" "))
        };
        assert_eq!(of("http://user:p%40ss%@proxy:3128/").as_deref(), Some("user:p%40ss% p%40ss% p@ss%"));
        assert_eq!(of("user:secret@proxy").as_deref(), Some("user:secret secret secret"));
        assert_eq!(of("http://token@proxy").as_deref(), Some("token  "));
        assert_eq!(of("http://us:p@ss/w:rd@proxy:1").as_deref(), Some("us:p@ss/w:rd p@ss/w:rd p@ss/w:rd"));
        for none in ["http://proxy:3128", "localhost,.example", "", "http://@proxy"] {
            assert_eq!(of(none), None, "{none}");
        }
    }

    #[test]
    fn addresses_are_told_without_them() {
        let all: Vec<Credentials> = ["http://me:pw@proxy:3128"].into_iter().filter_map(in_address).collect();
        let said = "cannot reach http://me:pw@proxy:3128: me:pw";
        assert_eq!(mask_all(said, &all), "cannot reach http://***@proxy:3128: me:pw");
        assert_eq!(mask_all(said, &[]), said);
    }
}
