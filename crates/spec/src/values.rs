//! Parsers of values with a grammar of their own: sizes, factors, modes, owners, digests.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use snug_ext4::size::Headroom;
use snug_rootfs::accounts::{Account, Owner};

use super::model::{KernelVersion, Tolerance};
use super::reader::{Node, Problem};

/// Units of a size, in bytes.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// The largest size of a file (`loff_t` is signed).
const MAX_FILE_SIZE: u64 = i64::MAX as u64;

/// The longest time for a boot check, in seconds: a day.
const DURATION_MAX: u64 = 86_400;

/// Decimals of a [`Headroom`].
const HEADROOM_DECIMALS: u32 = 6;

/// The largest headroom, 10: more than any image needs, and less than any percentage that somebody means (`headroom = 40`).
const MAX_HEADROOM: Headroom = Headroom { millionths: 10_000_000 };

/// Reads a size, a string with a unit, in bytes.
pub fn size_of(node: &Node<'_>) -> Option<u64> {
    match node.as_integer() {
        Some(number) => node.fail("size without a unit", format!("write \"{}MiB\", if MiB are meant", number.max(0))),
        None if node.is_float() => {
            node.fail("size without a unit", format!("write \"{}GiB\", if GiB are meant", node.source()))
        }
        None => node.parse(size),
    }
}

/// Parses `512MiB`, `1.5GiB` or `4 KB` into bytes.
pub fn size(text: &str) -> Result<u64, Problem> {
    let text = text.trim();
    let end = text.find(|ch: char| !ch.is_ascii_digit() && ch != '.' && ch != '_').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim());
    if number.is_empty() {
        return Err(Problem::new(format!("`{text}` is not a size"), "a size is a number and a unit, as \"512MiB\""));
    }
    if unit.is_empty() {
        return Err(Problem::new("size without a unit", format!("write \"{number}MiB\", if MiB are meant")));
    }
    let Some((_, bytes)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let binary = UNITS.iter().find(|(name, _)| name.to_lowercase() == unit.to_lowercase());
        let meant = match (binary, unit.to_ascii_uppercase().as_str()) {
            (Some((name, _)), _) => format!("did you mean \"{number}{name}\"?"),
            (None, letter @ ("K" | "M" | "G" | "T")) => {
                format!("did you mean \"{number}{letter}iB\" or \"{number}{letter}B\"?")
            }
            _ => format!("the units are {}", UNITS.map(|(name, _)| name).join(", ")),
        };
        return Err(Problem::new(format!("`{unit}` is not a unit of size"), meant));
    };
    let (units, parts) =
        decimal(number).ok_or_else(|| Problem::new(format!("`{number}` is not a number"), "as in \"512MiB\""))?;
    let scaled = units.checked_mul(u128::from(*bytes));
    match scaled.map(|scaled| (scaled / parts, scaled % parts)) {
        Some((whole, 0)) if whole <= u128::from(MAX_FILE_SIZE) => Ok(u64::try_from(whole).unwrap_or(MAX_FILE_SIZE)),
        Some((_, rest)) if rest != 0 => {
            Err(Problem::new(format!("`{text}` is not a whole number of bytes"), "use a smaller unit"))
        }
        _ => Err(Problem::new(format!("`{text}` is larger than any file can be"), "")),
    }
}

