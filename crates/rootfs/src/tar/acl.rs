//! POSIX access control lists as archives write them in text: star's records `SCHILY.acl.access` and
//! `SCHILY.acl.default`, which bsdtar and GNU tar's `--acls` write too.
//!
//! The text is the long or short form of POSIX 1003.1e draft 17, 23.3: `user::rw-,user:1234:r--,mask::r--,other::---`, with
//! newlines or commas between entries. star and bsdtar add the number to a name: `user:joe:r--:1234`.

use super::text::Reason;

/// The kernel's form (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions and id.
const VERSION: u32 = 2;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries without a user or group (`ACL_UNDEFINED_ID`).
const UNDEFINED_ID: u32 = u32::MAX;

/// The extended attributes in which the kernel keeps lists.
pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// A complete list, in the kernel's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acl {
    entries: Vec<Entry>,
}

/// Ordered as the kernel wants them: by tag, then by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

impl Acl {
    pub(super) fn parse(text: &[u8]) -> Result<Self, Reason> {
        let mut entries = text
            .split(|byte| matches!(byte, b',' | b'\n'))
            .map(<[u8]>::trim_ascii)
            .filter(|entry| !entry.is_empty())
            .map(parse_entry)
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_unstable();
        if entries.windows(2).any(|pair| (pair[0].tag, pair[0].id) == (pair[1].tag, pair[1].id)) {
            return Err("it has two entries for the same");
        }
        let acl = Acl { entries };
        if [USER_OBJ, GROUP_OBJ, OTHER].iter().any(|&tag| acl.permissions(tag).is_none()) {
            return Err("it lacks owner, group or others");
        }
        if !acl.is_minimal() && acl.permissions(MASK).is_none() {
            return Err("it names users or groups and has no mask");
        }
        Ok(acl)
    }

    fn permissions(&self, tag: u16) -> Option<u16> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// Whether the mode says the same as the list.
    pub(super) fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Returns the permission bits of a file with this list: those of the group are the mask's (acl(5)).
    pub(super) fn mode(&self) -> u16 {
        let of = |tag| self.permissions(tag).unwrap_or(0);
        let group = self.permissions(MASK).unwrap_or_else(|| of(GROUP_OBJ));
        of(USER_OBJ) << 6 | group << 3 | of(OTHER)
    }

    /// Returns the value of the extended attribute.
    pub(super) fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }
}

fn parse_entry(text: &[u8]) -> Result<Entry, Reason> {
    // What follows `#` is a comment: the permissions that the mask leaves.
    let text = text.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii_end();
    let fields: Vec<&[u8]> = text.split(|&byte| byte == b':').collect();
    let (who, name, permissions, number) = match fields[..] {
        [who, permissions] if matches!(who, b"mask" | b"m" | b"other" | b"o") => (who, &b""[..], permissions, None),
        [who, name, permissions] => (who, name, permissions, None),
        [who, name, permissions, number] => (who, name, permissions, Some(number)),
        _ => return Err("an entry is not of the form `user:NAME:rwx`"),
    };
    let (whole, named) = match who {
        b"user" | b"u" => (USER_OBJ, Some(USER)),
        b"group" | b"g" => (GROUP_OBJ, Some(GROUP)),
        b"mask" | b"m" => (MASK, None),
        b"other" | b"o" => (OTHER, None),
        _ => return Err("an entry is for neither user, group, mask nor other"),
    };
    let permissions = parse_permissions(permissions).ok_or("an entry's permissions are not of the form `rwx`")?;
    if name.is_empty() {
        return Ok(Entry { tag: whole, id: UNDEFINED_ID, permissions });
    }
    let tag = named.ok_or("a mask or others with a name")?;
    // Names mean something only where the archive was made.
    let id = super::text::decimal(number.unwrap_or(name))
        .and_then(|id| u32::try_from(id).ok())
        .filter(|&id| id != UNDEFINED_ID)
        .ok_or("it names a user or group without its number: archive with --numeric-owner, or with --xattrs")?;
    Ok(Entry { tag, id, permissions })
}

fn parse_permissions(text: &[u8]) -> Option<u16> {
    if text.is_empty() || text.len() > 3 {
        return None;
    }
    text.iter().try_fold(0, |permissions, byte| match byte {
        b'r' => Some(permissions | 4),
        b'w' => Some(permissions | 2),
        b'x' => Some(permissions | 1),
        b'-' => Some(permissions),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_of_gnu_tar_star_and_bsdtar_are_the_same_list() {
        // `setfacl -m u:1234:rwx,g:4000000000:rx` on a file of mode 644, as getxattr(2) gives it.
        let kernel = b"\x02\0\0\0\
            \x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
            \x08\0\x05\0\x00\x28\x6b\xee\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";
        for text in [
            "user::rw-\nuser:1234:rwx\ngroup::r--\ngroup:4000000000:r-x\nmask::rwx\nother::r--\n",
            "user::rw-,group::r--,other::r--,user:1234:rwx,group:4000000000:r-x,mask::rwx",
            "user::rw-,user:joe:rwx:1234,group::r--,group:wheel:r-x:4000000000,mask::rwx,other::r--",
            "u::rw, u:1234:rwx #effective:rwx, g::r, g:4000000000:rx, m:rwx, o:r",
        ] {
            let acl = Acl::parse(text.as_bytes()).unwrap_or_else(|reason| panic!("{text}: {reason}"));
            assert_eq!(acl.to_xattr(), kernel, "{text}");
            assert_eq!(acl.mode(), 0o674, "{text}");
            assert!(!acl.is_minimal());
        }
        let minimal = Acl::parse(b"user::rw-,group::r--,other::---").expect("a list");
        assert!(minimal.is_minimal());
        assert_eq!(minimal.mode(), 0o640);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "user::rw-",
            "user::rw-,group::r--",
            "user::rw-,group::r--,other::r--,user:1:r--",
            "user::rw-,group::r--,other::r--,user:joe:r--,mask::r--",
            "user::rw-,group::r--,other::r--,user:1:r--,user:1:rw-,mask::r--",
            "user::rw-,group::r--,other::r--,user:4294967295:r--,mask::r--",
            "user::rw-,group::r--,other::r--,mask:7:r--",
            "user::rw-,group::r--,other::rwxr",
            "user::rw-,group::r--,other:",
            "nobody::rw-,group::r--,other::r--",
            "allow@",
        ] {
            assert!(Acl::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
