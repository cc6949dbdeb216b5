//! Telling what was adjusted of a tree, or refusing it.

use anyhow::{Result, bail};
use snug_rootfs::adjustments::Adjustments;

use super::progress::Progress;

/// What becomes of a tree that cannot be taken or held as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// It is adjusted, with a warning for each kind of adjustment.
    #[default]
    Adjusting,
    /// It is refused (`--strict`).
    Strict,
}

impl Strictness {
    /// Warns of each kind of adjustment, or refuses them. `subject` is what was adjusted, where a run has more than one: an
    /// image, a file.
    ///
    /// # Errors
    ///
    /// All kinds of adjustment, where there is one and the caller is strict.
    pub fn judge(self, adjustments: &Adjustments, subject: Option<&str>, progress: &Progress) -> Result<()> {
        self.judge_again(adjustments, subject)?;
        let subject = subject.map(|subject| format!("{subject}: ")).unwrap_or_default();
        for adjusted in adjustments.iter() {
            progress.warn(format!("warning: {subject}{adjusted}"));
        }
        Ok(())
    }

    /// As [`Self::judge`], for what was told when it was adjusted.
    ///
    /// # Errors
    ///
    /// As [`Self::judge`].
    pub fn judge_again(self, adjustments: &Adjustments, subject: Option<&str>) -> Result<()> {
        if self == Strictness::Strict && !adjustments.is_empty() {
            let subject = subject.unwrap_or("the tree");
            let kinds: String = adjustments.iter().map(|adjusted| format!("\n  {adjusted}")).collect();
            bail!(
                "--strict refuses {subject}, of which something would be left out or changed{kinds}\n\
                 hint: mend this where it comes from, choose another type of filesystem, or leave --strict out"
            );
        }
        Ok(())
    }
}
