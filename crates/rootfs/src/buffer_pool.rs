//! A pool of buffers that two threads pass to and fro: one fills them, the other uses them and gives them back, so that few
//! are allocated and those few stay in the processor's cache.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

/// The side that fills buffers and sends them.
pub struct Producer<T> {
    full: SyncSender<T>,
    empty: Receiver<Vec<u8>>,
    /// Buffers that may still be allocated.
    unallocated: usize,
}

/// The side that receives full buffers and recycles them.
pub struct Consumer<T> {
    full: Receiver<T>,
    empty: Sender<Vec<u8>>,
}

/// Makes a pool of at most `buffers` buffers, besides the one with which the producer starts. A `T` is a full buffer
/// together with what the consumer needs to know about it.
pub fn buffer_pool<T>(buffers: usize) -> (Producer<T>, Consumer<T>) {
    // The channel has space for all of them, so that a producer only ever waits for an empty buffer.
    let (send_full, receive_full) = sync_channel(buffers);
    let (send_empty, receive_empty) = channel();
    (
        Producer { full: send_full, empty: receive_empty, unallocated: buffers },
        Consumer { full: receive_full, empty: send_empty },
    )
}

impl<T> Producer<T> {
    /// Sends a full buffer and returns the next one to fill: a recycled one with its old content, or a new one, which is
    /// empty. Returns `None` once the consumer is gone.
    pub fn send(&mut self, full: T) -> Option<Vec<u8>> {
        self.full.send(full).ok()?;
        match self.empty.try_recv() {
            Ok(buffer) => Some(buffer),
            Err(_) if self.unallocated > 0 => {
                self.unallocated -= 1;
                Some(Vec::new())
            }
            Err(_) => self.empty.recv().ok(),
        }
    }
}

impl<T> Consumer<T> {
    /// Waits for the next full buffer. Returns `None` once the producer is gone and all buffers are received.
    pub fn receive(&self) -> Option<T> {
        self.full.recv().ok()
    }

    /// Gives a buffer back to the producer, whatever it holds.
    pub fn recycle(&self, buffer: Vec<u8>) {
        // The producer may be gone.
        let _ = self.empty.send(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_buffers_are_allocated_than_allowed() {
        let (mut producer, consumer) = buffer_pool::<(u8, Vec<u8>)>(2);
        let other = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while let Some((number, buffer)) = consumer.receive() {
                seen.push(number);
                consumer.recycle(buffer);
            }
            seen
        });
        let (mut allocated, mut buffer) = (0, vec![1]);
        for number in 0..100 {
            buffer = producer.send((number, buffer)).unwrap();
            allocated += usize::from(buffer.is_empty());
            buffer.resize(1, 1);
        }
        drop(producer);
        assert!(allocated <= 2);
        assert_eq!(other.join().unwrap(), Vec::from_iter(0..100));
    }

    #[test]
    fn a_producer_learns_that_the_consumer_is_gone() {
        let (mut producer, consumer) = buffer_pool::<Vec<u8>>(1);
        drop(consumer);
        assert_eq!(producer.send(vec![1]), None);
    }
}
