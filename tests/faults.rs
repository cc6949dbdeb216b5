//! Faults keep the last image and leave nothing behind: kills, full disks, read-only folders, no network.

mod arena;
mod checked;
mod crowd;
mod damage;
mod disks;
mod kills;
mod leftovers;
mod traces;

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use snug_tests::{CLOSED, Workshop, have, is_root, succeed};

use self::arena::Count;
use self::disks::SmallDisk;
use self::traces::{Random, Traces};
use crate::proxy::VanishingProxy;

/// How often the build is killed.
const KILLS: usize = 20;
/// Bytes of the small disks, a tmpfs each.
const SMALL_DISK: u64 = 200 << 20;
/// A step that fills more than a small disk with what does not compress.
const MUCH: &str = "run = [\"dd if=/dev/urandom of=/much bs=1M count=230\"]";

#[test]
fn twenty_kills_at_random_moments_leave_the_image_and_nothing_else() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let mut random = Random::of_this_run();
    let workshop = Workshop::new();
    // All builds give the same bytes, so that any other is a broken one.
    let build = |words: &[&str]| {
        let mut command = workshop.xtask(words);
        command.env("SOURCE_DATE_EPOCH", "1735689600").stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // The marker identifies the steps among all processes of the machine.
    let marker = format!("env = {{ MARKER = \"{}\" }}", workshop.path("").display());
    let step = "run = [\"dd if=/dev/zero of=/file bs=1M count=20; seq 1 50000 > /numbers; sleep 0.2\"]";
    workshop.spec("killed", &format!("{marker}\n{step}"));
    succeed(&mut build(&["image", "killed"]));
    let image = workshop.image("killed");
    let good = fs::read(&image).expect("an image");
    let before = Traces::find(&workshop);

    // How long a build takes here tells which moments are worth a kill.
    let started = std::time::Instant::now();
    succeed(&mut build(&["image", "killed", "--refresh"]));
    let whole = started.elapsed().as_millis() as u64;
    assert_eq!(Traces::find(&workshop), before);
    for kill in 0..KILLS {
        let signal = ["INT", "TERM", "KILL"][kill % 3];
        let after = Duration::from_millis(random.below(whole + 1));
        let mut running = build(&["image", "killed", "--refresh"]).spawn().expect("xtask runs");
        std::thread::sleep(after);
        // It may have ended by itself.
        let _ = Command::new("kill").args([format!("-{signal}"), running.id().to_string()]).status();
        running.wait().expect("a child");
        let now = fs::read(&image).expect("the image");
        assert!(now == good, "kill {kill} ({signal} after {after:?}) cost the image");
        assert!(
            before.run_down(&workshop),
            "kill {kill} ({signal} after {after:?}) left {:#?}",
            Traces::find(&workshop).processes
        );
    }
    succeed(&mut build(&["image", "killed"]));
    assert_eq!(Traces::find(&workshop), before);
}

/// Faults of each kind in CI, and with `SNUG_LONG`.
const KILLED: [usize; 2] = [4, 50];
const FILLED: [usize; 2] = [4, 20];
const CROWDS: [usize; 2] = [1, 10];
const DAMAGED: [usize; 2] = [6, 56];
const JUMPED: [usize; 2] = [2, 12];

/// Causes faults of one kind, and counts what they cost.
type Kind<'a> = &'a dyn Fn(&mut Random) -> Vec<(&'static str, Count)>;

/// Prints a table of faults and of what they cost, which is nothing.
#[test]
fn no_fault_costs_an_image_or_leaves_anything() {
    if !is_root() || !have(&["busybox", "newuidmap", "debugfs", "e2fsck", "qemu-system-x86_64", "ssh-keygen"]) {
        return;
    }
    let mut random = Random::of_this_run();
    let long = usize::from(std::env::var_os("SNUG_LONG").is_some());
    // To look at one kind alone: `SNUG_FAULTS=crowd`.
    let only = std::env::var("SNUG_FAULTS").unwrap_or_default();
    let kinds: [(&str, Kind); 6] = [
        ("crowd", &|random| crowd::crowd(CROWDS[long], random)),
        ("kill", &|random| kills::kill(KILLED[long], random)),
        ("fill", &|random| disks::fill(FILLED[long], random)),
        ("fail", &|random| disks::fail(FILLED[long], random)),
        ("damage", &|random| damage::damage_each(DAMAGED[long], random)),
        ("jump", &|random| damage::jump(JUMPED[long], random)),
    ];
    let chosen = kinds.into_iter().filter(|(kind, _)| kind.starts_with(&only));
    let mut counts: Vec<(&str, Count)> = Vec::new();
    for (title, count) in chosen.flat_map(|(_, cause)| cause(&mut random)) {
        for told in &count.told {
            eprintln!("{told}");
        }
        eprintln!("{title:28} {count}");
        counts.push((title, count));
    }
    assert!(counts.iter().all(|(_, count)| count.is_clean()));
}

#[test]
fn a_full_or_read_only_folder_of_results_is_named_and_the_last_image_stays() {
    if !is_root() || !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let disk = SmallDisk::mount(workshop.path("out"), SMALL_DISK);
    workshop.spec("grown", "");
    assert!(workshop.build("grown").status.success());
    let good = fs::read(workshop.image("grown")).expect("an image");
    let stands = |said: &str| {
        assert!(fs::read(workshop.image("grown")).expect("the image") == good, "{said}");
        assert_eq!(workshop.names("out/grown"), ["contents.mtree", "manifest.json", "rootfs.ext4"], "{said}");
    };

    workshop.spec("grown", MUCH);
    let output = workshop.build("grown");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let folder = workshop.path("out/grown").display().to_string();
    assert!(said.contains(&format!("the disk of {folder} is full")), "{said}");
    assert!(said.contains("hint: free some space, or choose another folder with --output"), "{said}");
    stands(&said);

    succeed(Command::new("mount").args(["-o", "remount,ro"]).arg(&disk.0));
    workshop.spec("grown", "run = [\"sleep 1000\"]");
    let output = workshop.build("grown");
    let said = String::from_utf8_lossy(&output.stderr);
    // Told before the step is run, not after.
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("cannot write in {folder}")) && said.contains("Read-only file system"), "{said}");
    stands(&said);
}

