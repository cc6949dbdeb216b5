//! Where the entries of an archive go in a tree: one policy for whole archives and for the layers of an image.
//!
//! An entry goes where a process would put it whose root the tree is, as container engines unpack an image: on a root whose
//! `/lib` is a symlink to `usr/lib`, `lib/x` becomes `usr/lib/x`. Directories that a symlink leads to and that do not exist yet
//! are made, as containerd and umoci do. A `..` in a name takes back the component before it, whatever that leads to, since the
//! name was cleaned before it comes here: `lib/../x` is `x`. The target of a hard link is looked up in the same way. A later
//! entry replaces an earlier one of the same name; only a directory that replaces a directory keeps its entries. Nothing of
//! this touches the host, and nothing leaves the root.

use super::error::{EntryName, TarError};
use super::limits::Budget;
use super::read::Entry;
use crate::adjustments::Adjustment;
use crate::tree::{Body, FollowError, Inode, Kind, Missing, Replaced, RootTree, TreeError, TreePath};

/// Puts the entries of one archive into a tree.
pub(crate) struct Placement {
    /// Slots that the tree had before: what is in them is no loss of this archive.
    first_slot: usize,
    /// The last parent that symlinks led away from, and where to, as long as no symlink can have changed.
    followed: Option<(TreePath, TreePath)>,
}

impl Placement {
    /// For an archive whose entries come on top of those in `tree`.
    pub(crate) fn over(tree: &RootTree) -> Self {
        Placement { first_slot: tree.inode_slots(), followed: None }
    }

    /// Applies an entry. What is taken otherwise than it is written is noted in the tree.
    pub(crate) fn put(&mut self, tree: &mut RootTree, entry: Entry, budget: &mut Budget) -> Result<(), TarError> {
        // Nearly always the parent is there, and nothing has to be followed or made.
        let written = (!tree.has_parent(entry.path())).then(|| entry.path().clone());
        if written.is_none() {
            self.followed = None;
        }
        let slots = tree.inode_slots();
        let (own, length) = match entry {
            Entry::Inode { path, inode } => {
                let place = self.place(tree, path, written.as_ref(), budget)?;
                let length = place.as_bytes().len();
                self.put_inode(tree, place, inode).map_err(|error| explain(error, written.as_ref()))?;
                (1, length)
            }
            Entry::HardLink { path, target, body } => {
                let place = self.place(tree, path, written.as_ref(), budget)?;
                let target = target_of(tree, written.as_ref().unwrap_or(&place), target, budget)?;
                self.put_link(tree, &place, &target).map_err(|error| explain(error, written.as_ref()))?;
                if let Some(body) = body {
                    set_link_body(tree, written.as_ref().unwrap_or(&place), &target, body)?;
                }
                (0, place.as_bytes().len())
            }
        };
        let Some(written) = written else { return Ok(()) };
        // The reader charged the name as it is written, and a short one may lead to a long one.
        let longer = length.saturating_sub(written.as_bytes().len());
        budget.charge_metadata(longer as u64, written.as_bytes())?;
        // Of the new inodes one may be the entry's own.
        budget.charge_implied(tree.inode_slots().saturating_sub(slots + own), length, written.as_bytes())
    }

    /// Returns where an entry goes: `path`, or where the symlinks above it lead if it was `written` with a parent that is no
    /// directory of the tree.
    fn place(
        &mut self,
        tree: &mut RootTree,
        path: TreePath,
        written: Option<&TreePath>,
        budget: &mut Budget,
    ) -> Result<TreePath, TarError> {
        let Some(parent) = written.and_then(TreePath::parent) else { return Ok(path) };
        let real = match &self.followed {
            // Neighbours in an archive share their directory.
            Some((from, to)) if *from == parent => to.clone(),
            _ => budget.follow(tree, &parent, Missing::Kept)?.map_err(|error| match error {
                FollowError::Path(reason) => TarError::PlacePath { path: path.clone(), reason },
                FollowError::Loop | FollowError::Missing => {
                    TarError::SymlinkLoop { path: path.clone(), above: parent.clone() }
                }
            })?,
        };
        if real == parent {
            return Ok(path);
        }
        let place = TreePath::new([real.as_bytes(), b"/", path.name()].concat());
        let place = place.map_err(|reason| TarError::PlacePath { path: path.clone(), reason })?;
        tree.note(Adjustment::BelowSymlink, || format!("{path}, put to {place}"));
        self.followed = Some((parent, real));
        Ok(place)
    }

