//! Archives of one kind of thing in great numbers, to show that what is done with them stays linear in time, and what it takes of
//! memory an inode.

use std::io::{self, Write};

use serde::Serialize;

use super::Measured;
use crate::report::progress::human_bytes;
use crate::report::table;

/// How many of a kind are in the archives that are compared, ascending.
pub const COUNTS: [u64; 3] = [10_000, 100_000, 1_000_000];
/// How many there are where the memory of the program itself is measured.
pub const FEW: u64 = 10;

/// Entries of a directory, where it is not the directory that is measured.
const EACH: u64 = 1000;
/// Names of one file: ext4 allows 65,000.
const NAMES: u64 = 10_000;
/// Directories below each other.
const DEPTH: u64 = 250;
/// Symlinks to symlinks on the way to each entry: of 40, the last ones lead further.
const CHAIN: u64 = 30;

/// What there is much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Files,
    OneDirectory,
    Directories,
    HardLinks,
    Attributes,
    Globals,
    Chains,
    Depth,
    Whiteouts,
}

impl Shape {
    pub const ALL: [Shape; 9] = [
        Shape::Files,
        Shape::OneDirectory,
        Shape::Directories,
        Shape::HardLinks,
        Shape::Attributes,
        Shape::Globals,
        Shape::Chains,
        Shape::Depth,
        Shape::Whiteouts,
    ];

    /// Returns its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Files => "files",
            Shape::OneDirectory => "one-directory",
            Shape::Directories => "directories",
            Shape::HardLinks => "hard-links",
            Shape::Attributes => "xattrs",
            Shape::Globals => "globals",
            Shape::Chains => "chains",
            Shape::Depth => "depth",
            Shape::Whiteouts => "whiteouts",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Shape::Files => "files",
            Shape::OneDirectory => "files of one directory",
            Shape::Directories => "directories",
            Shape::HardLinks => "hard links, 10,000 of a file",
            Shape::Attributes => "files with an attribute each",
            Shape::Globals => "files behind a global pax header each",
            Shape::Chains => "files behind 30 symlinks each",
            Shape::Depth => "directories, up to 250 deep",
            Shape::Whiteouts => "whiteouts of files of a lower layer",
        }
    }

    /// Whether it is a matter of layers: a lower and an upper one, to be merged.
    pub fn is_of_layers(self) -> bool {
        self == Shape::Whiteouts
    }

    /// Writes the archive of `count` of them; of layers the lower one.
    pub fn write(self, count: u64, out: &mut dyn Write) -> io::Result<()> {
        let mut archive = Archive(out);
        match self {
            Shape::Files | Shape::Whiteouts => files(&mut archive, count, b"")?,
            Shape::OneDirectory => {
                archive.put("d/", b'5', "", b"")?;
                (0..count).try_for_each(|n| archive.put(&format!("d/{n:07}"), b'0', "", b""))?;
            }
            Shape::Directories => {
                for n in 0..count {
                    if n % EACH == 0 {
                        archive.put(&format!("{:04}/", n / EACH), b'5', "", b"")?;
                    }
                    archive.put(&format!("{:04}/{n:07}/", n / EACH), b'5', "", b"")?;
                }
            }
            Shape::HardLinks => {
                for n in 0..count {
                    let (kind, link) = if n % NAMES == 0 { (b'0', String::new()) } else { (b'1', name(n - n % NAMES)) };
                    archive.put(&name(n), kind, &link, b"")?;
                }
            }
            Shape::Attributes => files(&mut archive, count, &record("SCHILY.xattr.user.note", "a value"))?,
            Shape::Globals => {
                for n in 0..count {
                    archive.header_of("g", &record("SCHILY.xattr.user.note", "a value"))?;
                    archive.put(&name(n), b'0', "", &record("mtime", "1000.5"))?;
                }
            }
            Shape::Chains => {
                // Two chains in turn, so that no entry has the directory of the one before.
                for top in ["a", "b"] {
                    archive.put(&format!("{top}/"), b'5', "", b"")?;
                    archive.put(&format!("{top}/link-0"), b'2', ".", b"")?;
                    for n in 1..CHAIN {
                        archive.put(&format!("{top}/link-{n}"), b'2', &format!("link-{}", n - 1), b"")?;
                    }
                }
                for n in 0..count {
                    let top = if n % 2 == 0 { "a" } else { "b" };
                    archive.put(&format!("{top}/link-{}/{n:07}", CHAIN - 1), b'0', "", b"")?;
                }
            }
            Shape::Depth => {
                for chain in 0..count.div_ceil(DEPTH) {
                    let mut path = format!("{chain:04}/");
                    for _ in chain * DEPTH..count.min((chain + 1) * DEPTH) {
                        archive.put(&path, b'5', "", b"")?;
                        path.push_str("d/");
                    }
                }
            }
        }
        archive.end()
    }

    /// Writes the upper layer of those [of layers](Self::is_of_layers): it hides all that the lower one has.
    pub fn write_upper(self, count: u64, out: &mut dyn Write) -> io::Result<()> {
        let mut archive = Archive(out);
        for n in 0..count {
            archive.put(&format!("{:04}/.wh.{n:07}", n / EACH), b'0', "", b"")?;
        }
        archive.end()
    }
}

fn name(n: u64) -> String {
    format!("{:04}/{n:07}", n / EACH)
}

fn files(archive: &mut Archive, count: u64, records: &[u8]) -> io::Result<()> {
    (0..count).try_for_each(|n| archive.put(&name(n), b'0', "", records))
}

/// A record of a pax header, which counts its own length.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + " =\n".len();
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    format!("{} {key}={value}\n", length.unwrap_or(rest)).into_bytes()
}

