//! Programs of another suite, unpacked and never installed.

use std::path::Path;
use std::process::Command;

use snug_tests::{have, succeed, xtask};

/// Debian 12 has no erofs-utils that reads tars; Debian 13's must run here by its own libraries.
#[test]
fn a_program_of_another_suite_runs_from_the_cache() {
    if !have(&["mmdebstrap", "newuidmap"]) {
        return;
    }
    let fetch = || succeed(xtask().args(["tools", "trixie", "erofs-utils"]));
    let folder = String::from_utf8(fetch().stdout).expect("a path");
    let root = Path::new(folder.trim_end());
    // The second time it is there.
    assert_eq!(String::from_utf8(fetch().stdout).expect("a path"), folder);
    let loader = ["usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"];
    let loader = loader.iter().map(|name| root.join(name)).find(|path| path.is_file()).expect("a loader");
    let libraries = root.join("usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(libraries).arg(root.join("usr/bin/mkfs.erofs")).arg("--help");
    let said = String::from_utf8_lossy(&succeed(&mut command).stdout).into_owned();
    assert!(said.contains("--tar="), "{said}");
    // Nothing was installed: dpkg's own word is that the package is not here, or an older one.
    let installed = Command::new("dpkg-query").args(["-W", "-f", "${Version}", "erofs-utils"]).output();
    assert!(installed.is_ok_and(|output| !output.stdout.starts_with(b"1.8")));
}
