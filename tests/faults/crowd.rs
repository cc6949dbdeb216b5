//! Builds at once, and `clean` beside them.

use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use super::arena::{Arena, Count, NAME};
use super::traces::Random;

/// Starts two and four builds of one image at once, `times` times, with `clean` beside every other crowd.
pub(super) fn crowd(times: usize, random: &mut Random) -> Vec<(&'static str, Count)> {
    let arena = Arena::with("", |_| {});
    let mut counts = Vec::new();
    for (title, builds, cleans) in
        [("two builds at once", 2, false), ("four builds at once", 4, false), ("clean during builds", 2, true)]
    {
        let mut count = Count::default();
        for _ in 0..times {
            let mut running: Vec<Child> = Vec::new();
            for build in 0..builds {
                // Each publishes another image than the one before.
                arena.choose(build % 2, "");
                let mut command = arena.command(&["image", NAME, "--refresh"]);
                running.push(command.stderr(Stdio::piped()).spawn().expect("xtask runs"));
                thread::sleep(Duration::from_millis(random.below(200)));
            }
            if cleans {
                thread::sleep(Duration::from_micros(random.below(arena.time.as_micros() as u64)));
                running.push(arena.start_cleaning());
            }
            let mut after = Count::default();
            for run in running {
                let output = run.wait_with_output().expect("a child");
                if !output.status.success() {
                    after.failing += 1;
                    after.told.push(format!("{title}: {}", String::from_utf8_lossy(&output.stderr)));
                }
            }
            after.add(arena.judge(title, || {}));
            count.add(after);
        }
        counts.push((title, count));
    }
    counts
}
