//! A filesystem's UUID and hash seed, derived from what is written, so that the same input gives the same image.

use sha2::{Digest, Sha256};
use snug_rootfs::tree::{Inode, Kind, RootTree};

use crate::Ext4Options;

/// Separates this derivation from later versions of it, which must not yield the same UUID for other bytes.
const DOMAIN: &[u8] = b"snug ext4 identity 1\0";

/// UUID and directory hash seed of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// `s_uuid` of the superblock (`super.rst`).
    pub uuid: [u8; 16],
    /// `s_hash_seed`, with which directory indexes hash names.
    pub hash_seed: [u8; 16],
}

impl Identity {
    /// Derives both from the metadata of `tree` (paths, inodes without file contents) and the options. File contents are left
    /// out so that the identity is known before they are read. [`Ext4Options::uuid`] replaces the derived UUID.
    pub fn new(tree: &RootTree, options: &Ext4Options) -> Self {
        let mut digest = Sha256::new();
        let mut about = DOMAIN.to_vec();
        about.extend([u8::from(options.journal), options.reserved_percent]);
        about.extend(options.growth.unwrap_or(0).to_le_bytes());
        bytes(&mut about, options.label.as_deref().unwrap_or_default().as_bytes());
        digest.update(&about);
        headers(&mut digest, tree);
        let digest: [u8; 32] = digest.finalize().into();
        let (mut uuid, mut hash_seed) = ([0; 16], [0; 16]);
        uuid.copy_from_slice(&digest[..16]);
        hash_seed.copy_from_slice(&digest[16..]);
        Identity { uuid: options.uuid.unwrap_or(own_uuid(uuid)), hash_seed }
    }
}

/// Derives 32 bytes for `purpose` from `options` and the metadata of `tree`, file contents left out, by SHA-256.
pub fn seed(purpose: &str, options: &[u8], tree: &RootTree) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut about = Vec::new();
    bytes(&mut about, purpose.as_bytes());
    bytes(&mut about, options);
    digest.update(&about);
    headers(&mut digest, tree);
    digest.finalize().into()
}

/// Sets the version and variant bits of a UUID: version 8, "custom" (RFC 9562, section 5.8).
pub fn own_uuid(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Formats a UUID in lower-case hexadecimal digits and hyphens (RFC 9562, section 4).
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let digits = base16ct::lower::encode_string(uuid);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn headers(digest: &mut Sha256, tree: &RootTree) {
    // One update for each entry is much quicker than one for each field.
    let mut gathered = Vec::new();
    for entry in tree.entries() {
        gathered.clear();
        bytes(&mut gathered, entry.path.as_bytes());
        match entry.hard_link_to {
            Some(first) => {
                gathered.push(b'=');
                bytes(&mut gathered, first.as_bytes());
            }
            None => header(&mut gathered, entry.inode),
        }
        digest.update(&gathered);
    }
}

/// Length-prefixed, so that no two lists of fields have the same encoding.
fn bytes(out: &mut Vec<u8>, field: &[u8]) {
    out.extend_from_slice(&(field.len() as u64).to_le_bytes());
    out.extend_from_slice(field);
}

fn header(out: &mut Vec<u8>, inode: &Inode) {
    let device = |out: &mut Vec<u8>, kind: u8, major: u32, minor: u32| {
        out.push(kind);
        out.extend_from_slice(&major.to_le_bytes());
        out.extend_from_slice(&minor.to_le_bytes());
    };
    match &inode.kind {
        Kind::Directory => out.push(b'd'),
        Kind::Fifo => out.push(b'p'),
        Kind::Socket => out.push(b's'),
        Kind::CharacterDevice { major, minor } => device(out, b'c', *major, *minor),
        Kind::BlockDevice { major, minor } => device(out, b'b', *major, *minor),
        Kind::Symlink(target) => {
            out.push(b'l');
            bytes(out, target);
        }
        Kind::File(body) => {
            out.push(b'f');
            out.extend_from_slice(&body.size.to_le_bytes());
            out.extend_from_slice(&(body.runs().count() as u64).to_le_bytes());
            // The ranges themselves are those of the input, not a property of the tree.
            for run in body.runs() {
                out.extend_from_slice(&run.start.to_le_bytes());
                out.extend_from_slice(&(run.end - run.start).to_le_bytes());
            }
        }
    }
    out.extend_from_slice(&inode.mode.to_le_bytes());
    out.extend_from_slice(&inode.uid.to_le_bytes());
    out.extend_from_slice(&inode.gid.to_le_bytes());
    out.extend_from_slice(&inode.mtime.seconds.to_le_bytes());
    out.extend_from_slice(&inode.mtime.nanoseconds.to_le_bytes());
    out.extend_from_slice(&(inode.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &inode.xattrs {
        bytes(out, name);
        bytes(out, value);
    }
}

/// What the superblock says of a filesystem apart from its plan.
pub(crate) struct Description<'label> {
    pub identity: Identity,
    /// `s_mkfs_time`, in seconds since the epoch.
    pub time: i64,
    /// At most 16 bytes.
    pub label: &'label [u8],
}
