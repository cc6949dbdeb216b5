//! Chromium really starts in the root of its image, by its own session script, as its own account and with its sandbox:
//! in namespaces that have the image as their root and a network of their own. What is seen comes from outside the
//! script: DevTools, the VNC protocol, noVNC's page, the pixels of a recording.

use std::path::Path;
use std::process::Command;

use snug_tests::{have, image, is_root, succeed};

/// Makes the image $1 the root of this namespace, below a tmpfs (on $2) that takes what is written, mounts what `/init`
/// would mount, runs its start hooks, then the script $3.
///
/// Not by chroot(2): in there, the kernel makes no user namespaces, of which Chromium builds its sandbox.
const ENTER: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs -o mode=0755 work "$2"
script=$3
mkdir "$2/image" "$2/upper" "$2/work" "$2/root"
mount -o ro,loop "$1" "$2/image"
cd "$2"
mount -t overlay -o lowerdir=image,upperdir=upper,workdir=work root root
cd root
mount -t proc proc proc
mount -t tmpfs -o mode=0755 dev dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
ln -s /proc/self/fd dev/fd
mkdir dev/shm
mount -t tmpfs -o mode=1777 shm dev/shm
mount -t tmpfs -o mode=0755 run run
mount -t tmpfs -o mode=1777 tmp tmp
mkdir mnt/host
pivot_root . mnt/host
cd /
umount -l /mnt/host
ip link set lo up
for hook in /etc/snug/start.d/*; do
    "$hook"
done
exec sh -c "$script"
"#;

/// Shell functions of the scripts below. `GET` asks as a program would that speaks to DevTools.
const FUNCTIONS: &str = r#"
section() { echo "=== $1"; }
GET() { printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$2" "$1" | socat -t 5 - "TCP:$1,shut-none"; }
# until_printed TEXT COMMAND…: its output, as soon as it has the text; the last one after half a minute.
until_printed() {
    text=$1
    shift
    for _ in $(seq 60); do
        "$@" >/tmp/said 2>&1
        ! grep -qF "$text" /tmp/said || break
        sleep 0.5
    done
    cat /tmp/said
}
processes() { ps -e -o user= -o args= | grep -v -e ' ps ' -e ' grep '; }
"#;

/// What a script printed, by its sections.
struct Said(String);

impl Said {
    #[track_caller]
    fn section(&self, name: &str) -> &str {
        let (_, rest) =
            self.0.split_once(&format!("=== {name}\n")).unwrap_or_else(|| panic!("no {name} in:\n{}", self.0));
        rest.split("=== ").next().expect("split gives one part at least")
    }

    /// The section holds all of `texts`.
    #[track_caller]
    fn holds(&self, name: &str, texts: &[&str]) {
        let section = self.section(name);
        for text in texts {
            assert!(section.contains(text), "{name} lacks {text:?}; all that was said:\n{}", self.0);
        }
    }
}

/// None where this host cannot do it; the test must return then.
#[track_caller]
fn in_image(script: &str) -> Option<Said> {
    if !is_root() || !have(&["unshare", "pivot_root"]) {
        return None;
    }
    let image: &Path = &image("browser-chromium")?;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child"])
        .args(["sh", "-c", ENTER, "enter"])
        .args([image, folder.path()])
        .arg(format!("exec 2>&1; {FUNCTIONS}\n{script}"));
    let output = succeed(&mut command);
    Some(Said(String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn headless_chromium_answers_on_its_debugging_port_and_is_gone_when_stopped() {
    let script = r#"
        echo '<title>loading</title><script>document.title = 6 * 7</script>' >/tmp/page.html
        section start; browser-session start --timeout 110 --url file:///tmp/page.html; echo "status $?"
        section version; GET 127.0.0.1:9222 /json/version
        section page; until_printed '"42"' GET 127.0.0.1:9222 /json/list
        section processes; processes
        section again; browser-session start; echo "status $?"
        section record; browser-session record start; echo "status $?"
        section stop; browser-session stop; echo "status $?"
        # Process 1 here is a shell, which buries orphans when it next waits: whatever has no memory any more is dead.
        section left; processes | grep '^browser' | grep -v '<defunct>'
        section status; browser-session status; echo "status $?"
        section taken; socat TCP-LISTEN:9222,bind=127.0.0.1,fork PIPE & until_printed yes sh -c \
            'socat -u /dev/null TCP:127.0.0.1:9222 && echo yes'; browser-session start; echo "status $?"; kill $!
        section broken; chmod 0644 /usr/lib/chromium/chromium; browser-session start; echo "status $?"
        section usage; browser-session start --port http; echo "status $?"
        section end
    "#;
    let Some(said) = in_image(script) else { return };
    said.holds("start", &["devtools http://127.0.0.1:9222\n", "status 0"]);
    said.holds("version", &["HTTP/1.1 200", "\"Browser\": \"", "\"webSocketDebuggerUrl\": \"ws://127.0.0.1:9222/"]);
    // Script of the page has run: there is a renderer, in its sandbox.
    said.holds("page", &["\"title\": \"42\""]);
    let processes = said.section("processes");
    let chromium: Vec<&str> = processes.lines().filter(|line| line.contains("/chromium")).collect();
    assert!(chromium.iter().any(|line| line.contains("--type=renderer")), "{processes}");
    assert!(chromium.iter().all(|line| line.starts_with("browser ")), "not as its own account:\n{processes}");
    assert!(!processes.contains("--no-sandbox"), "{processes}");
    said.holds("again", &["a session is running already", "status 1"]);
    said.holds("record", &["no screen to record", "status 1"]);
    assert_eq!(said.section("stop"), "status 0\n");
    assert_eq!(said.section("left"), "", "processes are left behind");
    said.holds("status", &["mode none", "status 3"]);
    said.holds("taken", &["something else listens on port 9222", "status 1"]);
    said.holds("broken", &["chromium ended before DevTools answered", "Permission denied", "status 1"]);
    said.holds("usage", &["http is no number", "status 2"]);
}

#[test]
fn a_live_screen_is_served_over_vnc_and_recorded() {
    let script = r#"
        echo '<body style="background: #20c040"><script>document.title = 6 * 7</script>' >/tmp/page.html
        section start; browser-session start live --size 801x601 --timeout 110 --url file:///tmp/page.html; echo "status $?"
        section page; until_printed '"42"' GET 127.0.0.1:9222 /json/list
        section vnc; socat -u TCP:127.0.0.1:5900,readbytes=12 -
        section novnc; GET 127.0.0.1:6080 /vnc.html
        # It paints when it may.
        sleep 3
        section record; browser-session record start /tmp/film.mp4; echo "status $?"
        section status; browser-session status; echo "status $?"
        sleep 3
        section unfinished; ls /tmp
        section finish; browser-session record stop; echo "status $?"
        section film; ffprobe -v error -show_entries stream=codec_name,width,height -show_entries format=duration \
            -of default=noprint_wrappers=1 /tmp/film.mp4; ls /tmp
        section colour; ffmpeg -v error -i /tmp/film.mp4 -vf crop=100:100:300:300,scale=1:1 -frames:v 1 \
            -f rawvideo -pix_fmt rgb24 - | od -An -tu1
        browser-session record start /tmp/second.mkv
        section stop; browser-session stop; echo "status $?"
        section second; ffprobe -v error -show_entries stream=codec_name /tmp/second.mkv
        section left; processes | grep '^browser' | grep -v '<defunct>'
        section desktop; browser-session start desktop --timeout 110; echo "status $?"; browser-session status
        section end; browser-session stop
    "#;
    let Some(said) = in_image(script) else { return };
    let novnc = "novnc http://127.0.0.1:6080/vnc.html";
    said.holds("start", &["devtools http://127.0.0.1:9222\n", "vnc 127.0.0.1:5900\n", novnc, "status 0"]);
    said.holds("page", &["\"title\": \"42\""]);
    // RFC 6143, 7.1.1.
    assert_eq!(said.section("vnc"), "RFB 003.008\n");
    said.holds("novnc", &["200 OK", "<title>noVNC</title>"]);
    said.holds("record", &["/tmp/film.mp4\n", "status 0"]);
    said.holds("status", &["mode live", "xvfb running", "recording to /tmp/film.mp4"]);
    said.holds("unfinished", &["film.mp4.part"]);
    said.holds("finish", &["/tmp/film.mp4\n", "status 0"]);
    // Every player wants even numbers.
    said.holds("film", &["codec_name=h264", "width=800", "height=600", "film.mp4\n"]);
    assert!(!said.section("film").contains(".part"));
    let (_, duration) = said.section("film").split_once("duration=").expect("a duration");
    let duration: f64 = duration.lines().next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(duration > 1.0, "{duration} s");
    // The page's own colour, #20c040, as the screen showed it and the film kept it.
    let colour: Vec<i32> = said.section("colour").split_whitespace().filter_map(|byte| byte.parse().ok()).collect();
    let is_near = |(found, wanted): (&i32, &i32)| (found - wanted).abs() <= 6;
    assert!(colour.len() == 3 && colour.iter().zip(&[0x20, 0xc0, 0x40]).all(is_near), "{}", said.0);
    // Stopping the session finishes the recording, too.
    said.holds("stop", &["/tmp/second.mkv\n", "status 0"]);
    said.holds("second", &["codec_name=h264"]);
    assert_eq!(said.section("left"), "", "processes are left behind");
    said.holds("desktop", &["status 0", "mode desktop", "openbox running", "chromium running", "web running"]);
}
