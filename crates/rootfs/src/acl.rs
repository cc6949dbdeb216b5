//! POSIX access control lists (acl(5)): as the kernel takes them in extended attributes, and as archives write them in text.
//!
//! The text is star's, in its records `SCHILY.acl.access` and `SCHILY.acl.default`, which bsdtar and GNU tar's `--acls` write
//! too: the long or short form of POSIX 1003.1e draft 17, 23.3, `user::rw-,user:1234:r--,mask::r--,other::---`, with newlines
//! or commas between entries. star and bsdtar add the number to a name: `user:joe:r--:1234`.

use super::accounts::Accounts;

/// The kernel's form (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions and id.
const VERSION: u32 = 2;
/// Bytes of an entry.
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries without a user or group (`ACL_UNDEFINED_ID`).
const UNDEFINED_ID: u32 = u32::MAX;

/// The extended attribute in which the kernel keeps the list of a file.
pub const ACCESS: &[u8] = b"system.posix_acl_access";
/// The extended attribute in which the kernel keeps the list that new files in a directory get.
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

/// Why text is no list.
pub(crate) type Reason = &'static str;

/// A complete list, in the kernel's order of tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    entries: Vec<AclEntry>,
}

/// One entry of a list. Ordered as the kernel wants them: by tag, then by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct AclEntry {
    /// For whom it is (`include/uapi/linux/posix_acl.h`).
    pub tag: u16,
    /// The number of a named user or group.
    pub id: Option<u32>,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
}

impl Acl {
    /// Reads the value of the extended attribute. `None` if the kernel would refuse it (`posix_acl_from_xattr`,
    /// `posix_acl_valid`).
    pub fn from_xattr(value: &[u8]) -> Option<Self> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION {
            return None;
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return None;
        }
        let entry = |[tag_0, tag_1, permissions_0, permissions_1, id @ ..]: &[u8; ENTRY_BYTES]| {
            let tag = u16::from_le_bytes([*tag_0, *tag_1]);
            let id = is_named(tag).then_some(u32::from_le_bytes(*id));
            AclEntry { tag, id, permissions: u16::from_le_bytes([*permissions_0, *permissions_1]) }
        };
        let acl = Acl { entries: entries.iter().map(entry).collect() };
        let takes = |entry: &AclEntry| entry.permissions <= 7 && entry.id != Some(UNDEFINED_ID);
        (acl.entries.iter().all(takes) && acl.entries.is_sorted_by_key(|entry| entry.tag) && acl.is_whole().is_ok())
            .then_some(acl)
    }

    /// Returns the value of the extended attribute.
    pub fn to_xattr(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.unwrap_or(UNDEFINED_ID).to_le_bytes());
        }
        bytes
    }

    /// Returns the entries.
    pub fn entries(&self) -> &[AclEntry] {
        &self.entries
    }

    /// Returns the permission bits that grant no more than the list does where it is left out: those of the owning group itself,
    /// whose place in a file's mode the mask takes as long as there is a list (acl(5)).
    pub(crate) fn mode_without(&self) -> u16 {
        let of = |tag| self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions);
        let group = of(GROUP_OBJ).unwrap_or(0) & of(MASK).unwrap_or(7);
        of(USER_OBJ).unwrap_or(0) << 6 | group << 3 | of(OTHER).unwrap_or(0)
    }

    /// Whether each class is there once, and a mask wherever a user or group is named.
    fn is_whole(&self) -> Result<(), Reason> {
        let count = |wanted: u16| self.entries.iter().filter(|entry| entry.tag == wanted).count();
        if [USER_OBJ, GROUP_OBJ, OTHER].iter().any(|&tag| count(tag) == 0) {
            return Err("it lacks owner, group or others");
        }
        if self.entries.iter().any(|entry| !is_named(entry.tag) && !is_single(entry.tag)) {
            return Err("an entry is for nobody");
        }
        if self.entries.iter().any(|entry| is_single(entry.tag) && count(entry.tag) > 1) {
            return Err("it has two entries for the same");
        }
        if count(USER) + count(GROUP) > 0 && count(MASK) == 0 {
            return Err("it names users or groups and has no mask");
        }
        Ok(())
    }
}

fn is_named(tag: u16) -> bool {
    matches!(tag, USER | GROUP)
}

fn is_single(tag: u16) -> bool {
    matches!(tag, USER_OBJ | GROUP_OBJ | MASK | OTHER)
}

/// A list as text: its users and groups may have names, which mean something in one root filesystem only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TextAcl {
    entries: Vec<TextEntry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct TextEntry {
    tag: u16,
    who: Who,
    permissions: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    /// The owner, the owning group, others, or the mask.
    Class,
    Id(u32),
    Name(Vec<u8>),
}

