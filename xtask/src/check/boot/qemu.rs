//! A virtual machine in QEMU, with its serial console and SSH port. Dropping it ends it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::Result;
use snug_process::lines::read_line;
use snug_process::program::HostProgram;
use snug_process::terminal::Settings;
use snug_process::{Child, child};

use super::{BootError, GUEST_ADDRESS};

const QEMU: HostProgram = HostProgram { name: "qemu-system-x86_64", package: "qemu-system-x86" };
/// Enough for the heaviest of our images, a browser, to start its services; QEMU takes only what the guest touches.
const MEMORY: &str = "2048M";
/// Shown instead of the console's last lines, if there are none.
const SILENCE: &str = "hint: it printed nothing at all; an emulated machine on a busy host sometimes hangs, and starts the \
                       next time. A kernel of your own needs a console at ttyS0 or, without an initramfs, at hvc0";
/// The end of the serial console that an error shows, in lines.
const TAIL_LINES: usize = 40;
/// Ports to try in turn, where other processes take them.
const PORTS_TO_TRY: usize = 4;
/// How long to wait for the first word of the guest, or QEMU's end.
const FIRST_WORD: Duration = Duration::from_secs(2);
/// What QEMU says of a port that is taken (net/slirp.c).
const PORT_TAKEN: &str = "Could not set up host forwarding rule";
/// Interval between attempts: QEMU's port forwarding accepts connections before the guest listens.
const BANNER_RETRY: Duration = Duration::from_millis(200);
const BANNER_TIMEOUT: Duration = Duration::from_secs(5);
/// RFC 4253, 4.2: an identification line is 255 characters at most.
const BANNER_LIMIT: u64 = 255;
const BANNER_START: &str = "SSH-2.0-";
const SSH_PORT: u16 = 22;

/// How QEMU executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accelerator {
    /// Emulation: works everywhere, some ten times slower.
    #[default]
    Tcg,
    /// Virtualization through /dev/kvm.
    Kvm,
}

impl Accelerator {
    pub fn as_str(self) -> &'static str {
        match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        }
    }

    /// The accelerator with the machine that suits it; the lean one for kernels with all drivers built in, which need not
    /// know PCI: their devices sit on virtio-mmio, and the command line tells where.
    ///
    /// Emulated on a busy host, the lean `microvm` machine got stuck before `/init` in 6 of 22 boots; where the kernel's
    /// messages were kept, the last said that it could not measure the processor's clock ("no reference
    /// (HPET/PMTIMER) available"). `q35` has both references, came up each time, and costs about a second. Under KVM the
    /// kernel is told the clock. There, pcie is for Debian's kernel, which learns of no virtio devices from its command
    /// line, and rtc for `/init`'s clock.
    fn arguments(self, lean: bool) -> [&'static str; 6] {
        match (self, lean) {
            (Accelerator::Tcg, false) => ["-M", "q35", "-accel", "tcg", "-cpu", "max"],
            (Accelerator::Kvm, false) => ["-M", "microvm,pcie=on,rtc=on", "-accel", "kvm", "-cpu", "host"],
            (Accelerator::Tcg, true) => ["-M", "microvm,acpi=off,rtc=on", "-accel", "tcg", "-cpu", "max"],
            (Accelerator::Kvm, true) => ["-M", "microvm,acpi=off,rtc=on", "-accel", "kvm", "-cpu", "host"],
        }
    }
}

/// A disk of a machine, raw.
#[derive(Debug, Clone, Copy)]
pub struct Disk<'a> {
    pub path: &'a Path,
    /// Whether the guest's writes go to the file; else to a temporary one of QEMU.
    pub written: bool,
}

impl<'a> Disk<'a> {
    /// Returns a disk whose file does not change; QEMU discards the guest's writes.
    pub fn discarding_writes(path: &'a Path) -> Self {
        Disk { path, written: false }
    }

    /// Returns a disk that keeps the guest's writes.
    pub fn keeping_writes(path: &'a Path) -> Self {
        Disk { path, written: true }
    }
}

