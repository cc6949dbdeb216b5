//! Cost follows data: holes and zeros take no space and no time, and the same content gives the same image.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use snug_tests::{Workshop, have, is_root, succeed, xtask};

/// What `stat` of debugfs counts for a file of an image: blocks of 512 bytes.
fn block_count(image: &std::path::Path, file: &str) -> u64 {
    let said = succeed(Command::new("debugfs").args(["-R", &format!("stat {file}")]).arg(image)).stdout;
    let said = String::from_utf8_lossy(&said).into_owned();
    let count = said.split_once("Blockcount: ").and_then(|(_, rest)| rest.split_whitespace().next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("{file}: {said}"))
}

/// If any step looked at all 100 GiB, it would take a minute and more.
#[test]
fn a_file_of_holes_costs_what_its_data_cost() {
    if !have(&["busybox", "debugfs", "python3"]) {
        return;
    }
    let workshop = Workshop::new();
    let steps = [
        "busybox truncate -s 100G /big; echo end >>/big; busybox truncate -s 101G /big",
        "busybox dd if=/dev/zero of=/zeros bs=1048576 count=16; echo end >>/zeros",
    ];
    workshop.spec("holes", &format!("run = {steps:?}"));
    succeed(&mut workshop.xtask(&["image", "holes"]));
    let image = workshop.image("holes");
    assert_eq!((block_count(&image, "/big"), block_count(&image, "/zeros")), (8, 8));

    let definition = "import hashlib, struct\n\
        number = lambda value: struct.pack('<Q', value)\n\
        block = b'end\\n' + bytes(4092)\n\
        print(hashlib.sha256(number(101 << 30) + number(100 << 30) + block).hexdigest())\n\
        print(hashlib.sha256(bytes(16 << 20) + b'end\\n').hexdigest())";
    let digests = String::from_utf8(succeed(Command::new("python3").args(["-c", definition])).stdout).unwrap();
    let (of_data, of_all) = digests.trim().split_once('\n').expect("two digests");
    let list = fs::read_to_string(image.with_file_name("contents.mtree")).expect("a list");
    let line = |start: &str| list.lines().find(|line| line.starts_with(start)).expect("an entry");
    assert!(line("./big ").contains(&format!(" sha256data={of_data}")), "{}", line("./big "));
    assert!(line("./zeros ").contains(&format!(" sha256digest={of_all}")), "{}", line("./zeros "));

    for reader in if is_root() { &["kernel", "tools"][..] } else { &["tools"] } {
        succeed(&mut workshop.xtask(&["check", "holes", "--reader", reader]));
    }
    let tar = workshop.path("out.tar");
    succeed(workshop.xtask(&["export", "holes"]).arg("--output").arg(&tar));
    assert!(fs::metadata(&tar).expect("a tar").len() < 16 << 20);
    let unpack = "tar -xf out.tar big zeros && stat -c '%s %b' big zeros && tail -c 4 zeros";
    let said = succeed(Command::new("sh").args(["-ec", unpack]).current_dir(workshop.path("")));
    let said = String::from_utf8(said.stdout).expect("text");
    let lines: Vec<Vec<&str>> = said.lines().map(|line| line.split(' ').collect()).collect();
    assert_eq!((lines[0][0], lines[1][0], lines[2][0]), ("108447924224", "16777220", "end"), "{said}");
    assert!(lines[0][1].parse::<u64>().unwrap() <= 64 && lines[1][1].parse::<u64>().unwrap() <= 64, "{said}");
}

#[test]
fn the_same_content_gives_the_same_image_whichever_way_it_comes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let script = r#"
        mkdir -p root/var
        head -c 8M /dev/zero >root/var/zeros
        { head -c 1M /dev/zero; echo middle; head -c 3M /dev/zero; echo end; } >root/var/mixed
        chmod -R go-w root
        tar -cf plain.tar --mtime=@1700000000 --sort=name --owner=0 --group=0 -C root .
        tar -cf sparse.tar --sparse --hole-detection=raw --format=posix --pax-option=delete=atime,delete=ctime \
            --mtime=@1700000000 --sort=name --owner=0 --group=0 -C root .
    "#;
    succeed(Command::new("bash").args(["-ec", script]).current_dir(folder.path()));
    let at = |name: &str| folder.path().join(name);
    let pack = |image: &str| {
        let mut pack = xtask();
        pack.args(["pack", "--no-sync", "--output"]).arg(at(image));
        pack
    };
    for form in ["plain", "sparse"] {
        let tar = at(&format!("{form}.tar"));
        succeed(pack(&format!("{form}-file.ext4")).arg(&tar));
        let pipe = File::open(&tar).expect("a tar");
        let mut cat = Command::new("cat").stdin(pipe).stdout(Stdio::piped()).spawn().expect("cat runs");
        let output = cat.stdout.take().expect("a pipe");
        succeed(pack(&format!("{form}-pipe.ext4")).arg("-").stdin(output));
        assert!(cat.wait().expect("cat ends").success());
    }
    let bytes = fs::read(at("plain-file.ext4")).expect("an image");
    for image in ["plain-pipe.ext4", "sparse-file.ext4", "sparse-pipe.ext4"] {
        assert!(fs::read(at(image)).expect("an image") == bytes, "{image}");
    }
    if have(&["debugfs"]) {
        let image = at("plain-file.ext4");
        assert_eq!((block_count(&image, "/var/zeros"), block_count(&image, "/var/mixed")), (0, 16));
    }
}
