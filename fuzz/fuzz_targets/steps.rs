//! Steps of a parser, counted: what it takes has to be bounded by a constant times the length of its input.
//!
//! A step is an allocation, or 64 bytes of one, or a microsecond of the thread's processor time: the first two are the same in
//! every run, the last finds loops that allocate nothing. The bounds are an order of magnitude above what honest inputs take
//! under AddressSanitizer; what is quadratic exceeds them from some tens of KiB on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

/// Steps for each byte of the input.
const PER_BYTE: u64 = 64;
/// Steps that the smallest input may take.
const AT_LEAST: u64 = 200_000;
/// Bytes of an allocation that are a step.
const STEP_BYTES: u64 = 64;

struct Counting;

static STEPS: AtomicU64 = AtomicU64::new(0);

// SAFETY: all that is done beside what the system's allocator does is to count.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        STEPS.fetch_add(1 + layout.size() as u64 / STEP_BYTES, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Does `work` on an input of `length` bytes, and panics if that takes too many steps.
pub fn within<T>(length: usize, work: impl FnOnce() -> T) -> T {
    let (counted, began) = (STEPS.load(Ordering::Relaxed), microseconds());
    let result = work();
    let allocated = STEPS.load(Ordering::Relaxed) - counted;
    let elapsed = microseconds() - began;
    let most = PER_BYTE * length as u64 + AT_LEAST;
    assert!(allocated + elapsed <= most, "{length} bytes took {allocated} steps and {elapsed} us, more than {most}");
    result
}

/// Processor time of this thread: other programs do not count.
fn microseconds() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a structure of this function's.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
}
