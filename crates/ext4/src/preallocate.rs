//! Disk for what is about to be written, reserved a window ahead and given back where only zeros came: each write finds its
//! place instead of looking for one, which is a sixth of the time that writing takes on ext4.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::ops::Range;

use nix::fcntl::{FallocateFlags, fallocate};

/// Bytes reserved at a time: an extent of the host's filesystem or half of one, and no more than an image that turns out to
/// be holes may take from the disk for a moment.
const WINDOW: u64 = 64 << 20;
/// Bytes from which on a call to reserve them is worth it.
const WORTH: u64 = 256 << 10;

/// How far the file has disk reserved. All offsets are in bytes.
pub(crate) struct Reservation<'a> {
    file: &'a File,
    /// What will be written without a gap, in ascending order; what is done is taken out.
    solid: VecDeque<Range<u64>>,
    /// The part of it that is being written.
    window: Range<u64>,
    /// Zeros in the window so far.
    zero_bytes: u64,
    /// Neighbouring zeros that are reserved, to be given back in one call.
    zeros: Range<u64>,
    /// Nothing behind this is reserved.
    end: u64,
    /// Does the host's filesystem reserve, and has the disk room?
    able: bool,
}

impl<'a> Reservation<'a> {
    pub(crate) fn new(file: &'a File, solid: impl IntoIterator<Item = Range<u64>>) -> Self {
        let solid = solid.into_iter().collect();
        Reservation { file, solid, window: 0..0, zero_bytes: 0, zeros: 0..0, end: 0, able: true }
    }

    /// `piece` is written next, and nothing before it any more. Where the disk has no room to reserve, there may still be
    /// room for what is not zero: that shows when it is written.
    pub(crate) fn advance(&mut self, piece: Range<u64>) -> io::Result<()> {
        while self.window.end < piece.end {
            let from = self.window.end.max(piece.start);
            while self.solid.front().is_some_and(|range| range.end <= from) {
                self.solid.pop_front();
            }
            let Some(range) = self.solid.front().filter(|range| range.start < piece.end) else { return Ok(()) };
            let start = range.start.max(from);
            let next = start..range.end.min(start + WINDOW);
            // As much as was given back just now would be given back again.
            let mostly_zeros = self.zero_bytes * 2 > self.window.end - self.window.start;
            if self.able && !mostly_zeros && next.end - next.start >= WORTH {
                self.able = self.reserve(&next)?;
            }
            (self.window, self.zero_bytes) = (next, 0);
        }
        Ok(())
    }

    /// Zeros are left out of what is written, behind those of the call before.
    pub(crate) fn skip(&mut self, zeros: Range<u64>) -> io::Result<()> {
        let (start, end) = (zeros.start.max(self.window.start), zeros.end.min(self.window.end));
        self.zero_bytes += end.saturating_sub(start);
        let reserved = zeros.start..zeros.end.min(self.end);
        if reserved.is_empty() {
            return Ok(());
        }
        if self.zeros.end != reserved.start {
            self.give_back()?;
            self.zeros.start = reserved.start;
        }
        self.zeros.end = reserved.end;
        Ok(())
    }

    /// Gives back the zeros that are not yet.
    pub(crate) fn give_back(&mut self) -> io::Result<()> {
        let zeros = std::mem::replace(&mut self.zeros, 0..0);
        if !zeros.is_empty() {
            // What is not given back reads as zeros as well.
            self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, &zeros)?;
        }
        Ok(())
    }

    fn reserve(&mut self, window: &Range<u64>) -> io::Result<bool> {
        let reserved = self.allocate(FallocateFlags::empty(), window)?;
        if reserved {
            self.end = window.end;
        } else {
            // A disk without room gave what it had.
            self.allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, window)?;
        }
        Ok(reserved)
    }

    /// fallocate(2): `false` where the filesystem cannot or the disk is full. A disk that fails is an error.
    fn allocate(&self, flags: FallocateFlags, range: &Range<u64>) -> io::Result<bool> {
        let length = range.end - range.start;
        let (Ok(offset), Ok(length)) = (i64::try_from(range.start), i64::try_from(length)) else { return Ok(false) };
        match fallocate(self.file, flags | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
            Ok(()) => Ok(true),
            Err(nix::Error::EIO) => Err(nix::Error::EIO.into()),
            Err(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

    use super::*;

    /// Bytes on the disk, or `None` where that says nothing: tmpfs, whose pages may be huge ones, takes what it likes.
    fn on_disk(file: &File) -> Option<u64> {
        let tmpfs = fstatfs(file).unwrap().filesystem_type() == TMPFS_MAGIC;
        // st_blocks counts 512-byte units.
        (!tmpfs).then(|| file.metadata().unwrap().blocks() * 512)
    }

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    #[test]
    fn disk_is_reserved_a_window_ahead_and_zeros_are_given_back() {
        const PIECE: u64 = 1 << 20;
        let file = file(8 * WINDOW);
        let mut reservation = Reservation::new(&file, [WINDOW..2 * WINDOW, 2 * WINDOW + 4096..8 * WINDOW]);
        reservation.advance(0..PIECE).unwrap();
        assert!(on_disk(&file).is_none_or(|bytes| bytes == 0), "nothing is solid here");
        reservation.advance(WINDOW..WINDOW + PIECE).unwrap();
        if !reservation.able {
            return;
        }
        let taken = on_disk(&file);
        assert!(taken.is_none_or(|bytes| (WINDOW..2 * WINDOW).contains(&bytes)), "{taken:?}");
        // Half of the window is zeros, which go at once; then all of it.
        reservation.skip(WINDOW..WINDOW + PIECE).unwrap();
        reservation.skip(WINDOW + PIECE..WINDOW + WINDOW / 2).unwrap();
        assert_eq!(on_disk(&file), taken);
        reservation.give_back().unwrap();
        let half = WINDOW / 2..WINDOW / 2 + PIECE;
        assert!(on_disk(&file).is_none_or(|bytes| half.contains(&bytes)));
        reservation.skip(WINDOW + WINDOW / 2..2 * WINDOW).unwrap();
        // No more is reserved where there are zeros only.
        for start in (2 * WINDOW..8 * WINDOW).step_by(PIECE as usize) {
            reservation.advance(start..start + PIECE).unwrap();
            assert!(reservation.end <= 2 * WINDOW, "{start}");
            reservation.skip(start..start + PIECE).unwrap();
        }
        reservation.give_back().unwrap();
        assert!(on_disk(&file).is_none_or(|bytes| bytes < PIECE));
    }

    #[test]
    fn data_after_zeros_is_reserved_for_again() {
        let file = file(4 * WINDOW);
        let mut reservation = Reservation::new(&file, Some(0..4 * WINDOW));
        reservation.advance(0..WINDOW).unwrap();
        reservation.skip(0..WINDOW).unwrap();
        reservation.advance(WINDOW..2 * WINDOW).unwrap();
        assert!(reservation.end <= WINDOW);
        reservation.advance(2 * WINDOW..3 * WINDOW).unwrap();
        assert_eq!(reservation.end == 3 * WINDOW, reservation.able);
    }

    #[test]
    fn a_file_that_cannot_be_reserved_for_is_written_all_the_same() {
        let (_read, write) = io::pipe().unwrap();
        let write = File::from(std::os::fd::OwnedFd::from(write));
        let mut reservation = Reservation::new(&write, Some(0..WINDOW));
        reservation.advance(0..4096).unwrap();
        assert!(!reservation.able);
        reservation.skip(0..4096).unwrap();
        reservation.give_back().unwrap();
    }
}
