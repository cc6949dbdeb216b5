//! What strangers wrote is shown, and nobody obeys it: no terminal, and no runner of GitHub's workflows. Names in tars, words
//! of steps and of specs reach messages, tables, JSON and the moving line.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use nix::sys::signal::Signal;
use snug_tests::{Workshop, have, succeed, xtask};

use super::streams::{on_terminal, start};

/// What a step prints for a terminal: a title, the clipboard, a cleared screen (in 7 and in 8 bits), text that reads backwards,
/// and lines that a runner of GitHub obeys, in both forms and behind a carriage return.
const SPEAKS: &str = r"printf '\033]0;owned\007\033]52;c;eA==\007\033[2J\302\2332J\302\2350;t\302\234 first \342\200\256\n'
printf 'late\r::warning::carriage\n::error::plain\n  ::add-path::/tmp\nx ##[set-env name=A]b\n::stop-commands::guess\n'
printf '\033]52;c;never ended\n' >&2
exit 3";

/// Writes a tar whose names speak so, and that is read with warnings.
const MAKE_TAR: &str = r#"
import io, sys, tarfile
speaks = "\x1b]0;owned\x07\x1b[2J\u009b2J\u202e\r::warning::carriage\n::error::plain"
with tarfile.open("hostile.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    for name in ["/absolute" + speaks, "usr/lib/x" + speaks]:
        tar.addfile(tarfile.TarInfo(name))
    entry = tarfile.TarInfo("attribute" + speaks)
    entry.pax_headers = {"SCHILY.xattr.odd\x1b]0;x\x07.name" + speaks: "value"}
    tar.addfile(entry)
    folder = tarfile.TarInfo("bin"); folder.type = tarfile.DIRTYPE; folder.mode = 0o755
    tar.addfile(folder)
with tarfile.open("broken.tar", "w", format=tarfile.PAX_FORMAT) as tar:
    link = tarfile.TarInfo("link" + speaks); link.type = tarfile.LNKTYPE; link.linkname = "nowhere" + speaks
    tar.addfile(link)
"#;

/// Fails if a byte of it is obeyed by a terminal, or turns text around.
#[track_caller]
fn assert_shown_only(what: &str, said: &[u8]) {
    let said = std::str::from_utf8(said).expect("UTF-8");
    let obeyed: Vec<char> = said.chars().filter(|ch| ch.is_control() && *ch != '\n').collect();
    assert!(obeyed.is_empty(), "{what}: {obeyed:?} in {said:?}");
    assert!(!said.contains(['\u{202e}', '\u{2028}']), "{what}: {said:?}");
}

fn hostile_tars() -> Workshop {
    let workshop = Workshop::new();
    succeed(Command::new("python3").args(["-c", MAKE_TAR]).current_dir(workshop.path("")));
    workshop
}

fn pack(workshop: &Workshop, tar: &str, words: &[&str]) -> Output {
    let mut command = xtask();
    command.arg("pack").arg(workshop.path(tar)).arg("--output").arg(workshop.path("packed.ext4")).args(words);
    command.output().expect("xtask runs")
}

#[test]
fn names_in_tars_are_shown_and_never_obeyed() {
    if !have(&["busybox", "python3"]) {
        return;
    }
    let workshop = hostile_tars();
    for (tar, words) in [
        ("hostile.tar", &[][..]),
        ("hostile.tar", &["--strict"]),
        ("hostile.tar", &["--json"]),
        ("hostile.tar", &["--max-size", "64KiB"]),
        ("broken.tar", &[]),
    ] {
        let output = pack(&workshop, tar, words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(r"\u{1b}]0;owned\u{7}"), "{tar} {words:?}: {said}");
        assert!(!said.lines().any(|line| line.trim_start().starts_with("::")), "{tar} {words:?}: {said}");
        for stream in [&output.stderr, &output.stdout] {
            assert_shown_only(&format!("{tar} {words:?}"), stream);
        }
    }
}

#[test]
fn words_of_steps_and_specs_are_shown_and_never_obeyed() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    workshop.spec("speaks", &format!("run = [{}]", serde_json::json!(SPEAKS)));
    for words in [&["image", "speaks"][..], &["image", "speaks", "-v"], &["image", "speaks", "-q"]] {
        let output = workshop.xtask(words).output().expect("xtask runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(r"first \u{202e}") && said.contains("  | ::error::plain\n"), "{words:?}: {said}");
        // Verbose, the command itself is shown, too.
        let output_only: String = said.lines().filter(|line| line.contains("| ")).collect();
        assert!(!output_only.contains("owned") && !output_only.contains("never ended"), "{words:?}: {said}");
        assert_shown_only(&format!("{words:?}"), &output.stderr);
        assert_shown_only(&format!("{words:?}"), &output.stdout);
    }

    // The reader of specs refuses controls in a description, and leaves what turns text around.
    let spoken = r"a\u202e\u2066 ##[error]x";
    workshop.spec("described", &format!("description = \"{spoken}\""));
    let output = succeed(&mut workshop.xtask(&["list"]));
    assert_shown_only("list", &output.stdout);
    assert!(String::from_utf8_lossy(&output.stdout).contains(r"a\u{202e}\u{2066} ##[error]x"), "{output:?}");
    let output = succeed(&mut workshop.xtask(&["list", "--json"]));
    assert_shown_only("list --json", &output.stdout);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("##["), "{output:?}");
    let read: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let meant: serde_json::Value = serde_json::from_str(&format!("\"{spoken}\"")).expect("JSON");
    let images = read["images"].as_array().expect("images");
    assert!(images.iter().any(|image| image["description"] == meant), "{read:#}");
}

