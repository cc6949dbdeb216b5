//! Images that grow while they are mounted: one boot of Debian's kernel mounts all of them for writing, compares what it
//! sees with what this kernel sees, looks for work that was left to the first mount, and has resize2fs enlarge them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use snug::check::boot::{self, Accelerator, DEFAULT_BUDGET, Guest, Kernel, Machine, write_initramfs};
use snug_tests::{Mounted, have, is_root, succeed, tree_digest, xtask};

/// How much larger the disks are made.
const GROWTH: u64 = 4;
/// The guest's programs as this host has them, with the libraries they need, and an `/init` that does the work.
///
/// The root stays read-only and the disks are mounted without the prefetching of bitmaps, which would start the kernel's
/// thread for lazy initialisation as well.
const GUEST: &str = r#"
    mkdir -p guest/bin guest/programs guest/dev guest/proc guest/sys guest/mnt guest/tmp
    cp "$1" guest/bin/busybox
    for program in resize2fs tar; do
        path=$(PATH=$PATH:/usr/sbin:/sbin command -v $program)
        cp -L "$path" guest/programs/$program
        ldd "$path" | grep -o '/[^ ]*' | while read -r library; do cp --parents -L "$library" guest; done
    done
    cat >guest/init <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t tmpfs tmpfs /tmp
/bin/busybox mkdir /tmp/bin
/bin/busybox --install -s /tmp/bin
PATH=/tmp/bin
export PATH
echo 1 >/proc/sys/kernel/printk
echo "guest: kernel $(uname -r)"
# The one that is lazy comes last: the kernel's thread stays for a while.
for disk in vdb vdc vdd vde vdf vdg; do
    mount -t ext4 -o no_prefetch_block_bitmaps /dev/$disk /mnt || echo "guest: $disk is not mounted"
    echo "guest: $disk lazy=$(ps | grep -c '[e]xt4lazyinit')."
    umount /mnt || echo "guest: $disk stays mounted"
done
for disk in vdb vdc vdd vde vdf vdg; do
    mount -t ext4 /dev/$disk /mnt || echo "guest: $disk is not mounted again"
    before=$(stat -f -c %b /mnt)
    digest=$(/programs/tar --create --file - --format pax --pax-option delete=atime,delete=ctime --sort name \
        --numeric-owner --xattrs --xattrs-include '*' --exclude ./lost+found -C /mnt . | sha256sum)
    /programs/resize2fs /dev/$disk >/tmp/said 2>&1 || { echo "guest: $disk does not grow"; cat /tmp/said; }
    touch /mnt/lost+found/written
    rm /mnt/lost+found/written
    echo "guest: $disk before=$before after=$(stat -f -c %b /mnt) digest=${digest%% *}."
    umount /mnt || echo "guest: $disk stays mounted again"
done
echo "guest: done"
poweroff -f
END
    chmod 755 guest/init
    tar --create --file guest.tar --format pax --owner 0 --group 0 -C guest .
"#;