/// Writes an archive, one header after the other, without anything in memory.
struct Archive<'a>(&'a mut dyn Write);

impl Archive<'_> {
    /// Writes an entry without data; `records` are those of its pax header.
    fn put(&mut self, name: &str, kind: u8, link: &str, records: &[u8]) -> io::Result<()> {
        let mut records = records.to_vec();
        if name.len() > 100 {
            records.extend(record("path", name));
        }
        if !records.is_empty() {
            self.header_of("x", &records)?;
        }
        self.block(&name[..name.len().min(100)], kind, link, 0)
    }

    fn header_of(&mut self, kind: &str, records: &[u8]) -> io::Result<()> {
        self.block("pax", kind.as_bytes()[0], "", records.len())?;
        self.0.write_all(records)?;
        self.0.write_all(&vec![0; records.len().next_multiple_of(512) - records.len()])
    }

    /// Writes a header block (POSIX.1-1988, "ustar Interchange Format").
    fn block(&mut self, name: &str, kind: u8, link: &str, size: usize) -> io::Result<()> {
        let mut block = [0; 512];
        let mut text = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        text(0, name.as_bytes());
        text(100, b"0000755\x000000000\x000000000\0");
        text(124, format!("{size:011o}\x00{:011o}\0        ", 1000).as_bytes());
        text(156, &[kind]);
        text(157, link.as_bytes());
        text(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.write_all(&block)
    }

    fn end(&mut self) -> io::Result<()> {
        self.0.write_all(&[0; 1024])?;
        self.0.flush()
    }
}

/// What one archive took.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Row {
    pub shape: &'static str,
    pub count: u64,
    pub cpu_seconds: f64,
    pub wall_seconds: f64,
    pub peak_memory_bytes: u64,
    pub cpu_nanoseconds_each: u64,
    /// Of what is above the peak with nearly nothing in the archive.
    pub memory_bytes_each: u64,
    /// How much longer one of them took than one of the smallest archive: 1 where time is linear.
    pub to_smallest: f64,
}

/// Returns the rows of a shape: `measured` is by count, `without` what nearly nothing takes.
pub fn rows(shape: Shape, without: &Measured, measured: &[(u64, Measured)]) -> Vec<Row> {
    let each = |count: u64, one: &Measured| one.cpu.saturating_sub(without.cpu).as_secs_f64() / count as f64;
    let smallest = measured.first().map_or(0.0, |(count, one)| each(*count, one));
    let row = |(count, one): &(u64, Measured)| Row {
        shape: shape.name(),
        count: *count,
        cpu_seconds: one.cpu.as_secs_f64(),
        wall_seconds: one.wall.as_secs_f64(),
        peak_memory_bytes: one.peak_memory,
        cpu_nanoseconds_each: (each(*count, one) * 1e9) as u64,
        memory_bytes_each: one.peak_memory.saturating_sub(without.peak_memory) / count,
        to_smallest: if smallest > 0.0 { each(*count, one) / smallest } else { 0.0 },
    };
    measured.iter().map(row).collect()
}

/// Renders the rows as a table.
pub fn table(rows: &[Row]) -> String {
    let title = |name: &str| Shape::ALL.iter().find(|shape| shape.name() == name).map_or("", |shape| shape.title());
    let cells: Vec<[String; 7]> = rows
        .iter()
        .map(|row| {
            [
                title(row.shape).to_owned(),
                row.count.to_string(),
                format!("{:.2} s", row.cpu_seconds),
                format!("{:.2} µs", row.cpu_nanoseconds_each as f64 / 1000.0),
                format!("{:.2}", row.to_smallest),
                human_bytes(row.peak_memory_bytes),
                format!("{} B", row.memory_bytes_each),
            ]
        })
        .collect();
    table::columns(["what", "how many", "CPU", "CPU each", "to the smallest", "memory", "memory each"], &cells)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snug_rootfs::layers::{LIMITS, Layers};
    use snug_rootfs::tar;

    use super::*;

    #[test]
    fn every_archive_reads_as_as_many_as_it_should_have() {
        for shape in Shape::ALL {
            let count = 2600;
            let mut archive = Vec::new();
            shape.write(count, &mut archive).unwrap();
            let spool = || tempfile::tempfile().unwrap();
            let tree = tar::read_stream(archive.as_slice(), spool(), &tar::Limits::default(), &mut |_| {}).unwrap();
            let expected = count as usize..count as usize + 100;
            assert!(expected.contains(&tree.len()), "{}: {}", shape.name(), tree.len());
            if shape.is_of_layers() {
                let mut layers = Layers::new(spool(), &LIMITS).unwrap();
                layers.apply(archive.as_slice()).unwrap();
                let mut upper = Vec::new();
                shape.write_upper(count, &mut upper).unwrap();
                layers.apply(upper.as_slice()).unwrap();
                // The directories stay.
                assert_eq!(layers.finish().unwrap().len(), 4);
            }
        }
    }

    #[test]
    fn what_is_linear_takes_as_long_for_each() {
        let measured = |seconds: u64, mebibytes: u64| Measured {
            cpu: Duration::from_secs(seconds),
            wall: Duration::from_secs(seconds),
            to_disk: Duration::from_secs(seconds),
            peak_memory: mebibytes << 20,
        };
        let rows = rows(Shape::Files, &measured(1, 10), &[(1 << 10, measured(2, 11)), (1 << 12, measured(9, 14))]);
        assert_eq!((rows[0].to_smallest, rows[1].to_smallest), (1.0, 2.0));
        assert_eq!((rows[0].memory_bytes_each, rows[1].memory_bytes_each), (1024, 1024));
    }
}
