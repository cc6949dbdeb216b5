//! The secrets of a build, and masking them in text.

use std::borrow::Cow;

/// The shortest secret, in bytes: a shorter one would be found by chance in files and output.
pub const SHORTEST: usize = 4;

/// What replaces a secret in output.
const MASK: &str = "***";

/// A secret. Its `Debug` omits the value.
#[derive(Clone)]
pub struct Secret {
    /// The spec's `id`.
    pub id: String,
    /// The bytes, as they were read.
    pub value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.id)
    }
}

impl Secret {
    /// Returns the value without the newline that editors add.
    pub fn core(&self) -> &[u8] {
        self.value.trim_ascii()
    }
}

/// Returns a line of output with the secrets masked.
pub fn mask<'line>(line: &'line str, secrets: &[Secret]) -> Cow<'line, str> {
    let mut masked = Cow::Borrowed(line);
    for secret in secrets {
        let text = String::from_utf8_lossy(secret.core());
        // A secret of several lines is masked line by line, as it is printed.
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