/// What the disks hold: everything that a filesystem could lose when its groups move.
const CONTENT: &str = r#"
    mkdir -p root/etc root/many
    for number in $(seq 2000); do echo $number >"root/many/a name of some length $number"; done
    ln root/many/*\ 7 root/etc/seven; ln -s seven root/etc/link; ln -s "$(printf 'd%.0s' $(seq 200))" root/etc/far
    mkfifo root/etc/fifo; head -c 3M /dev/urandom >root/etc/noise; truncate -s 5M root/etc/holes; echo end >>root/etc/holes
    setfattr -n user.note -v "$(printf 'n%.0s' $(seq 2000))" root/etc/seven
    tar --create --file root.tar --format pax --sparse --xattrs --owner 0 --group 0 -C root .
"#;

struct Disk {
    name: &'static str,
    path: PathBuf,
    blocks: u64,
}

#[test]
fn debians_kernel_mounts_and_grows_the_images() {
    let tools = ["qemu-system-x86_64", "apt-get", "dpkg-deb", "e2fsck", "dumpe2fs", "resize2fs", "mke2fs", "setfattr"];
    if !have(&tools) {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let kernel = crate::boot::debians_kernel();
    succeed(
        Command::new("bash")
            .args(["-ec", GUEST, "guest"])
            .arg(&kernel.parts().expect("its parts").busybox)
            .current_dir(folder.path()),
    );
    succeed(Command::new("bash").args(["-ec", CONTENT]).current_dir(folder.path()));
    let root = folder.path().join("guest.ext4");
    succeed(xtask().arg("pack").arg(folder.path().join("guest.tar")).arg("-o").arg(&root));

    let mut disks: Vec<Disk> = [
        ("full", &["--headroom", "1.0", "--no-journal"][..]),
        ("ordinary", &[]),
        // Over several groups, with a last one that is cut short.
        ("groups", &["--min-size", "400MiB"]),
        // Its descriptors fill a block; grown, they take four, of those that were reserved.
        ("descriptors", &["--min-size", "8GiB"]),
        // Inode tables are nearly all of it, in groups that are smaller for that.
        ("dense", &["--free-inodes", "100000"]),
    ]
    .map(|(name, arguments)| {
        let path = folder.path().join(name);
        let tar = folder.path().join("root.tar");
        succeed(xtask().arg("pack").arg(tar).arg("-o").arg(&path).args(["--filesystem", "ext4"]).args(arguments));
        Disk { name, blocks: fs::metadata(&path).expect("an image").len() / 4096, path }
    })
    .into();
    let here = is_root().then(|| tree_digest(Mounted::read_only(&disks[0].path).path()));
    // What mke2fs leaves to the first mount shows that the guest would notice it.
    let lazy = Disk { name: "lazy", path: folder.path().join("lazy"), blocks: 64 << 20 >> 12 };
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-b", "4096", "-E", "lazy_itable_init=1"]).arg(&lazy.path);
    succeed(mke2fs.arg(lazy.blocks.to_string()));
    disks.push(lazy);
    for disk in &disks {
        let file = File::options().write(true).open(&disk.path).expect("an image");
        file.set_len(GROWTH * disk.blocks * 4096).expect("a sparse file");
    }

    let said = work(&kernel, &root, &disks, folder.path());
    println!("{said}");
    let mut digests = Vec::new();
    for (disk, device) in disks.iter().zip(["vdb", "vdc", "vdd", "vde", "vdf", "vdg"]) {
        let number = |name: &str| said_of(&said, device, name).parse::<u64>().unwrap_or_else(|_| panic!("{said}"));
        let (lazy, before, after) = (number("lazy"), number("before"), number("after"));
        assert_eq!(lazy, u64::from(disk.name == "lazy"), "{}: {said}", disk.name);
        // What df shows leaves out what the groups keep for themselves.
        assert!(before <= disk.blocks, "{}", disk.name);
        // Half of the dense one are inode tables, and stay so.
        let expected = if disk.name == "dense" { before } else { disk.blocks };
        assert!(after > GROWTH * expected * 9 / 10, "{} grew from {before} to {after} blocks", disk.name);
        if disk.name != "lazy" {
            digests.push(said_of(&said, device, "digest"));
        }
        succeed(Command::new("e2fsck").arg("-fn").arg(&disk.path));
        let shown = succeed(Command::new("dumpe2fs").arg("-h").arg(&disk.path)).stdout;
        let shown = String::from_utf8_lossy(&shown);
        let count = |name: &str| -> u64 {
            let value = shown.lines().find_map(|line| line.strip_prefix(name)).expect("dumpe2fs says it");
            value.trim().parse().expect("a number")
        };
        // resize2fs leaves out a last group with too few blocks for its metadata.
        let left_out = if disk.name == "dense" { count("Inode blocks per group:") + 200 } else { 0 };
        let blocks = count("Block count:");
        let whole = GROWTH * disk.blocks;
        assert!((whole - left_out..=whole).contains(&blocks), "{} has {blocks} of {whole} blocks: {shown}", disk.name);
        if let Some(here) = here.as_ref().filter(|_| disk.name != "lazy") {
            assert_eq!(*here, tree_digest(Mounted::read_only(&disk.path).path()), "{}", disk.name);
        }
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{said}");
    if let Some(here) = here {
        assert!(here.starts_with(digests[0]), "{here}: {said}");
    }
}

/// What the guest said of a disk: `guest: DEVICE NAME=VALUE NAME=VALUE.`
fn said_of<'said>(said: &'said str, device: &str, name: &str) -> &'said str {
    said.split(&format!("guest: {device} "))
        .skip(1)
        .filter_map(|line| line.lines().next()?.split_once(&format!("{name}=")))
        .find_map(|(_, value)| value.split(['.', ' ']).next())
        .unwrap_or_else(|| panic!("no {name} of {device} in {said}"))
}

/// Boots the guest, waits until it has switched itself off, and answers what it said.
fn work(kernel: &Kernel, root: &Path, disks: &[Disk], folder: &Path) -> String {
    let initramfs = write_initramfs(kernel, folder).expect("an initramfs");
    let mut attached = vec![boot::Disk::discarding_writes(root)];
    attached.extend(disks.iter().map(|disk| boot::Disk::keeping_writes(&disk.path)));
    let mut guest = Guest::start(&Machine {
        kernel: &kernel.image,
        initramfs: initramfs.as_deref(),
        disks: &attached,
        arguments: "console=ttyS0 quiet panic=-1 root=/dev/vda init=/init",
        accelerator: Accelerator::Tcg,
        log: &folder.join("serial.log"),
        budget: 3 * DEFAULT_BUDGET,
    })
    .expect("QEMU starts");
    guest.wait_for("guest: done").unwrap_or_else(|error| panic!("{error}"));
    guest.wait_for_end().unwrap_or_else(|error| panic!("{error}"));
    guest.console().to_owned()
}
