//! dm-verity over every filesystem, verified by `veritysetup`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use serde_json::Value;
use snug_tests::{have, succeed, xtask};

#[test]
fn veritysetup_opens_what_was_sealed_and_notices_one_changed_byte() {
    if !have(&["veritysetup", "e2fsck", "tar2sqfs", "unsquashfs"]) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tar = folder.path().join("root.tar");
    let mut pack_root = Command::new("tar");
    pack_root.args(["--create", "--owner=0", "--group=0", "--exclude=./*/*/*", "-C", "/usr/share/doc", "--file"]);
    succeed(pack_root.arg(&tar).arg("."));
    for kind in ["ext4", "squashfs"] {
        let image = folder.path().join(kind);
        let pack = || {
            let filesystem = format!("{kind}+verity");
            let output = succeed(xtask().arg("pack").arg(&tar).arg("-o").arg(&image).args([
                "--json",
                "--filesystem",
                &filesystem,
            ]));
            serde_json::from_slice::<Value>(&output.stdout).expect("JSON on standard output")
        };
        let about = pack();
        let verity = &about["verity"];
        let (root_hash, offset) = (verity["root-hash"].as_str().expect("a hash"), &verity["hash-offset"]);
        let verify = || {
            Command::new("veritysetup")
                .args(["verify", &format!("--hash-offset={offset}")])
                .args([&image, &image])
                .arg(root_hash)
                .output()
                .expect("veritysetup runs")
        };
        assert!(verify().status.success(), "{:?}", verify());
        let size = fs::metadata(&image).expect("an image").len();
        assert_eq!(about["census"]["size"], size);
        let parts = about["census"]["parts"].as_array().expect("parts");
        assert_eq!(parts.iter().map(|part| part["bytes"].as_u64().expect("bytes")).sum::<u64>(), size);

        // The filesystem before the hash tree is the same as without one.
        match kind {
            "ext4" => drop(succeed(Command::new("e2fsck").arg("-fn").arg(&image))),
            _ => drop(succeed(Command::new("unsquashfs").arg("-l").arg(&image))),
        }
        let before = fs::read(&image).expect("an image");
        assert_eq!(&pack()["verity"], verity, "sealed otherwise the second time");
        assert!(fs::read(&image).expect("an image") == before, "other bytes the second time");

        let middle = offset.as_u64().expect("bytes") / 2;
        let changed = [before[usize::try_from(middle).expect("small")] ^ 1];
        File::options().write(true).open(&image).expect("an image").write_all_at(&changed, middle).expect("written");
        let found = verify();
        assert!(!found.status.success(), "{kind}: {found:?}");
    }
}