#[test]
fn a_full_cache_is_named_and_the_last_image_stays() {
    if !is_root() || !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let _disk = SmallDisk::mount(workshop.path("cache"), SMALL_DISK);
    workshop.spec("grown", "");
    assert!(workshop.build("grown").status.success());
    let good = fs::read(workshop.image("grown")).expect("an image");
    workshop.spec("grown", MUCH);
    let output = workshop.build("grown");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains(&format!("the disk of the cache {} is full", workshop.path("cache/snug").display())),
        "{said}"
    );
    assert!(said.contains("hint: free some space") && said.contains("XDG_CACHE_HOME"), "{said}");
    assert!(fs::read(workshop.image("grown")).expect("the image") == good, "{said}");
    assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{said}");
}

#[test]
fn a_network_that_is_gone_is_named() {
    if !have(&["busybox", "newuidmap", "mmdebstrap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.write_spec("far", "base = { debian = \"trixie\" }\nfilesystem = \"ext4\"\n");
    let mut build = workshop.xtask(&["image", "far"]);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        build.env(name, format!("http://{CLOSED}"));
    }
    let output = build.output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("mmdebstrap trixie (minbase) failed"), "{said}");
    assert!(said.contains("hint: the network did not answer, or the proxy that http_proxy"), "{said}");
    assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{said}");
}

#[test]
fn a_network_that_vanishes_during_a_download_costs_nothing() {
    if !have(&["busybox", "newuidmap", "mmdebstrap", "e2fsck"]) {
        return;
    }
    let workshop = Workshop::new();
    let base = workshop.debian_base();
    let spec = |packages: &str| {
        let base = base.display();
        workshop.write_spec(
            "far",
            &format!("base = {{ tar = \"{base}\" }}\nfilesystem = \"ext4\"\npackages = [{packages}]\n"),
        );
    };
    spec("\"hello\"");
    assert!(workshop.build("far").status.success());
    let good = fs::read(workshop.image("far")).expect("an image");

    // The lists of packages are some 20 MB, the font after them 10: somewhere in it.
    spec("\"hello\", \"fonts-noto-color-emoji\"");
    let proxy = VanishingProxy::start(25 << 20);
    let mut build = workshop.xtask(&["image", "far"]);
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"] {
        build.env(name, proxy.url());
    }
    let output = build.output().expect("xtask runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(proxy.is_gone(), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("hint: the network did not answer, or the proxy that http_proxy"), "{said}");
    assert!(fs::read(workshop.image("far")).expect("the image") == good, "{said}");
    assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{said}");

    // Half a package in the cache does no harm either.
    let output = workshop.build("far");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    succeed(Command::new("e2fsck").arg("-fn").arg(workshop.image("far")));
}

#[test]
fn two_builds_at_once_share_the_work_and_do_each_other_no_harm() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.write_spec(
        "base",
        &format!(
            "base = {{ tar = \"{}\" }}\nrun = [\"sleep 1; cat /proc/uptime > /made\"]\n",
            workshop.path("base.tar").display()
        ),
    );
    for name in ["one", "two"] {
        workshop.write_spec(name, "base = { image = \"base\" }\nfilesystem = \"ext4\"\n");
    }
    let start = |words: &[&str]| {
        let mut command = workshop.xtask(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("xtask runs")
    };
    // Two runs of two images side by side: four builds of a base that is made once.
    let runs = [start(&["image", "--all", "--jobs", "2"]), start(&["image", "--all", "--jobs", "2"])];
    let mut said = String::new();
    for run in runs {
        let output = run.wait_with_output().expect("a child");
        let own = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{own}");
        said += &own;
    }
    assert_eq!(said.matches("✓ base: run: sleep 1").count(), 1, "{said}");
    assert!(said.contains("base: another build makes it; waiting"), "{said}");
    assert_eq!(workshop.names("cache/snug/work"), [""; 0], "{said}");
    for name in ["one", "two"] {
        succeed(Command::new("e2fsck").arg("-fn").arg(workshop.image(name)));
    }
}