/// Parses a decimal number into a fraction: `1.25` is 125 / 100. Digits may be separated by underscores, as in TOML.
fn decimal(text: &str) -> Option<(u128, u128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| -> Option<String> {
        let between = !part.starts_with('_') && !part.ends_with('_') && !part.contains("__");
        let digits = part.replace('_', "");
        (between && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(digits)
    };
    let (whole, fraction) = (digits(whole)?, digits(fraction)?);
    let parts = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let units = whole.parse::<u128>().ok()?.checked_mul(parts)?.checked_add(fraction.parse().ok()?)?;
    Some((units, parts))
}

/// Reads a headroom from the text of a float or an integer: 1.4 has no exact float.
pub fn headroom_of(node: &Node<'_>) -> Option<Headroom> {
    if node.as_integer().is_none() && !node.is_float() {
        return node.wrong_type("a number", "a factor of the content, as `headroom = 1.4`");
    }
    headroom(node.source()).or_else(|problem| node.refuse(problem).ok_or(())).ok()
}

/// Parses a TOML number into exact millionths.
pub fn headroom(text: &str) -> Result<Headroom, Problem> {
    let below = || {
        Problem::new(
            "`headroom` must be at least 1",
            "it is a factor of the content: 1.0 is exactly full, 1.4 leaves 40 % of the content free",
        )
    };
    let plain = text.trim_start_matches('+');
    if plain.starts_with('-') {
        return Err(below());
    }
    let Some((units, parts)) = decimal(plain) else {
        return Err(Problem::new(format!("`{text}` is not a plain decimal number"), "as in `headroom = 1.4`"));
    };
    let one = u128::from(Headroom::NONE.millionths);
    let scaled = units.checked_mul(one).ok_or_else(|| Problem::new("`headroom` has too many digits", ""))?;
    let millionths = scaled / parts;
    if millionths < one {
        return Err(below());
    }
    if !scaled.is_multiple_of(parts) {
        return Err(Problem::new(format!("`headroom` has more than {HEADROOM_DECIMALS} decimals"), ""));
    }
    match u32::try_from(millionths) {
        Ok(millionths) if millionths <= MAX_HEADROOM.millionths => Ok(Headroom { millionths }),
        _ => Err(Problem::new(
            format!("`headroom` must be at most {}", MAX_HEADROOM.millionths / Headroom::NONE.millionths),
            "it is a factor, not a percentage: 1.4 leaves 40 % of the content free",
        )),
    }
}

/// Parses `2%`, `0.5%`, or a size.
pub fn tolerance(text: &str) -> Result<Tolerance, Problem> {
    let Some(number) = text.trim().strip_suffix('%') else {
        return size(text).map(Tolerance::Bytes).map_err(|problem| Problem {
            help: "a tolerance is a share of the locked size, as \"2%\", or a size, as \"8MiB\"".into(),
            ..problem
        });
    };
    let share = decimal(number.trim_end()).and_then(|(units, parts)| {
        let scaled = units.checked_mul(1_000_000)?;
        (scaled.is_multiple_of(parts)).then_some(scaled / parts)
    });
    match share.map(u32::try_from) {
        Some(Ok(share)) if share <= 100_000_000 => Ok(Tolerance::PercentMillionths(share)),
        _ => Err(Problem::new(format!("`{text}` is not a share between 0% and 100%"), "as in \"2%\"")),
    }
}

/// Reads a file mode: `"0755"` or `0o755`.
pub fn mode_of(node: &Node<'_>) -> Option<u16> {
    let Some(number) = node.as_integer() else {
        return match node.as_str() {
            Some(_) => node.parse(mode),
            None => node.wrong_type("a file mode", "as \"0755\""),
        };
    };
    // Decimal 755 would be octal 1363.
    if !node.source().starts_with("0o") {
        return node.fail(format!("mode {number} is written in decimal"), format!("write \"0{number}\" or 0o{number}"));
    }
    match u16::try_from(number) {
        Ok(mode) if mode <= 0o7777 => Some(mode),
        _ => node.fail("a mode is at most 07777", "the type of the file is not part of it"),
    }
}

fn mode(text: &str) -> Result<u16, Problem> {
    let octal = (3..=5).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u16::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o7777 => Ok(mode),
        _ => Err(Problem::new(format!("`{text}` is not a file mode"), "three or four octal digits, as \"0755\"")),
    }
}

/// Reads an owner: `"user:group"`, `"user"`, or a number.
pub fn owner_of(node: &Node<'_>) -> Option<Owner> {
    match node.as_integer() {
        Some(number) => match account(&number.to_string()) {
            Some(user) => Some(Owner { group: user.clone(), user }),
            None => node.fail(format!("{number} is not a user id"), "ids are at most 4294967294"),
        },
        None => node.parse(owner),
    }
}

/// Parses `user:group`, or a user alone, whose group then has the same name or number.
pub fn owner(text: &str) -> Result<Owner, Problem> {
    let (user, group) = text.split_once(':').unwrap_or((text, text));
    let refused = |name: &str, noun: &str| {
        Problem::new(format!("`{name}` is not a {noun}"), "as \"node:node\", \"node\", \"1000:1000\"")
    };
    Ok(Owner {
        user: account(user).ok_or_else(|| refused(user, "user"))?,
        group: account(group).ok_or_else(|| refused(group, "group"))?,
    })
}

