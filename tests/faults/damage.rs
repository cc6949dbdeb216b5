//! Damaged entries of the cache, and clocks that jump.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use snug_tests::{skip, succeed};

use super::arena::{Arena, Count, NAME};
use super::traces::Random;

/// What becomes of an entry.
const DAMAGES: [&str; 7] = ["a flipped bit", "cut short", "empty", "gone", "a folder", "a pipe", "a link to nothing"];

fn damage(path: &Path, how: &str, random: &mut Random) {
    let mut bytes = fs::read(path).expect("an entry");
    match how {
        "a flipped bit" if !bytes.is_empty() => {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            return fs::write(path, bytes).expect("written");
        }
        "cut short" | "empty" | "a flipped bit" => {
            let length = if how == "empty" { 0 } else { random.below(bytes.len() as u64 + 1) as usize };
            bytes.truncate(length);
            return fs::write(path, bytes).expect("written");
        }
        _ => {}
    }
    fs::remove_file(path).expect("an entry");
    match how {
        "a folder" => fs::create_dir(path).expect("a folder"),
        "a pipe" => drop(succeed(Command::new("mkfifo").arg(path))),
        "a link to nothing" => symlink("nothing", path).expect("a link"),
        _ => {}
    }
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match path.symlink_metadata() {
            Ok(about) if about.is_dir() => files(&path, found),
            // What is a pipe by now stays one.
            Ok(about) if about.is_file() => found.push(path),
            _ => {}
        }
    }
}

/// Damages each file of the cache in each way, at most `times` in all, and has the image written from what is left.
pub(super) fn damage_each(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    let arena = Arena::with("", |_| {});
    let cache = arena.workshop.path("cache/snug");
    let mut count = Count::default();
    for turn in 0..times {
        let mut found = Vec::new();
        files(&cache, &mut found);
        // Trees in every other turn: there are more locks.
        let is_tree = |path: &PathBuf| path.starts_with(cache.join("trees"));
        if turn % 2 == 0 || found.iter().all(is_tree) {
            found.retain(is_tree);
        } else {
            found.retain(|path| !is_tree(path));
        }
        let path = &found[random.below(found.len() as u64) as usize];
        let how = DAMAGES[(turn / 2) % DAMAGES.len()];
        damage(path, how, random);
        // From the tree in the cache.
        let _ = fs::remove_file(arena.image());
        let output = arena.output(&["image", NAME]);
        let what = format!("{} is {how}", path.display());
        if !output.status.success() {
            count.failing += 1;
            count.told.push(format!("{what}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        count.add(arena.judge(&what, || {}));
    }
    vec![("damaged entries of the cache", count)]
}

/// Builds with clocks that are years and seconds off, by libfaketime.
pub(super) fn jump(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    let folders = ["x86_64-linux-gnu", "aarch64-linux-gnu"];
    let library = folders.map(|folder| format!("/usr/lib/{folder}/faketime/libfaketimeMT.so.1"));
    let Some(library) = library.iter().find(|library| Path::new(library).exists()) else {
        skip("needs libfaketime");
        return Vec::new();
    };
    let arena = Arena::with("", |_| {});
    let mut count = Count::default();
    for turn in 0..times {
        arena.choose((turn + 1) % 2, "");
        let offset = ["-30y", "+30y", "-3s", "+3s", "-1d", "+400d"][random.below(6) as usize];
        let mut command = arena.command(&["image", NAME]);
        command.env("LD_PRELOAD", library).env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        let output = command.stderr(std::process::Stdio::piped()).output().expect("xtask runs");
        if !output.status.success() {
            count.failing += 1;
            count.told.push(format!("clock {offset}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        count.add(arena.judge(&format!("clock {offset}"), || {}));
    }
    vec![("clocks that jump", count)]
}
