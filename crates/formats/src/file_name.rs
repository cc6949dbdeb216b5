//! What the name of a file promises of its content, by its extension.

use std::fmt;
use std::path::Path;

use crate::FilesystemKind;

/// A program's format around a file: `.gz`, `.zst` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// `.gz`
    Gzip,
    /// `.zst`
    Zstd,
    /// `.xz`
    Xz,
    /// `.bz2`
    Bzip2,
    /// `.lz4`
    Lz4,
    /// Another one, with the program that writes it.
    Other(&'static str),
}

/// What the extension of a file name says that the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// A filesystem that this workspace writes.
    Filesystem(FilesystemKind),
    /// A filesystem as it is on a disk, whichever it is.
    RawImage,
    /// A filesystem that it does not write.
    OtherFilesystem(&'static str),
    /// A virtual disk with a structure of its own, and its name for `qemu-img convert -O` where that writes it.
    Disk(&'static str, Option<&'static str>),
    /// A tar, perhaps compressed.
    Tar(Option<Compression>),
    /// A compressed file; what is in it is said by the rest of the name, if at all.
    Compressed(Compression),
    /// An archive of another format than tar.
    Archive(&'static str),
    /// A text of another format than mtree.
    Text(&'static str),
}

/// Extensions and what they promise, beside those of [`RAW`]. What is in neither promises nothing.
const EXTENSIONS: &[(&[&str], Promise)] = &[
    (&["ext4"], Promise::Filesystem(FilesystemKind::Ext4)),
    // The extensions of squashfs-tools, of squashfuse and of the freedesktop MIME type.
    (&["squashfs", "sqfs", "sqsh", "sqs", "sfs"], Promise::Filesystem(FilesystemKind::Squashfs)),
    (&["erofs"], Promise::Filesystem(FilesystemKind::Erofs)),
    (&["ext2"], Promise::OtherFilesystem("ext2")),
    (&["ext3"], Promise::OtherFilesystem("ext3")),
    (&["btrfs"], Promise::OtherFilesystem("btrfs")),
    (&["xfs"], Promise::OtherFilesystem("XFS")),
    (&["f2fs"], Promise::OtherFilesystem("F2FS")),
    (&["cramfs"], Promise::OtherFilesystem("cramfs")),
    (&["jffs2"], Promise::OtherFilesystem("JFFS2")),
    (&["ubifs", "ubi"], Promise::OtherFilesystem("UBIFS")),
    (&["fat", "fat32", "vfat", "exfat"], Promise::OtherFilesystem("FAT")),
    (&["ntfs"], Promise::OtherFilesystem("NTFS")),
    (&["iso"], Promise::OtherFilesystem("ISO 9660")),
    (&["udf"], Promise::OtherFilesystem("UDF")),
    (&["qcow2"], Promise::Disk("qcow2", Some("qcow2"))),
    (&["qcow"], Promise::Disk("qcow", Some("qcow"))),
    (&["qed"], Promise::Disk("QED", Some("qed"))),
    (&["vmdk"], Promise::Disk("VMDK", Some("vmdk"))),
    (&["vdi"], Promise::Disk("VDI", Some("vdi"))),
    (&["vhd", "vpc"], Promise::Disk("VHD", Some("vpc"))),
    (&["vhdx"], Promise::Disk("VHDX", Some("vhdx"))),
    (&["hdd", "hds"], Promise::Disk("Parallels", Some("parallels"))),
    (&["ova", "ovf"], Promise::Disk("OVF", None)),
    (&["dmg"], Promise::Disk("DMG", None)),
    (&["wim"], Promise::Disk("WIM", None)),
    (&["simg", "sparseimg"], Promise::Disk("Android sparse", None)),
    (&["tar"], Promise::Tar(None)),
    // GNU tar's list for --auto-compress.
    (&["tgz", "taz"], Promise::Tar(Some(Compression::Gzip))),
    (&["tzst"], Promise::Tar(Some(Compression::Zstd))),
    (&["txz"], Promise::Tar(Some(Compression::Xz))),
    (&["tbz2", "tbz", "tb2", "tz2"], Promise::Tar(Some(Compression::Bzip2))),
    (&["tlz4"], Promise::Tar(Some(Compression::Lz4))),
    (&["tlz"], Promise::Tar(Some(Compression::Other("lzma")))),
    (&["tz"], Promise::Tar(Some(Compression::Other("compress")))),
    (&["gz", "gzip"], Promise::Compressed(Compression::Gzip)),
    (&["zst", "zstd"], Promise::Compressed(Compression::Zstd)),
    (&["xz"], Promise::Compressed(Compression::Xz)),
    (&["bz2", "bz", "bzip2"], Promise::Compressed(Compression::Bzip2)),
    (&["lz4"], Promise::Compressed(Compression::Lz4)),
    (&["lzma"], Promise::Compressed(Compression::Other("lzma"))),
    (&["lz"], Promise::Compressed(Compression::Other("lzip"))),
    (&["lzo"], Promise::Compressed(Compression::Other("lzop"))),
    (&["z"], Promise::Compressed(Compression::Other("compress"))),
    (&["br"], Promise::Compressed(Compression::Other("brotli"))),
    (&["zip", "jar"], Promise::Archive("zip")),
    (&["cpio"], Promise::Archive("cpio")),
    (&["7z"], Promise::Archive("7z")),
    (&["rar"], Promise::Archive("rar")),
    (&["deb", "rpm", "apk"], Promise::Archive("package")),
    (&["json"], Promise::Text("JSON")),
    (&["yaml", "yml"], Promise::Text("YAML")),
    (&["toml"], Promise::Text("TOML")),
    (&["xml", "spdx"], Promise::Text("XML")),
    (&["html", "htm"], Promise::Text("HTML")),
    (&["csv"], Promise::Text("CSV")),
    (&["md"], Promise::Text("Markdown")),
];

/// Extensions of raw images: they say how a filesystem is kept, and the extension before them may say which one it is.
const RAW: [&str; 6] = ["img", "raw", "bin", "image", "disk", "dd"];

impl Promise {
    /// Returns what the name of `path` promises, whatever its case. `None`: it promises nothing.
    ///
    /// ```
    /// use snug_formats::FilesystemKind;
    /// use snug_formats::file_name::{Compression, Promise};
    ///
    /// let of = |name: &str| Promise::of(name.as_ref());
    /// assert_eq!(of("rootfs.erofs"), Some(Promise::Filesystem(FilesystemKind::Erofs)));
    /// assert_eq!(of("root.TAR.GZ"), Some(Promise::Tar(Some(Compression::Gzip))));
    /// assert_eq!(of("rootfs.img"), Some(Promise::RawImage));
    /// assert_eq!(of("rootfs"), None);
    /// ```
    pub fn of(path: &Path) -> Option<Self> {
        let name = Path::new(path.file_name()?);
        let extension = name.extension()?.to_str()?.to_ascii_lowercase();
        let inner = || Promise::of(name.with_extension("").as_path());
        if RAW.contains(&extension.as_str()) {
            return Some(inner().filter(|inner| matches!(inner, Promise::Filesystem(_))).unwrap_or(Promise::RawImage));
        }
        let (_, promise) = EXTENSIONS.iter().find(|(all, _)| all.contains(&extension.as_str()))?;
        Some(match promise {
            Promise::Compressed(by) if inner() == Some(Promise::Tar(None)) => Promise::Tar(Some(*by)),
            other => *other,
        })
    }
}

impl Compression {
    /// Returns the name of the program that writes it.
    pub fn program(self) -> &'static str {
        match self {
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
            Compression::Xz => "xz",
            Compression::Bzip2 => "bzip2",
            Compression::Lz4 => "lz4",
            Compression::Other(program) => program,
        }
    }
}

/// What is promised, as in "its name promises a zip archive".
impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Promise::Filesystem(kind) => write!(f, "{kind}"),
            Promise::RawImage => write!(f, "the image of a filesystem"),
            Promise::OtherFilesystem(name) | Promise::Text(name) => write!(f, "{name}"),
            Promise::Disk(name, _) => write!(f, "a {name} disk"),
            Promise::Tar(None) => write!(f, "a tar"),
            Promise::Tar(Some(by)) => write!(f, "a tar compressed by {}", by.program()),
            Promise::Compressed(by) => write!(f, "a file compressed by {}", by.program()),
            Promise::Archive(name) => write!(f, "a {name} archive"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Option<Promise> {
        Promise::of(name.as_ref())
    }

    #[test]
    fn an_extension_is_told_from_the_name_whatever_its_case() {
        assert_eq!(of("a/b.EXT4"), Some(Promise::Filesystem(FilesystemKind::Ext4)));
        assert_eq!(of("b.sqfs"), Some(Promise::Filesystem(FilesystemKind::Squashfs)));
        assert_eq!(of("b.erofs.img"), Some(Promise::Filesystem(FilesystemKind::Erofs)));
        assert_eq!(of("b.vhd"), Some(Promise::Disk("VHD", Some("vpc"))));
        assert_eq!(of("b.tar.zst"), Some(Promise::Tar(Some(Compression::Zstd))));
        assert_eq!(of("b.tbz2"), Some(Promise::Tar(Some(Compression::Bzip2))));
        assert_eq!(of("b.ext4.zst"), Some(Promise::Compressed(Compression::Zstd)));
        assert_eq!(of("b.cpio.gz"), Some(Promise::Compressed(Compression::Gzip)));
        for raw in ["b.img", "b.raw", "b.tar.img"] {
            assert_eq!(of(raw), Some(Promise::RawImage), "{raw}");
        }
        for neutral in ["b", "ext4", ".ext4", "tar.gz.d", "b.unknown", "a.erofs/b", ".."] {
            assert_eq!(of(neutral), None, "{neutral}");
        }
    }

    #[test]
    fn every_type_of_filesystem_has_its_own_name_as_extension_and_no_extension_is_there_twice() {
        for kind in FilesystemKind::ALL {
            assert_eq!(of(&format!("rootfs.{kind}")), Some(Promise::Filesystem(kind)));
        }
        let mut all: Vec<_> = EXTENSIONS.iter().flat_map(|(all, _)| all.iter()).chain(&RAW).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
