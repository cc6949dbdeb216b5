//! What tells one filesystem from another, and is the same whenever the same is written: UUID and hash seed.

use sha2::{Digest, Sha256};
use snug_rootfs::tree::{Inode, Kind, RootTree};

use crate::Ext4Options;

/// Names the derivation, so that a later one cannot yield the same UUID for other bytes.
const DOMAIN: &[u8] = b"snug ext4 identity 1\0";

/// UUID and directory hash seed of one filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub uuid: [u8; 16],
    pub hash_seed: [u8; 16],
}

impl Identity {
    /// Derives both from the entries' headers, the options and the label. Bodies do not take part, so that the identity
    /// is known before they are read; an `uuid` of the options replaces the derived one.
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

/// 32 bytes for `purpose` that are the same whenever the same is written: from the entries' headers and `options`.
/// Bodies do not take part.
pub fn seed(purpose: &str, options: &[u8], tree: &RootTree) -> [u8; 32] {
    let mut digest = Sha256::new();
    let mut about = Vec::new();
    bytes(&mut about, purpose.as_bytes());
    bytes(&mut about, options);
    digest.update(&about);
    headers(&mut digest, tree);
    digest.finalize().into()
}

/// A UUID of these bytes. RFC 9562: version 8, made by a rule of one's own.
pub fn own_uuid(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// A UUID in the groups of RFC 9562.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let digits = base16ct::lower::encode_string(uuid);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn headers(digest: &mut Sha256, tree: &RootTree) {
    // Many small fields are dearer to hash than to gather.
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

/// Length first, so that no two lists of fields read the same.
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
            let ranges = body.extents.as_slice();
            out.extend_from_slice(&(ranges.len() as u64).to_le_bytes());
            for range in ranges {
                // Where the body lies in its source is no property of the tree.
                out.extend_from_slice(&range.offset.to_le_bytes());
                out.extend_from_slice(&range.length.to_le_bytes());
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
/// What the superblock says beside the plan.
pub(crate) struct Description<'label> {
    pub identity: Identity,
    /// When the filesystem was made, in seconds since the epoch.
    pub time: i64,
    pub label: &'label [u8],
    /// Store the seed of checksums, so that the UUID can be changed.
    pub checksum_seed: bool,
}
