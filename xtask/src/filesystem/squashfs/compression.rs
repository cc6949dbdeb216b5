//! The compression of a squashfs image: an algorithm and a level.

use std::fmt;
use std::str::FromStr;

/// An algorithm and its level, as image.toml writes them: `zstd:15`, `xz`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compression {
    pub algorithm: Algorithm,
    /// 1 or more; `None` for the default of the algorithm.
    pub level: Option<u8>,
}

/// The algorithms that squashfs can be compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Gzip,
    Lz4,
    Lzo,
    Xz,
    Zstd,
}

impl Algorithm {
    const ALL: [Algorithm; 5] = [Algorithm::Gzip, Algorithm::Lz4, Algorithm::Lzo, Algorithm::Xz, Algorithm::Zstd];

    /// Returns its name on the command line of both programs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Algorithm::Gzip => "gzip",
            Algorithm::Lz4 => "lz4",
            Algorithm::Lzo => "lzo",
            Algorithm::Xz => "xz",
            Algorithm::Zstd => "zstd",
        }
    }

    /// Returns the highest level; 0 if the algorithm has no levels.
    fn highest_level(self) -> u8 {
        match self {
            Algorithm::Gzip | Algorithm::Lzo => 9,
            Algorithm::Zstd => 22,
            Algorithm::Lz4 | Algorithm::Xz => 0,
        }
    }
}

/// Why a text is not a squashfs compression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    #[error("squashfs compression `{0}` is not one of gzip, lz4, lzo, xz, zstd")]
    Unknown(String),
    #[error("squashfs compression {0} has no levels: write `{0}`")]
    NoLevels(&'static str),
    #[error("squashfs compression level `{1}` of {0} is not in 1..={2}")]
    Level(&'static str, String, u8),
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        let (name, level) = text.split_once(':').map_or((text, None), |(name, level)| (name, Some(level)));
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or_else(|| CompressionError::Unknown(name.to_owned()))?;
        let highest = algorithm.highest_level();
        let level = match level {
            None => None,
            Some(_) if highest == 0 => return Err(CompressionError::NoLevels(algorithm.as_str())),
            Some(level) => match level.parse() {
                Ok(number) if (1..=highest).contains(&number) => Some(number),
                _ => return Err(CompressionError::Level(algorithm.as_str(), level.to_owned(), highest)),
            },
        };
        Ok(Compression { algorithm, level })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm.as_str())?;
        self.level.map_or(Ok(()), |level| write!(f, ":{level}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressions_are_checked() {
        assert_eq!("zstd:15".parse::<Compression>().unwrap().to_string(), "zstd:15");
        assert_eq!("xz".parse::<Compression>().unwrap().to_string(), "xz");
        for (wrong, why) in [
            ("zst", "squashfs compression `zst` is not one of gzip, lz4, lzo, xz, zstd"),
            ("zstd:23", "squashfs compression level `23` of zstd is not in 1..=22"),
            ("zstd:", "squashfs compression level `` of zstd is not in 1..=22"),
            ("xz:6", "squashfs compression xz has no levels: write `xz`"),
        ] {
            assert_eq!(wrong.parse::<Compression>().unwrap_err().to_string(), why);
        }
    }
}
