//! Packages pinned by version: installed in that version or not at all, and listed in the manifest.

use std::fs;

use serde_json::Value;
use snug_tests::{Workshop, have};

/// Returns the version of an installed package from the manifest.
fn version(workshop: &Workshop, image: &str, package: &str) -> String {
    let text = fs::read(workshop.path("out").join(image).join("manifest.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&text).expect("JSON");
    let packages = manifest["packages"].as_array().expect("packages");
    let found = packages.iter().find(|one| one["name"] == package).expect("the package");
    found["version"].as_str().expect("a version").to_owned()
}

#[test]
fn debians_packages_are_pinned_by_version_or_by_pattern() {
    if !have(&["busybox", "mmdebstrap", "newuidmap"]) {
        return;
    }
    let workshop = Workshop::new();
    let spec = |name: &str, version: &str| {
        let packages = format!("packages = [\"libcap2-bin={version}\"]\n");
        workshop.write_spec(name, &format!("base = {{ debian = \"bookworm\" }}\nfilesystem = \"ext4\"\n{packages}"));
    };
    // Security updates of the one release, whichever is the last.
    spec("pinned", "1:2.66-4+deb12u*");
    let output = workshop.build("pinned");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = version(&workshop, "pinned", "libcap2-bin");
    assert!(found.starts_with("1:2.66-4+deb12u"), "{found}");

    // The version that was found, pinned exactly, gives the same image.
    spec("exact", &found);
    let output = workshop.build("exact");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(version(&workshop, "exact", "libcap2-bin"), found);

    // A version that the archive does not have, or no longer has.
    spec("gone", "1:2.66-1*");
    let output = workshop.build("gone");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("gone/image.toml:3"), "{said}");
    assert!(said.contains("Version '1:2.66-1*' for 'libcap2-bin' was not found"), "{said}");
}
