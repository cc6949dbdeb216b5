//! `bench` measures every candidate and leaves nothing behind. Its times are not tested.

use std::fs;
use std::process::Command;

use serde_json::Value;
use snug_tests::{have, succeed, xtask};

#[test]
fn it_measures_what_is_installed_and_leaves_nothing() {
    if !have(&["mke2fs", "tar2sqfs", "mksquashfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (tar, cache) = (folder.path().join("root.tar"), folder.path().join("cache"));
    let script = "mkdir -p root/usr/share; seq 100000 > root/usr/share/numbers; \
                  for n in $(seq 200); do echo $n > root/usr/share/$n; done; tar -cf root.tar -C root .";
    succeed(Command::new("sh").args(["-ec", script]).current_dir(folder.path()));
    let mut command = xtask();
    command.args(["bench", "--rounds", "2", "--json"]).arg(&tar).env("XDG_CACHE_HOME", &cache);
    let about: Value = serde_json::from_slice(&succeed(&mut command).stdout).expect("JSON");

    assert_eq!(about["schema"], 1);
    assert_eq!(about["tar"]["size-bytes"], fs::metadata(&tar).expect("the tar").len());
    assert!(about["sha256"]["bytes-per-second"].as_u64().expect("a number") > 0);
    let rows = about["candidates"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    let known = [
        "cp",
        "snug",
        "snug-digest",
        "snug-digests",
        "snug-on-disk",
        "snug-pipe",
        "tar-extract",
        "mke2fs",
        "loop",
        "tar2sqfs",
        "mksquashfs",
        "mkfs.erofs",
    ];
    let is_root = succeed(Command::new("id").arg("-u")).stdout == b"0\n";
    // The cache is a new one: erofs-utils of a newer Debian are not in it.
    let erofs = have_erofs();
    let expected: Vec<&str> =
        known.into_iter().filter(|name| (is_root || *name != "loop") && (erofs || *name != "mkfs.erofs")).collect();
    assert_eq!(names, expected);
    for row in rows {
        for number in [
            "cpu-seconds",
            "wall-seconds",
            "to-disk-seconds",
            "cpu-to-cp",
            "wall-to-cp",
            "to-disk-to-cp",
            "peak-memory-bytes",
        ] {
            assert!(row[number].as_f64().expect("a number") > 0.0, "{number} of {row}");
        }
        let compresses = row["name"].as_str().expect("a name").ends_with("sqfs") || row["name"] == "mksquashfs";
        assert_eq!(row["rounds"], if compresses { 1 } else { 2 });
    }
    let bytes = |name: &str| rows.iter().find(|row| row["name"] == name).expect("a row")["output-bytes"].clone();
    assert_eq!(bytes("cp"), about["tar"]["size-bytes"]);
    assert_eq!(bytes("snug"), bytes("snug-pipe"));
    assert_eq!(bytes("snug"), bytes("snug-digest"));
    assert_eq!(bytes("snug"), bytes("snug-digests"));
    assert_eq!(bytes("snug"), bytes("snug-on-disk"));
    assert_eq!(fs::read_dir(cache.join("snug/work")).expect("the cache").count(), 0, "the scratch space is gone");
}

/// Whether the host's own mkfs.erofs reads tars.
fn have_erofs() -> bool {
    let Ok(output) = Command::new("mkfs.erofs").arg("--version").output() else { return false };
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = said.split_whitespace().last().unwrap_or_default();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(1), Some(8))
}

#[test]
fn an_unknown_candidate_is_wrong_usage() {
    let output = xtask().args(["bench", "--only", "snug,rsync"]).output().expect("xtask runs");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("`rsync` cannot be measured") && said.contains("snug-pipe"), "{said}");
}
