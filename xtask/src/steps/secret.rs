//! Secrets of a build, and text without them.

use std::borrow::Cow;

/// Shorter secrets would be found everywhere, in files and in what steps print.
pub const SHORTEST: usize = 4;

/// What stands for a secret in what people read.
const MASK: &str = "***";

/// A secret with its value. Its `Debug` does not tell it.
#[derive(Clone)]
pub struct Secret {
    pub id: String,
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

impl Secret {
    /// What gives the secret away: its bytes without the line's end that editors put behind them.
    pub fn core(&self) -> &[u8] {
        self.value.trim_ascii()
    }
}

/// A line of output without what the secrets say.
pub fn mask<'line>(line: &'line str, secrets: &[Secret]) -> Cow<'line, str> {
    let mut masked = Cow::Borrowed(line);
    for secret in secrets {
        let text = String::from_utf8_lossy(secret.core());
        // A key of many lines is printed line by line.
        for part in text.lines().map(str::trim).filter(|part| part.len() >= SHORTEST) {
            if masked.contains(part) {
                masked = masked.replace(part, MASK).into();
            }
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(value: &str) -> Secret {
        Secret { id: "token".into(), value: value.into() }
    }

    #[test]
    fn lines_tell_no_secret_not_even_one_of_many_lines() {
        let secrets = [secret("hunter22\n"), secret("-----BEGIN-----\nQUJD\n-----END-----\n")];
        assert_eq!(mask("login hunter22, again hunter22", &secrets), "login ***, again ***");
        assert_eq!(mask("QUJD", &secrets), "***");
        assert_eq!(mask("nothing to see", &secrets), "nothing to see");
        assert_eq!(format!("{:?}", secrets[0]), "Secret(token)");
    }
}
