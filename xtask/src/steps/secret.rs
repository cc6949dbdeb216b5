//! The secrets of a build.

/// The shortest secret, in bytes: a shorter one would be found by chance in files and output.
pub const SHORTEST: usize = 4;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_secret_for_debugging_is_its_name() {
        assert_eq!(format!("{:?}", Secret { id: "token".into(), value: b"hunter22".into() }), "Secret(token)");
    }
}
