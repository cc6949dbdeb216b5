//! The names that the user gives to results: what their extensions promise is kept or refused.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use snug_formats::FilesystemKind;
use snug_formats::file_name::{Compression, Promise};

use crate::error::Failure;
use crate::report::shell;

/// Returns the type of the image that is to be written to `path`: the `named` one, else what the name promises, else ext4.
/// Refuses a name that promises something else. `option` is how the command line names the path.
pub fn image(path: &Path, named: Option<FilesystemKind>, option: &str) -> Result<FilesystemKind> {
    let promise = Promise::of(path);
    let kind = match promise {
        Some(Promise::Filesystem(kind)) => named.unwrap_or(kind),
        _ => named.unwrap_or(FilesystemKind::Ext4),
    };
    let kept = |promise: &Promise| *promise == Promise::Filesystem(kind) || *promise == Promise::RawImage;
    let Some(promise) = promise.filter(|promise| !kept(promise)) else { return Ok(kind) };
    let plain = instead(path, kind.as_str());
    let then = match promise {
        Promise::Disk(_, Some(format)) => {
            format!(", then qemu-img convert -f raw -O {format} {plain} {}", shell::path(path))
        }
        Promise::Compressed(by) => format!(", then {} {plain}", by.program()),
        Promise::Tar(_) => "; the verb `export` writes tars".to_owned(),
        Promise::Filesystem(promised) if option == "-o" => format!(", or --filesystem {promised}"),
        _ => String::new(),
    };
    refuse(path, kind.as_str(), promise, &format!("{option} {plain}{then}"))
}

/// Returns how the tar that is to be written to `path` is compressed. Refuses a name that promises no tar.
pub fn tar(path: &Path, option: &str) -> Result<Option<Compression>> {
    let promise = match Promise::of(path) {
        None => return Ok(None),
        Some(promise) => promise,
    };
    let hint = match promise {
        Promise::Tar(Some(by)) | Promise::Compressed(by) if matches!(by, Compression::Other(_)) => {
            format!("{option} - | {} > {}", by.program(), shell::path(path))
        }
        Promise::Tar(compression) => return Ok(compression),
        // A name like `root.gz`; another promise before it, as in `root.cpio.gz`, is not kept.
        Promise::Compressed(by) if Promise::of(&path.with_extension("")).is_none() => return Ok(Some(by)),
        Promise::Filesystem(_) | Promise::RawImage => {
            format!("{option} - | cargo xtask pack - -o {}", shell::path(path))
        }
        _ => format!("{option} {}", instead(path, "tar")),
    };
    refuse(path, "a tar", promise, &hint)
}

/// Refuses a name for a list of contents that promises something else.
pub fn list(path: &Path) -> Result<()> {
    let Some(promise) = Promise::of(path) else { return Ok(()) };
    refuse(path, "a text in the format mtree(5)", promise, &format!("--contents {}", instead(path, "mtree")))
}

/// Refuses a name for a folder that promises a file, where there is no such folder yet.
pub fn folder(path: &Path, option: &str) -> Result<()> {
    match Promise::of(path).filter(|_| !path.is_dir()) {
        None => Ok(()),
        Some(promise) => refuse(path, "a folder for every image", promise, &format!("{option} {}", instead(path, "d"))),
    }
}

fn refuse<T>(path: &Path, holds: &str, promise: Promise, hint: &str) -> Result<T> {
    bail!(Failure::Usage(format!(
        "{} would hold {holds}, and its name promises {promise}\nhint: {hint}",
        path.display()
    )))
}

