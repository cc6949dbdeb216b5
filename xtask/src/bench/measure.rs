//! Measures one child process.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use snug_process::Child;

/// Bytes written to a pipe at once: the default capacity of a pipe (pipe(7)).
const PIPE: usize = 64 << 10;
/// Bytes of a failed child's standard error that are shown.
const ERROR_BYTES: usize = 2000;

/// Resources that a process used, including its children that it waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// User and system time.
    pub cpu: Duration,
    /// Time until the process ended; its output may be in the page cache only.
    pub wall: Duration,
    /// Time until its output was on the disk.
    pub to_disk: Duration,
    /// Largest resident set, in bytes.
    pub peak_memory: u64,
}

/// Runs a command to its end, with `feed` in a pipe on its standard input, and syncs its `output`, a file or a folder, to
/// the disk.
pub fn measure(command: &mut Command, feed: Option<&File>, output: &Path) -> Result<Measured> {
    command.stdin(if feed.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut child = Child::start(command)?;
    let name = child.name().to_owned();
    let (input, errors) = (child.stdin.take(), child.stderr.take());
    let (measured, said) = thread::scope(|scope| {
        if let (Some(mut input), Some(file)) = (input, feed) {
            scope.spawn(move || feed_stdin(file, &mut input));
        }
        let said = scope.spawn(move || {
            let mut said = Vec::new();
            errors.map(|mut errors| errors.read_to_end(&mut said));
            said
        });
        let measured = child.wait_with_usage().map(|ended| (ended, started.elapsed()));
        (measured, said.join().unwrap_or_default())
    });
    let ((status, usage), wall) = measured.with_context(|| format!("cannot wait for {name}"))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&said[said.len().saturating_sub(ERROR_BYTES)..]).into_owned();
        bail!("{name} failed\n{}", said.trim_end());
    }
    let settling = Instant::now();
    sync_output(output).with_context(|| format!("cannot wait for {} to be on the disk", output.display()))?;
    Ok(Measured { cpu: usage.cpu, wall, to_disk: wall + settling.elapsed(), peak_memory: usage.peak_memory })
}

/// Syncs a file with fsync(2), or a folder with syncfs(2), which waits for all other writes to its filesystem as well.
pub fn sync_output(output: &Path) -> io::Result<()> {
    let file = File::open(output)?;
    match file.metadata()?.is_dir() {
        true => Ok(nix::unistd::syncfs(&file)?),
        false => file.sync_all(),
    }
}

/// Copies the file to the child. An error is ignored: a child that stops reading early shows that in its exit status.
fn feed_stdin(mut file: &File, input: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; PIPE];
    io::Seek::rewind(&mut file)?;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => input.write_all(&buffer[..count])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    /// Something that is there.
    fn nothing_made() -> std::path::PathBuf {
        std::env::current_exe().unwrap()
    }

    #[test]
    fn children_are_counted_and_failures_told() {
        let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let measured = measure(&mut shell(&format!("{busy}; sh -c '{busy}'")), None, &nothing_made()).unwrap();
        assert!(
            measured.cpu > Duration::ZERO
                && measured.wall > Duration::ZERO
                && measured.to_disk >= measured.wall
                && measured.peak_memory > 0
        );
        let error = measure(&mut shell("echo why >&2; exit 3"), None, &nothing_made()).unwrap_err();
        assert_eq!(error.to_string(), "sh failed\nwhy");
    }

    #[test]
    fn a_file_comes_through_the_pipe() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'x'; 300_000]).unwrap();
        for _ in 0..2 {
            measure(&mut shell("test $(wc -c) = 300000"), Some(&file), &nothing_made()).unwrap();
        }
        // Who stops reading early is no failure of the pipe.
        measure(&mut shell("exit 0"), Some(&file), &nothing_made()).unwrap();
    }
}