    fn put_inode(&mut self, tree: &mut RootTree, place: TreePath, inode: Inode) -> Result<(), TreeError> {
        let may_lead = matches!(inode.kind, Kind::Symlink(_));
        let replaced = tree.overlay(place, inode)?;
        if may_lead || !matches!(replaced, Replaced::Nothing | Replaced::Directory) {
            self.followed = None;
        }
        self.note_loss(tree, replaced);
        Ok(())
    }

    fn put_link(&mut self, tree: &mut RootTree, place: &TreePath, target: &TreePath) -> Result<(), TreeError> {
        // It may be a further name of a symlink.
        self.followed = None;
        let id = tree.id(target);
        if id.is_some() && tree.id(place) == id {
            // It is that already.
            return match tree.get(place).is_some_and(Inode::is_directory) {
                true => Err(TreeError::HardLinkToDirectory { path: place.clone(), target: target.clone() }),
                false => Ok(()),
            };
        }
        let is_directory = |path: &TreePath| tree.get(path).is_some_and(Inode::is_directory);
        if is_directory(place) && !is_directory(target) {
            if target.is_within(place) {
                return Err(TreeError::DirectoryInTheWay { path: place.clone(), kind: "hard link" });
            }
            let replaced = tree.clear(place);
            tree.remove(place);
            self.note_loss(tree, replaced);
        }
        tree.link(place.clone(), target)
    }

    /// Notes what this archive loses of its own with a directory that a later entry replaces. An upper layer replaces what
    /// lower ones have on purpose.
    fn note_loss(&self, tree: &mut RootTree, replaced: Replaced) {
        if let Replaced::Subtree { path, latest } = replaced
            && RootTree::slot(latest) >= self.first_slot
        {
            tree.note(Adjustment::ReplacedDirectory, || path.to_string());
        }
    }
}

/// Returns the name under which the tree has the target of the hard link `path`.
fn target_of(tree: &RootTree, path: &TreePath, target: TreePath, budget: &mut Budget) -> Result<TreePath, TarError> {
    if tree.id(&target).is_some() {
        return Ok(target);
    }
    let parent = match target.parent() {
        Some(parent) => budget.follow(tree, &parent, Missing::Refused)?.ok(),
        None => None,
    };
    let real = parent.and_then(|parent| parent.join(target.name())).filter(|real| tree.id(real).is_some());
    real.ok_or_else(|| TarError::DanglingHardLink { path: path.clone(), target })
}

/// Words an error by the name that the archive has, where symlinks led away from it.
fn explain(error: TreeError, written: Option<&TreePath>) -> TarError {
    match (error, written) {
        (TreeError::NotADirectory { path, parent, kind }, Some(written)) if path != *written => {
            TarError::BelowNonDirectory { path: written.clone(), place: parent, kind }
        }
        (error, _) => error.into(),
    }
}

/// Gives the file that `path` and `target` name the content that came with its hard link `path`.
fn set_link_body(tree: &mut RootTree, path: &TreePath, target: &TreePath, body: Body) -> Result<(), TarError> {
    match tree.get_mut(target).map(|inode| &mut inode.kind) {
        Some(Kind::File(old)) => {
            *old = body;
            Ok(())
        }
        other => {
            let kind = other.map_or("nothing", |kind| kind.noun());
            let (entry, target) = (EntryName::new(path.as_bytes()), EntryName::new(target.as_bytes()));
            Err(TarError::HardLinkData { entry, target, kind })
        }
    }
}