/// The path with another extension, in place of all that promise something, for a shell.
fn instead(path: &Path, extension: &str) -> String {
    let mut stem: PathBuf = path.to_path_buf();
    while Promise::of(&stem).is_some() {
        stem.set_extension("");
    }
    let mut name = stem.into_os_string();
    name.push(".");
    name.push(extension);
    shell::path(name.as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said<T>(result: Result<T>) -> String {
        result.err().expect("refused").to_string()
    }

    #[test]
    fn an_image_is_what_its_name_says_or_is_refused() {
        let of = |name: &str, kind| image(name.as_ref(), kind, "-o");
        for (name, named, kind) in [
            ("x", None, FilesystemKind::Ext4),
            ("x.img", Some(FilesystemKind::Erofs), FilesystemKind::Erofs),
            ("x.sqfs", None, FilesystemKind::Squashfs),
            ("x.erofs.img", None, FilesystemKind::Erofs),
            ("x.EROFS", Some(FilesystemKind::Erofs), FilesystemKind::Erofs),
        ] {
            assert_eq!(of(name, named).unwrap(), kind, "{name}");
        }
        insta::assert_snapshot!(said(of("a b/x.qcow2", None)), @r"
        a b/x.qcow2 would hold ext4, and its name promises a qcow2 disk
        hint: -o 'a b/x.ext4', then qemu-img convert -f raw -O qcow2 'a b/x.ext4' 'a b/x.qcow2'
        ");
        insta::assert_snapshot!(said(of("x.erofs", Some(FilesystemKind::Ext4))), @r"
        x.erofs would hold ext4, and its name promises erofs
        hint: -o x.ext4, or --filesystem erofs
        ");
        insta::assert_snapshot!(said(of("x.squashfs.zst", None)), @r"
        x.squashfs.zst would hold ext4, and its name promises a file compressed by zstd
        hint: -o x.ext4, then zstd x.ext4
        ");
        insta::assert_snapshot!(said(of("x.tar.gz", None)), @r"
        x.tar.gz would hold ext4, and its name promises a tar compressed by gzip
        hint: -o x.ext4; the verb `export` writes tars
        ");
        for name in ["x.vmdk", "x.vdi", "x.vhd", "x.vhdx", "x.iso", "x.ext3", "x.zip", "x.json", "x.ova"] {
            assert!(said(of(name, None)).contains("hint: -o x.ext4"), "{name}");
        }
    }

    #[test]
    fn a_tar_is_compressed_as_its_name_says_or_is_refused() {
        let of = |name: &str| tar(name.as_ref(), "-o");
        for (name, compression) in [
            ("x", None),
            ("x.tar", None),
            ("x.tgz", Some(Compression::Gzip)),
            ("x.tar.zst", Some(Compression::Zstd)),
            ("x.xz", Some(Compression::Xz)),
            ("x.tbz2", Some(Compression::Bzip2)),
        ] {
            assert_eq!(of(name).unwrap(), compression, "{name}");
        }
        insta::assert_snapshot!(said(of("x.ext4")), @r"
        x.ext4 would hold a tar, and its name promises ext4
        hint: -o - | cargo xtask pack - -o x.ext4
        ");
        insta::assert_snapshot!(said(of("x.img")), @r"
        x.img would hold a tar, and its name promises the image of a filesystem
        hint: -o - | cargo xtask pack - -o x.img
        ");
        insta::assert_snapshot!(said(of("x.tar.lz")), @r"
        x.tar.lz would hold a tar, and its name promises a tar compressed by lzip
        hint: -o - | lzip > x.tar.lz
        ");
        for name in ["x.qcow2", "x.zip", "x.cpio.gz", "x.json", "x.iso"] {
            assert!(said(of(name)).contains("hint: -o x.tar"), "{name}");
        }
    }

    #[test]
    fn a_list_and_a_folder_are_named_as_such() {
        list("x.mtree".as_ref()).unwrap();
        list("x.txt".as_ref()).unwrap();
        insta::assert_snapshot!(said(list("x.json".as_ref())), @r"
        x.json would hold a text in the format mtree(5), and its name promises JSON
        hint: --contents x.mtree
        ");
        folder("/tmp".as_ref(), "--output").unwrap();
        folder("results".as_ref(), "--output").unwrap();
        assert!(said(folder("x.ext4".as_ref(), "--output")).contains("would hold a folder for every image"));
    }
}