impl TextAcl {
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Reason> {
        let entries = text
            .split(|byte| matches!(byte, b',' | b'\n'))
            .map(<[u8]>::trim_ascii)
            .filter(|entry| !entry.is_empty())
            .map(parse_entry)
            .collect::<Result<Vec<_>, _>>()?;
        let text = TextAcl { entries };
        // Sorted, since a header may have millions of them.
        let mut whom: Vec<(u16, &Who)> = text.entries.iter().map(|entry| (entry.tag, &entry.who)).collect();
        whom.sort_unstable();
        if !whom.is_sorted_by(|a, b| a < b) {
            return Err("it has two entries for the same");
        }
        // Which number a name has makes no difference to whether the list is whole.
        text.with_ids(|_, _| None).is_whole()?;
        if text.entries.iter().any(|entry| is_named(entry.tag)) && text.permissions(MASK).is_none() {
            return Err("it names users or groups and has no mask");
        }
        Ok(text)
    }

    fn permissions(&self, tag: u16) -> Option<u16> {
        self.entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// Whether the mode says the same as the list.
    pub(crate) fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.tag, USER_OBJ | GROUP_OBJ | OTHER))
    }

    /// Returns the permission bits of a file with this list: those of the group are the mask's (acl(5)).
    pub(crate) fn mode(&self) -> u16 {
        let of = |tag| self.permissions(tag).unwrap_or(0);
        let group = self.permissions(MASK).unwrap_or_else(|| of(GROUP_OBJ));
        of(USER_OBJ) << 6 | group << 3 | of(OTHER)
    }

    /// Returns the permission bits that grant no more than the list does where it is left out, as [`Acl::mode_without`].
    pub(crate) fn mode_without(&self) -> u16 {
        self.with_ids(|_, _| None).mode_without()
    }

    /// Returns the most bytes that the extended attribute can have, whatever the names in the list are.
    pub(crate) fn xattr_bytes(&self) -> usize {
        size_of_val(&VERSION) + ENTRY_BYTES * self.entries.len()
    }

    /// Returns the users and groups that have names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter_map(|entry| match &entry.who {
            Who::Name(name) => Some(name.as_slice()),
            _ => None,
        })
    }

    /// Returns the list, if all users and groups in it are numbers.
    pub(crate) fn numeric(&self) -> Option<Acl> {
        let named = |entry: &TextEntry| matches!(entry.who, Who::Name(_));
        (!self.entries.iter().any(named)).then(|| self.with_ids(|_, _| None))
    }

    /// Returns the list with the numbers that `accounts` gives the names in it. Entries with names that it does not have are
    /// left out, and passed to `unknown` as `user:joe`.
    pub(crate) fn resolved(&self, accounts: &Accounts, mut unknown: impl FnMut(String)) -> Acl {
        self.with_ids(|tag, name| {
            let name = String::from_utf8_lossy(name);
            let (class, id) = match tag {
                USER => ("user", accounts.user(&name)),
                _ => ("group", accounts.group(&name)),
            };
            if id.is_none() {
                unknown(format!("{class}:{name}"));
            }
            id
        })
    }

    /// Returns the list with the numbers that `id` returns for tags and names; entries for which there is none are left out.
    fn with_ids(&self, mut id: impl FnMut(u16, &[u8]) -> Option<u32>) -> Acl {
        let mut entries: Vec<AclEntry> = Vec::with_capacity(self.entries.len());
        for TextEntry { tag, who, permissions } in &self.entries {
            let id = match who {
                Who::Class => None,
                Who::Id(number) => Some(*number),
                Who::Name(name) => match id(*tag, name) {
                    None => continue,
                    known => known,
                },
            };
            entries.push(AclEntry { tag: *tag, id, permissions: *permissions });
        }
        entries.sort_unstable();
        // Two names may be one account: the first entry, with the fewest permissions, counts.
        entries.dedup_by_key(|entry| (entry.tag, entry.id));
        Acl { entries }
    }
}

fn parse_entry(text: &[u8]) -> Result<TextEntry, Reason> {
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
        return Ok(TextEntry { tag: whole, who: Who::Class, permissions });
    }
    let tag = named.ok_or("a mask or others with a name")?;
    // The number is the one of the archived file; as for owners, it counts before the name.
    let who = match parse_id(number.unwrap_or(name))? {
        Some(id) => Who::Id(id),
        None => Who::Name(name.into()),
    };
    Ok(TextEntry { tag, who, permissions })
}