/// Parses an id, or a name as useradd(8) allows it. Id 4294967295 means "no change" to chown(2).
fn account(text: &str) -> Option<Account> {
    let first = text.bytes().next()?;
    if first.is_ascii_digit() {
        return text.parse().ok().filter(|&id| id != u32::MAX).map(Account::Id);
    }
    let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    let named = (first.is_ascii_alphabetic() || first == b'_') && text.len() <= 32 && text.bytes().all(known);
    named.then(|| Account::Name(text.into()))
}

/// Parses a SHA-256 of 64 hexadecimal digits.
pub fn sha256(text: &str) -> Result<[u8; 32], Problem> {
    hex(text).and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| {
        Problem::new(format!("`{text}` is not a SHA-256"), "64 hexadecimal digits, as sha256sum prints them")
    })
}

/// Parses a UUID in its text form (RFC 9562, section 4).
pub fn uuid(text: &str) -> Result<[u8; 16], Problem> {
    let grouped = text.split('-').map(str::len).eq([8, 4, 4, 4, 12]);
    hex(&text.replace('-', ""))
        .filter(|_| grouped)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Problem::new(format!("`{text}` is not a UUID"), "as \"0f3c1e9a-5b7d-4c2e-8a61-93d4e5f60718\""))
}

/// Parses hexadecimal digits, two a byte.
pub fn hex(text: &str) -> Option<Vec<u8>> {
    base16ct::mixed::decode_vec(text).ok()
}

/// Parses base64 with its padding (RFC 4648, section 4).
pub fn base64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

