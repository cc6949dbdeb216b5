//! Buffers handed to another thread and taken back once it is done with them, so that few are made, and those few stay in
//! the processor's cache.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// The side that fills buffers.
pub struct Relay<T> {
    full: SyncSender<T>,
    empty: Receiver<Vec<u8>>,
    /// Buffers that may still be made.
    to_make: usize,
}

/// The side that uses them.
pub struct Runner<T> {
    full: Receiver<T>,
    back: Sender<Vec<u8>>,
}

/// Both sides of a relay of `buffers` buffers, the one that is being filled not counted. A `T` is a full buffer, with what
/// is to be said about it.
pub fn relay<T>(buffers: usize) -> (Relay<T>, Runner<T>) {
    // There is room for all, so that only waiting for an empty buffer ever takes time.
    let (full, pieces) = sync_channel(buffers);
    let (back, empty) = channel();
    (Relay { full, empty, to_make: buffers }, Runner { full: pieces, back })
}

impl<T> Relay<T> {
    /// Hands a full buffer on and answers another, which is empty if it is new. `None` once the other side has ended.
    pub fn pass(&mut self, full: T) -> Option<Vec<u8>> {
        self.full.send(full).ok()?;
        match self.empty.try_recv() {
            Ok(buffer) => Some(buffer),
            Err(_) if self.to_make > 0 => {
                self.to_make -= 1;
                Some(Vec::new())
            }
            Err(_) => self.empty.recv().ok(),
        }
    }
}

impl<T> Runner<T> {
    /// The next full buffer; `None` once there will be no more.
    pub fn next(&self) -> Option<T> {
        self.full.recv().ok()
    }

    /// Gives a buffer back, whatever it holds.
    pub fn give_back(&self, buffer: Vec<u8>) {
        // Nobody may be waiting for it any more.
        let _ = self.back.send(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_buffers_are_made_than_were_allowed() {
        let (mut relay, runner) = relay::<(u8, Vec<u8>)>(2);
        let other = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some((said, buffer)) = runner.next() {
                seen.push(said);
                runner.give_back(buffer);
            }
            seen
        });
        let (mut made, mut buffer) = (0, vec![1]);
        for at in 0..100 {
            buffer = relay.pass((at, buffer)).unwrap();
            made += usize::from(buffer.is_empty());
            buffer.resize(1, 1);
        }
        drop(relay);
        assert!(made <= 2);
        assert_eq!(other.join().unwrap(), Vec::from_iter(0..100));
    }

    #[test]
    fn who_fills_buffers_learns_that_nobody_takes_them() {
        let (mut relay, runner) = relay::<Vec<u8>>(1);
        drop(runner);
        assert_eq!(relay.pass(vec![1]), None);
    }
}