/// Reads the number of a user or group; `None` if the text is none.
fn parse_id(text: &[u8]) -> Result<Option<u32>, Reason> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return Ok(None);
    }
    let id = str::from_utf8(text).ok().and_then(|text| text.parse().ok()).filter(|&id| id != UNDEFINED_ID);
    id.map(Some).ok_or("the number of a user or group is out of range")
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
    use crate::tree::{BodySource, Inode, Kind, RootTree, TreePath};

    /// `setfacl -m u:1234:rwx,g:4000000000:rx` on a file of mode 644, as getxattr(2) gives it.
    const KERNEL: &[u8] = b"\x02\0\0\0\
        \x01\0\x06\0\xff\xff\xff\xff\x02\0\x07\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x08\0\x05\0\x00\x28\x6b\xee\x10\0\x07\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

    #[test]
    fn the_forms_of_gnu_tar_star_and_bsdtar_are_the_same_list() {
        for text in [
            "user::rw-\nuser:1234:rwx\ngroup::r--\ngroup:4000000000:r-x\nmask::rwx\nother::r--\n",
            "user::rw-,group::r--,other::r--,user:1234:rwx,group:4000000000:r-x,mask::rwx",
            "user::rw-,user:joe:rwx:1234,group::r--,group:wheel:r-x:4000000000,mask::rwx,other::r--",
            "u::rw, u:1234:rwx #effective:rwx, g::r, g:4000000000:rx, m:rwx, o:r",
        ] {
            let acl = TextAcl::parse(text.as_bytes()).unwrap_or_else(|reason| panic!("{text}: {reason}"));
            let numeric = acl.numeric().unwrap_or_else(|| panic!("{text}: it has names"));
            assert_eq!(numeric.to_xattr(), KERNEL, "{text}");
            assert_eq!(Acl::from_xattr(KERNEL), Some(numeric), "{text}");
            assert_eq!(acl.mode(), 0o674, "{text}");
            assert_eq!(acl.numeric().map(|acl| acl.mode_without()), Some(0o644), "{text}");
            assert!(!acl.is_minimal());
        }
        let minimal = TextAcl::parse(b"user::rw-,group::r--,other::---").expect("a list");
        assert!(minimal.is_minimal());
        assert_eq!(minimal.mode(), 0o640);
    }

    #[test]
    fn names_are_those_of_the_tree_and_unknown_ones_are_left_out() {
        let mut tree = RootTree::new(BodySource::new(Vec::new()));
        for (path, text) in [("etc/passwd", "joe:x:1234:5::/:/bin/sh\n"), ("etc/group", "wheel:x:4000000000:\n")] {
            let body = tree.add_body(text.as_bytes());
            tree.insert(TreePath::new(path).unwrap(), Inode::new(Kind::File(body), 0o644)).unwrap();
        }
        let accounts = Accounts::read(&tree).unwrap();
        let text = b"user::rw-,user:joe:rwx,user:eve:r--,group::r--,group:wheel:r-x,group:joe:r--,mask::rwx,other::r--";
        let acl = TextAcl::parse(text).unwrap();
        assert_eq!(acl.numeric(), None);
        let mut unknown = Vec::new();
        assert_eq!(acl.resolved(&accounts, |name| unknown.push(name)).to_xattr(), KERNEL);
        assert_eq!(unknown, ["user:eve", "group:joe"]);
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "",
            "user::rw-",
            "user::rw-,group::r--",
            "user::rw-,group::r--,other::r--,user:1:r--",
            "user::rw-,group::r--,other::r--,user:joe:r--",
            "user::rw-,group::r--,other::r--,user:1:r--,user:1:rw-,mask::r--",
            "user::rw-,group::r--,other::r--,user:joe:r--,user:joe:rw-,mask::r--",
            "user::rw-,group::r--,group::r--,other::r--",
            "user::rw-,group::r--,other::r--,user:4294967295:r--,mask::r--",
            "user::rw-,group::r--,other::r--,mask:7:r--",
            "user::rw-,group::r--,other::rwxr",
            "user::rw-,group::r--,other:",
            "nobody::rw-,group::r--,other::r--",
            "allow@",
        ] {
            assert!(TextAcl::parse(text.as_bytes()).is_err(), "{text}");
        }
        let [other_tag, rest] = [&b"\x21\0"[..], &KERNEL[KERNEL.len() - 6..]];
        for value in [
            &KERNEL[..KERNEL.len() - 8],
            &KERNEL[..7],
            &[&b"\x01\0\0\0"[..], &KERNEL[4..]].concat(),
            &[&KERNEL[..KERNEL.len() - 8], other_tag, rest].concat(),
            b"",
        ] {
            assert_eq!(Acl::from_xattr(value), None, "{}", value.escape_ascii());
        }
    }
}
