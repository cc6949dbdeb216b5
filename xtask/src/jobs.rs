//! Runs independent jobs on threads, a bounded number at a time.

use std::num::NonZeroUsize;
use std::sync::Mutex;

/// Does `work` on every item, at most `at_once` at the same time and started in order. Returns the results in the order of the
/// items.
pub fn run<T: Sync, R: Send>(items: &[T], at_once: NonZeroUsize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let waiting = Mutex::new(items.iter().enumerate());
    let done = Mutex::new(Vec::with_capacity(items.len()));
    std::thread::scope(|scope| {
        for _ in 0..at_once.get().min(items.len()) {
            scope.spawn(|| {
                loop {
                    let Some((place, item)) = waiting.lock().expect("no panic while locked").next() else { break };
                    let result = work(item);
                    done.lock().expect("no panic while locked").push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no panic while locked");
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn results_come_in_order_and_no_more_run_at_once_than_allowed() {
        let (running, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        // Both of a pair must be under way before either goes on: work that ran one by one would never end.
        let pair = Barrier::new(2);
        let results = run(&[5, 4, 3, 2, 1, 0], NonZeroUsize::new(2).unwrap(), |number| {
            most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            pair.wait();
            running.fetch_sub(1, Ordering::SeqCst);
            number * 2
        });
        assert_eq!(results, [10, 8, 6, 4, 2, 0]);
        assert_eq!(most.into_inner(), 2);
        assert!(run(&[0; 0], NonZeroUsize::MIN, |number| *number).is_empty());
    }
}