/// What to start.
pub struct Machine<'a> {
    pub kernel: &'a Path,
    /// `None` for a kernel that mounts the image by itself: its machine has all devices on virtio-mmio.
    pub initramfs: Option<&'a Path>,
    /// Seen as /dev/vda, /dev/vdb and so on.
    pub disks: &'a [Disk<'a>],
    /// The kernel command line.
    pub arguments: &'a str,
    pub accelerator: Accelerator,
    /// File that receives the output of the serial console.
    pub log: &'a Path,
    /// Time limit of all waiting ([`Guest::wait_for`] and the like), from the start.
    pub budget: Duration,
}

/// A running machine. It is killed when it is dropped, and when the thread that started it ends.
pub struct Guest {
    child: Child,
    started: Instant,
    budget: Duration,
    ssh_address: SocketAddr,
    console: Receiver<Chunk>,
    /// All of the serial console so far, and when the bytes up to an offset had come.
    log: String,
    arrivals: Vec<(usize, Duration)>,
    /// Whether any of it is of the guest, not of QEMU.
    guest_spoke: bool,
    closed: bool,
}

struct Chunk {
    text: String,
    at: Duration,
    of_guest: bool,
}

impl Guest {
    /// Starts the machine. It has a network card whose SSH port is forwarded to [`Guest::ssh_address`] and which
    /// reaches nothing else.
    pub fn start(machine: &Machine) -> Result<Self, BootError> {
        for _ in 1..PORTS_TO_TRY {
            let mut guest = Self::start_at(machine, free_address().map_err(failed)?)?;
            if !guest.has_lost_its_port(FIRST_WORD) {
                return Ok(guest);
            }
        }
        Self::start_at(machine, free_address().map_err(failed)?)
    }

    /// Whether another process took the port before QEMU did, on which QEMU ends at once.
    fn has_lost_its_port(&mut self, patience: Duration) -> bool {
        // QEMU may warn of something else before.
        while !self.guest_spoke && !self.log.contains(PORT_TAKEN) {
            let left = patience.saturating_sub(self.started.elapsed());
            // Whatever else went wrong is for who waits for the machine.
            if left.is_zero() || self.read_console(left, &String::new).is_err() {
                break;
            }
        }
        self.log.contains(PORT_TAKEN)
    }