/// Parses `90s` or `5min`: at least a second, at most a day.
pub fn duration(text: &str) -> Result<Duration, Problem> {
    let problem =
        || Problem::new(format!("`{text}` is not a length of time"), "seconds or minutes, as \"90s\" or \"5min\"");
    let (number, factor) = match (text.strip_suffix("min"), text.strip_suffix('s')) {
        (Some(minutes), _) => (minutes, 60),
        (None, Some(seconds)) => (seconds, 1),
        (None, None) => return Err(problem()),
    };
    let number = number.trim_end();
    let count: u64 = number.parse().ok().filter(|_| number.bytes().all(|b| b.is_ascii_digit())).ok_or_else(problem)?;
    count
        .checked_mul(factor)
        .filter(|seconds| (1..=DURATION_MAX).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(problem)
}

/// Parses `6.1`.
pub fn kernel_version(text: &str) -> Result<KernelVersion, Problem> {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok())?;
    text.split_once('.')
        .and_then(|(major, minor)| Some(KernelVersion { major: number(major)?, minor: number(minor)? }))
        .ok_or_else(|| Problem::new(format!("`{text}` is not a kernel version"), "major and minor, as \"6.1\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_units_and_are_whole_bytes() {
        for (text, bytes) in [
            ("0B", 0),
            ("512MiB", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("4 KB", 4000),
            ("1_000MB", 1_000_000_000),
            ("1TiB", 1 << 40),
            ("0.5KiB", 512),
            ("8388607TiB", 8_388_607 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, message) in [
            ("512", "size without a unit"),
            ("", "`` is not a size"),
            ("MiB", "`MiB` is not a size"),
            ("-1MiB", "`-1MiB` is not a size"),
            ("1PiB", "`PiB` is not a unit of size"),
            ("1mib", "`mib` is not a unit of size"),
            ("1.2.3MiB", "`1.2.3` is not a number"),
            ("1.MiB", "`1.` is not a number"),
            ("1__0MiB", "`1__0` is not a number"),
            ("0.5B", "`0.5B` is not a whole number of bytes"),
            ("8388608TiB", "`8388608TiB` is larger than any file can be"),
            ("999999999999999999999999999999TiB", "`999999999999999999999999999999TiB` is larger than any file can be"),
        ] {
            assert_eq!(size(text).unwrap_err().message, message, "{text}");
        }
        assert_eq!(size("2g").unwrap_err().help, "did you mean \"2GiB\" or \"2GB\"?");
        assert_eq!(size("2gib").unwrap_err().help, "did you mean \"2GiB\"?");
    }

    #[test]
    fn headroom_is_exact_and_at_least_one() {
        for (text, millionths) in [
            ("1", 1_000_000),
            ("+1.0", 1_000_000),
            ("1.4", 1_400_000),
            ("1.1", 1_100_000),
            ("1.000001", 1_000_001),
            ("1.400000000", 1_400_000),
            ("9.2_5", 9_250_000),
            ("10", 10_000_000),
        ] {
            assert_eq!(headroom(text), Ok(Headroom { millionths }), "{text}");
        }
        for (text, message) in [
            ("0.999999", "`headroom` must be at least 1"),
            ("-2.0", "`headroom` must be at least 1"),
            ("0.9999999", "`headroom` must be at least 1"),
            ("1.0000001", "`headroom` has more than 6 decimals"),
            ("10.1", "`headroom` must be at most 10"),
            ("40", "`headroom` must be at most 10"),
            ("140e-2", "`140e-2` is not a plain decimal number"),
            ("nan", "`nan` is not a plain decimal number"),
            ("inf", "`inf` is not a plain decimal number"),
        ] {
            assert_eq!(headroom(text).unwrap_err().message, message, "{text}");
        }
    }

    #[test]
    fn a_tolerance_is_a_share_or_a_size() {
        assert_eq!(tolerance("2%"), Ok(Tolerance::PercentMillionths(2_000_000)));
        assert_eq!(tolerance("0.5 %"), Ok(Tolerance::PercentMillionths(500_000)));
        assert_eq!(tolerance("8MiB"), Ok(Tolerance::Bytes(8 << 20)));
        assert_eq!(tolerance("0.5%").unwrap().bytes_of(1_000_000), 5_000);
        for text in ["101%", "-1%", "%", "1.1234567%", "5"] {
            assert!(tolerance(text).is_err(), "{text}");
        }
    }

    #[test]
    fn modes_are_octal_strings() {
        assert_eq!(mode("755"), Ok(0o755));
        assert_eq!(mode("04755"), Ok(0o4755));
        for text in ["", "7", "0o755", "0888", "+755", "17777", "rwxr-xr-x"] {
            assert!(mode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners_are_numbers_or_names() {
        let name = |name: &str| Account::Name(name.into());
        assert_eq!(owner("node"), Ok(Owner { user: name("node"), group: name("node") }));
        assert_eq!(owner("0:tty"), Ok(Owner { user: Account::Id(0), group: name("tty") }));
        assert_eq!(owner("7:8").unwrap().ids(), Some((7, 8)));
        for text in ["", ":", "a:", ":b", "a b", "-a", "1x", "4294967295", "a:b:c", "$USER"] {
            assert!(owner(text).is_err(), "{text}");
        }
        assert_eq!(owner("-a:b").unwrap_err().message, "`-a` is not a user");
        assert_eq!(owner("a:-b").unwrap_err().message, "`-b` is not a group");
    }

    #[test]
    fn bytes_are_read_as_the_rfc_writes_them() {
        // RFC 4648, section 10.
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(text).unwrap(), bytes.as_bytes());
        }
        for text in ["Z", "Zg", "Zg=", "Zh==", "Zg==Zg==", "Z===", "====", "Zm9\n", "Zm9-"] {
            assert_eq!(base64(text), None, "{text}");
        }
        assert_eq!(hex("00fFa0"), Some(vec![0, 255, 160]));
        for text in ["0", "0g", "+1", "é"] {
            assert_eq!(hex(text), None, "{text}");
        }
    }

    #[test]
    fn lengths_of_time_have_a_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("5 min"), Ok(Duration::from_secs(300)));
        for text in ["90", "s", "0s", "-1s", "+1s", "1.5min", "2000min", "1h", ""] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn kernels_have_two_numbers() {
        assert_eq!(kernel_version("6.12"), Ok(KernelVersion { major: 6, minor: 12 }));
        for text in ["6", "6.", "6.1.2", "v6.1", "6.+1", "6.99999", ""] {
            assert!(kernel_version(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in any::<String>(), number in "[0-9._+-]{0,60}[KMGTiB%]{0,3}") {
            for text in [text, number] {
                let _ = (size(&text), headroom(&text), tolerance(&text), mode(&text), owner(&text));
                let _ = (sha256(&text), uuid(&text), hex(&text), base64(&text), kernel_version(&text), duration(&text));
            }
        }

        /// Exactly what was written, which a detour over floats would not give.
        #[test]
        fn every_millionth_is_exact(millionths in 1_000_000u32..=10_000_000) {
            let text = format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000);
            prop_assert_eq!(headroom(&text), Ok(Headroom { millionths }));
        }
    }
}