#[test]
fn the_moving_line_shows_and_never_obeys() {
    if !have(&["busybox", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let slowly = format!("{}\nsleep 0.3", SPEAKS.replace("\nexit 3", "").replace('\n', "\nsleep 0.3\n"));
    workshop.spec("speaks", &format!("run = [{}]", serde_json::json!(slowly)));
    let (mut running, terminal) = on_terminal(&workshop, &["image", "speaks"], &|_| {});
    let (mut said, mut terminal) = (Vec::new(), File::from(terminal));
    // The end of a terminal that nobody has open any more is an error.
    let _ = terminal.read_to_end(&mut said);
    assert!(running.process.wait().expect("a child").success());
    let said = String::from_utf8(said).expect("UTF-8");
    assert!(said.contains(r"first \u{202e}") && said.contains("::stop-commands::guess"), "{said:?}");
    for obeyed in ["\u{1b}]", "\u{1b}[2J", "\u{9b}", "\u{9d}", "\u{202e}", "\u{7}"] {
        assert!(!said.contains(obeyed), "{obeyed:?} in {said:?}");
    }
}

/// A runner of GitHub (`ActionCommandManager.cs`): the commands that it obeys among these lines, and whether it still listens
/// at their end.
fn obeyed(said: &str) -> (Vec<String>, bool) {
    let (mut obeyed, mut stopped_until) = (Vec::new(), None::<String>);
    for line in said.split(['\n', '\r']) {
        let newer = line.trim_start().strip_prefix("::").and_then(|rest| rest.split_once("::"));
        let older = line.split_once("##[").and_then(|(_, rest)| rest.split_once(']'));
        let Some((command, data)) = newer.or(older) else { continue };
        let command = command.split(' ').next().unwrap_or_default();
        match &stopped_until {
            Some(token) if token == command => stopped_until = None,
            Some(_) => {}
            None if command == "stop-commands" => stopped_until = Some(data.to_owned()),
            None => obeyed.push(line.to_owned()),
        }
    }
    (obeyed, stopped_until.is_none())
}

#[test]
fn a_runner_of_github_obeys_no_line_and_listens_again_afterwards() {
    if !have(&["busybox", "newuidmap", "python3"]) {
        return;
    }
    let workshop = hostile_tars();
    workshop.spec("speaks", &format!("run = [{}]", serde_json::json!(SPEAKS)));
    workshop.spec("good", &format!("run = [{}]", serde_json::json!(SPEAKS.replace("exit 3", ""))));
    assert_eq!(obeyed("a ::b::\n::error::x\n##[warning]y").0.len(), 2, "the runner of this test");

    let mut tokens = Vec::new();
    for (words, code) in [
        (&["image", "speaks"][..], 1),
        (&["image", "speaks", "-v"], 1),
        (&["image", "good", "-v"], 0),
        (&["image", "good", "--json"], 0),
        (&["image", "no-such-image"], 2),
        (&["image", "--::error::x"], 2),
    ] {
        let output = workshop.xtask(words).env("GITHUB_ACTIONS", "true").output().expect("xtask runs");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        let (commands, listens) = obeyed(&said);
        assert!(commands.is_empty() && listens, "{words:?}: {commands:?} in {said}");
        let token = said.lines().next().and_then(|line| line.strip_prefix("::stop-commands::")).expect("a fence");
        assert!(said.ends_with(&format!("\n::{token}::\n")) && token.len() >= 32, "{words:?}: {said}");
        tokens.push(token.to_owned());
        let (commands, _) = obeyed(std::str::from_utf8(&output.stdout).expect("UTF-8"));
        assert!(commands.is_empty(), "{words:?}: {commands:?}");
    }
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 6, "a token that is used twice can be guessed");

    // A result on standard output begins with a name.
    let output = xtask()
        .arg("pack")
        .arg(workshop.path("base.tar"))
        .args(["-o", "::error::x.ext4", "-q"])
        .current_dir(workshop.path(""))
        .env("GITHUB_ACTIONS", "true")
        .output();
    let output = output.expect("xtask runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("error::x.ext4") && obeyed(&said).0.is_empty(), "{said}");
    // Elsewhere a name is as it is.
    let output = pack(&workshop, "base.tar", &["-q"]);
    assert!(output.stderr.is_empty(), "{output:?}");

    // A signal.
    let mut running = start(&workshop, &["image", "slow"], |command| {
        command.env("GITHUB_ACTIONS", "true").stderr(std::process::Stdio::piped());
    });
    running.reach_step();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(running.process.id()).expect("an id")),
        Signal::SIGTERM,
    )
    .expect("a child");
    let mut said = String::new();
    running.process.stderr.take().expect("a pipe").read_to_string(&mut said).expect("a pipe");
    assert_eq!(running.process.wait().expect("a child").signal(), Some(Signal::SIGTERM as i32));
    assert!(said.starts_with("::stop-commands::") && obeyed(&said).1, "{said}");
}