    fn start_at(machine: &Machine, ssh_address: SocketAddr) -> Result<Self, BootError> {
        let mut command = command(machine, ssh_address)?;
        command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]);
        Self::run(command, machine, ssh_address)
    }

    /// Runs the command, whose standard output is the guest's console.
    fn run(mut command: Command, machine: &Machine, ssh_address: SocketAddr) -> Result<Self, BootError> {
        let log = File::create(machine.log).map_err(failed)?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = Child::start(&mut command).map_err(|error| failed(error.source))?;
        let (sender, console) = mpsc::channel();
        let stdout = child.stdout.take().expect("a pipe was asked for");
        let stderr = child.stderr.take().expect("a pipe was asked for");
        let complaints = sender.clone();
        std::thread::spawn(move || follow(stdout, log, started, &sender));
        // QEMU's own error messages join the console's output: they explain why it ended.
        std::thread::spawn(move || {
            let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
            while read_line(&mut stderr, &mut line).is_ok_and(|found| found) {
                let text = String::from_utf8_lossy(&line).into_owned();
                let _ = complaints.send(Chunk { text, at: started.elapsed(), of_guest: false });
            }
        });
        Ok(Guest {
            child,
            started,
            budget: machine.budget,
            ssh_address,
            console,
            log: String::new(),
            arrivals: Vec::new(),
            guest_spoke: false,
            closed: false,
        })
    }

    /// Sets the time limit to `budget` from now on.
    pub fn allow(&mut self, budget: Duration) {
        self.budget = self.started.elapsed() + budget;
    }

    /// Where the guest's SSH server can be reached from this host.
    pub fn ssh_address(&self) -> SocketAddr {
        self.ssh_address
    }

    /// Waits for `marker` on the serial console. Returns the time from QEMU's start. Messages of the kernel may break lines,
    /// so a marker should be short.
    pub fn wait_for(&mut self, marker: &str) -> Result<Duration, BootError> {
        let awaited = || format!("{marker:?}");
        loop {
            if let Some(time) = self.seen_at(marker) {
                return Ok(time);
            }
            self.read_console(self.time_left(&awaited)?, &awaited)?;
        }
    }

    /// Returns the time at which `marker` came, if it has.
    pub fn seen_at(&self, marker: &str) -> Option<Duration> {
        let end = self.log.find(marker)? + marker.len();
        let index = self.arrivals.partition_point(|(offset, _)| *offset < end);
        self.arrivals.get(index).map(|(_, time)| *time)
    }

    /// The serial console so far. Call [`Guest::wait_for`] to have it read on.
    pub fn console(&self) -> &str {
        &self.log
    }

    /// Waits for an SSH server. Returns its identification line and the time from QEMU's start.
    pub fn read_ssh_banner(&mut self) -> Result<(String, Duration), BootError> {
        let awaited = || format!("an SSH server at {}", self.ssh_address);
        let awaited = awaited();
        loop {
            if let Ok(banner) = ask_for_banner(self.ssh_address) {
                let time = self.started.elapsed();
                // The report needs what the console printed in the meantime.
                self.take_what_came();
                return Ok((banner, time));
            }
            let left = self.time_left(&|| awaited.clone())?;
            self.read_console(left.min(BANNER_RETRY), &|| awaited.clone())?;
            if self.closed {
                return Err(self.ended(awaited));
            }
        }
    }

    /// Waits until the machine has powered off. Returns the time from QEMU's start.
    pub fn wait_for_end(&mut self) -> Result<Duration, BootError> {
        let awaited = || "the machine's end".to_owned();
        while !self.closed {
            let left = self.time_left(&awaited)?;
            match self.read_console(left, &awaited) {
                Err(BootError::Ended { .. }) => break,
                other => other?,
            }
        }
        self.child.wait().map_err(failed)?;
        Ok(self.started.elapsed())
    }

    fn time_left(&self, awaited: &dyn Fn() -> String) -> Result<Duration, BootError> {
        self.budget
            .checked_sub(self.started.elapsed())
            .filter(|left| !left.is_zero())
            .ok_or_else(|| BootError::TimedOut { awaited: awaited(), budget: self.budget, tail: self.tail() })
    }

    fn take(&mut self, chunk: &Chunk) {
        self.log.push_str(&chunk.text);
        self.arrivals.push((self.log.len(), chunk.at));
        self.guest_spoke |= chunk.of_guest;
    }

    /// Reads what the console has printed by now, without waiting.
    fn take_what_came(&mut self) {
        while let Ok(chunk) = self.console.try_recv() {
            self.take(&chunk);
        }
    }

    /// Reads what the console has printed, after waiting for output for at most `patience`.
    fn read_console(&mut self, patience: Duration, awaited: &dyn Fn() -> String) -> Result<(), BootError> {
        if self.closed {
            return Err(self.ended(awaited()));
        }
        match self.console.recv_timeout(patience) {
            Ok(chunk) => {
                self.take(&chunk);
                self.take_what_came();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closed = true,
        }
        Ok(())
    }

    fn ended(&mut self, awaited: String) -> BootError {
        let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
        BootError::Ended { awaited, status, tail: self.tail() }
    }

    fn tail(&self) -> String {
        if self.log.is_empty() {
            return SILENCE.to_owned();
        }
        let lines: Vec<&str> = self.log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

fn failed(source: io::Error) -> BootError {
    BootError::Run { program: QEMU.name, source }
}

/// Returns the command that starts the machine, without the serial console and its chardev `console`; a console over virtio
/// uses the same chardev.
fn command(machine: &Machine, ssh_address: SocketAddr) -> Result<Command, BootError> {
    let mut command = QEMU.command()?;
    let lean = machine.initramfs.is_none();
    let bus = if lean { "device" } else { "pci" };
    command
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-m", MEMORY])
        .args(machine.accelerator.arguments(lean))
        .arg("-kernel")
        .arg(machine.kernel)
        .args(["-append", machine.arguments])
        .arg("-netdev")
        .arg(format!("user,id=network,restrict=on,hostfwd=tcp:{ssh_address}-{GUEST_ADDRESS}:{SSH_PORT}"))
        .args(["-device", &format!("virtio-net-{bus},netdev=network")])
        .args(["-object", "rng-random,id=random,filename=/dev/urandom"])
        .args(["-device", &format!("virtio-rng-{bus},rng=random")]);
    for (number, disk) in machine.disks.iter().enumerate() {
        let snapshot = if disk.written { "off" } else { "on" };
        let path = escaped(disk.path);
        command
            .arg("-drive")
            .arg(format!("if=none,id=disk{number},format=raw,snapshot={snapshot},file={path}"))
            .args(["-device", &format!("virtio-blk-{bus},drive=disk{number}")]);
    }
    if let Some(initramfs) = machine.initramfs {
        command.arg("-initrd").arg(initramfs);
    } else {
        command.args(["-device", "virtio-serial-device", "-device", "virtconsole,chardev=console"]);
    }
    Ok(command)
}

/// Returns the command that runs a machine with its console on standard input and output, and the guest's SSH port at
/// `ssh_address`.
pub fn terminal_command(machine: &Machine, ssh_address: SocketAddr) -> Result<Command, BootError> {
    let mut command = command(machine, ssh_address)?;
    command.args(["-chardev", "stdio,id=console,mux=on,signal=off", "-serial", "chardev:console"]);
    command.args(["-mon", "chardev=console"]);
    Ok(command)
}

/// Runs a machine with its console on the terminal. Returns QEMU's exit status. Ctrl-A X ends the machine; Ctrl-C goes to
/// the guest.
pub fn run_on_terminal(machine: &Machine) -> Result<ExitStatus, BootError> {
    let mut command = terminal_command(machine, free_address().map_err(failed)?)?;
    // QEMU sets the terminal to raw mode; one that is killed leaves it so.
    let _settings = Settings::keep();
    Child::start(&mut command).map_err(|error| error.source).and_then(|mut qemu| qemu.wait()).map_err(failed)
}

/// Returns the program's name and version: `QEMU 7.2.18`.
pub(super) fn version() -> Result<String> {
    let output = child::output(QEMU.command()?.arg("--version"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let version = said.split_once("version ").map_or("", |(_, rest)| rest);
    let version: String = version.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    Ok(format!("QEMU {version}"))
}

/// Copies the console to the log and to `watcher`, until QEMU closes it. Invalid UTF-8 is replaced.
fn follow(mut console: ChildStdout, mut log: File, started: Instant, watcher: &Sender<Chunk>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = console.read(&mut buffer) {
        let bytes = &buffer[..length];
        // A full disk must not stop a boot.
        let _ = log.write_all(bytes);
        let text = String::from_utf8_lossy(bytes).into_owned();
        if watcher.send(Chunk { text, at: started.elapsed(), of_guest: true }).is_err() {
            return;
        }
    }
}

fn ask_for_banner(address: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&address, BANNER_TIMEOUT)?;
    stream.set_read_timeout(Some(BANNER_TIMEOUT))?;
    let mut line = String::new();
    BufReader::new(stream.take(BANNER_LIMIT)).read_line(&mut line)?;
    match line.starts_with(BANNER_START) && line.ends_with('\n') {
        true => Ok(line.trim_end().to_owned()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "no SSH identification line")),
    }
}

/// Returns a port of the host that is free now; another process may take it before QEMU does.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Escapes a path in QEMU's option syntax: a comma in a value is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program in QEMU's place, by whose end or first word it is settled.
    #[test]
    fn a_port_that_is_taken_is_seen_behind_other_complaints() {
        let folder = tempfile::tempdir().unwrap();
        for (script, lost) in [
            ("echo warning: of something >&2; sleep 0.1; echo \"$0 'tcp:…'\" >&2; exit 1", true),
            ("echo \"$0 'tcp:…'\" >&2; exit 1", true),
            ("echo warning: of something >&2; echo SeaBIOS; exec sleep 60", false),
            ("echo error: no such kernel >&2; exit 1", false),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", script, PORT_TAKEN]);
            let machine = Machine {
                kernel: Path::new(""),
                initramfs: None,
                disks: &[],
                arguments: "",
                accelerator: Accelerator::Tcg,
                log: &folder.path().join("log"),
                budget: Duration::ZERO,
            };
            let mut guest = Guest::run(command, &machine, free_address().unwrap()).unwrap();
            assert_eq!(guest.has_lost_its_port(Duration::from_secs(60)), lost, "{script}");
        }
    }
}
