//! The memory of the native writer: a bounded number of bytes for each inode, and nothing that grows with file content.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use snug_tests::{have, succeed, xtask};

/// The most memory that an inode may take, including its name and its place in the image, in bytes.
const BYTES_PER_INODE: u64 = 700;
/// Files of the smaller and of the larger tar: enough that a growing list is seen at its worst.
const FILES: [u64; 2] = [5_000, 65_000];

/// A tar of `files` files of one byte, 50 in a folder, with names as long as those of node_modules.
fn tar(folder: &Path, files: u64) -> PathBuf {
    let script = "import io, sys, tarfile\n\
                  with tarfile.open(sys.argv[1], 'w') as archive:\n\
                  \x20   for number in range(int(sys.argv[2])):\n\
                  \x20       info = tarfile.TarInfo(f'usr/lib/node_modules/package-{number // 50:05}/dist/part-{number:06}.js')\n\
                  \x20       info.size = 1\n\
                  \x20       archive.addfile(info, io.BytesIO(b'x'))\n";
    let place = folder.join(format!("{files}.tar"));
    succeed(Command::new("python3").args(["-c", script]).arg(&place).arg(files.to_string()));
    place
}

/// Largest resident sets, in bytes, of the writer from a file, with digests, and from a pipe.
pub(crate) fn peaks(tar: &Path, cache: &Path) -> Vec<(String, u64)> {
    let mut bench = xtask();
    bench.args(["bench", "--rounds", "1", "--only", "snug,snug-digests,snug-pipe", "--json"]).arg(tar);
    let about: Value = serde_json::from_slice(&succeed(bench.env("XDG_CACHE_HOME", cache)).stdout).expect("JSON");
    let rows = about["candidates"].as_array().expect("rows").iter().filter(|row| row["name"] != "cp");
    let peaks: Vec<(String, u64)> = rows
        .map(|row| {
            let name = row["name"].as_str().expect("a name").to_owned();
            (name, row["peak-memory-bytes"].as_u64().expect("bytes"))
        })
        .collect();
    assert_eq!(peaks.len(), 3, "{about}");
    peaks
}

#[test]
fn an_inode_takes_no_more_than_it_may() {
    if !have(&["python3"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = folder.path().join("cache");
    let [few, many] = FILES.map(|files| {
        let tar = tar(folder.path(), files);
        let peaks = peaks(&tar, &cache);
        fs::remove_file(tar).expect("the folder is ours");
        peaks
    });
    // The folders count as well: two to fifty files.
    let inodes = (FILES[1] - FILES[0]) * 52 / 50;
    for ((name, few), (_, many)) in few.into_iter().zip(many) {
        let each = many.saturating_sub(few) / inodes;
        println!("{name}: {each} bytes an inode, {few} and {many} in all");
        assert!(each <= BYTES_PER_INODE, "{name}: {each} bytes an inode");
    }
}
