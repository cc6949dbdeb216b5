//! `kill -9` at random moments of the verbs.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use snug_tests::succeed;

use super::arena::{Arena, Count, NAME};
use super::traces::Random;

/// How long a boot is let to come.
const BOOT: Duration = Duration::from_millis(1500);

/// Kills each verb `times` times.
pub(super) fn kill(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    let arena = Arena::with("", |_| {});
    let kernel = arena.workshop.path("kernel");
    fs::write(&kernel, idle_kernel()).expect("a kernel");
    let tar = arena.workshop.path("exported.tar").display().to_string();
    fs::write(&tar, "").expect("a file");
    arena.take_as_given();
    let kernel = kernel.display().to_string();
    let verbs: [(&str, &[&str]); 4] = [
        ("kill -9 image", &["image", NAME]),
        ("kill -9 check", &["check", NAME]),
        ("kill -9 export", &["export", NAME, "-o", &tar]),
        ("kill -9 boot", &["boot", NAME, "--ssh", "--accel", "tcg", "--kernel", &kernel]),
    ];
    let mut counts = Vec::new();
    for (title, words) in verbs {
        let mut count = Count::default();
        let command = || {
            let mut command = arena.command(words);
            if words[0] == "boot" {
                command.args(["--", "true"]);
            }
            command
        };
        // How long it takes here tells which moments are worth a kill.
        let whole = match words[0] {
            // The machine never comes up.
            "boot" => BOOT,
            "image" => arena.time,
            _ => {
                let began = Instant::now();
                succeed(&mut command());
                began.elapsed()
            }
        };
        for turn in 0..times {
            if words[0] == "image" {
                // The other version, so that all three files are others.
                arena.choose((turn + 1) % 2, "");
            }
            let after = Duration::from_micros(random.below(whole.as_micros() as u64 + 1));
            let mut running = command().spawn().expect("xtask runs");
            thread::sleep(after);
            // It may have ended by itself.
            let _ = running.kill();
            running.wait().expect("a child");
            // Beside the tar only the next export looks.
            if words[0] == "export" {
                succeed(&mut command());
            }
            count.add(arena.judge(&format!("{title} after {after:?}"), || {}));
        }
        counts.push((title, count));
    }
    counts
}

/// Returns a kernel that QEMU starts and that does nothing: an ELF file with a PVH entry (Xen's `XEN_ELFNOTE_PHYS32_ENTRY`)
/// at which the processor halts.
fn idle_kernel() -> Vec<u8> {
    /// Where the code is loaded, and where it lies in the file.
    const ADDRESS: u64 = 0x10_0000;
    const CODE: u64 = 0x1000;
    const NOTE: u64 = 0x200;
    let mut note = Vec::new();
    for number in [4u32, 8, 18] {
        note.extend(number.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(ADDRESS.to_le_bytes());
    let mut code = b"\xfa\xf4\xeb\xfd".to_vec();
    // The tool asks a kernel for its version.
    code.extend(b"Linux version 6.1.0-idle (nobody)\n\0");
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    file.extend([ADDRESS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0u32.to_le_bytes());
    file.extend([64u16, 56, 2, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let segment = |kind: u32, flags: u32, offset: u64, address: u64, size: u64| {
        let mut header = [kind, flags].iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<u8>>();
        header.extend([offset, address, address, size, size, 4].iter().flat_map(|word| word.to_le_bytes()));
        header
    };
    file.extend(segment(1, 5, CODE, ADDRESS, code.len() as u64));
    file.extend(segment(4, 4, NOTE, 0, note.len() as u64));
    file.resize(NOTE as usize, 0);
    file.extend(note);
    file.resize(CODE as usize, 0);
    file.extend(code);
    file
}
