//! Results of verbs: one value, rendered as text for people or as JSON for programs.

use std::path::Path;

use anyhow::Result;
use serde::{Serialize, Serializer};

use super::{escapes, streams};

/// Version of the JSON objects of all verbs, raised when a key goes or changes its meaning.
const SCHEMA: u32 = 1;

/// The result of a verb. As JSON it is one object with kebab-case keys, whose names end in the unit where a number has one.
/// What is taken from `manifest.json` (`filesystem`, `census`, `verity`) keeps the keys that it has there.
pub trait Render: Serialize {
    /// The result for a person, each line with its end.
    fn text(&self) -> String;
}

/// A result as it is printed: the version of its keys comes first.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: u32,
    #[serde(flatten)]
    result: &'a T,
}

/// The result as an indented JSON object.
pub fn json(result: &impl Serialize) -> Result<String> {
    let mut text = serde_json::to_string_pretty(&Document { schema: SCHEMA, result })?;
    text.push('\n');
    Ok(escapes::in_json(&text))
}

/// Writes the result to standard output: as JSON, or as text.
pub fn print(result: &impl Render, as_json: bool) -> Result<()> {
    let text = if as_json { json(result)? } else { result.text() };
    streams::print(&text)
}

/// Serializes a path as text: JSON holds only Unicode, so that other bytes of a name become U+FFFD.
pub fn path<S: Serializer>(path: impl AsRef<Path>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.as_ref().to_string_lossy())
}

/// A duration in seconds, to hundredths.
pub fn seconds(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_one_object_that_begins_with_its_schema() {
        #[derive(Serialize)]
        #[serde(rename_all = "kebab-case")]
        struct Found {
            size_bytes: u64,
        }
        assert_eq!(json(&Found { size_bytes: 4096 }).unwrap(), "{\n  \"schema\": 1,\n  \"size-bytes\": 4096\n}\n");
    }
}
