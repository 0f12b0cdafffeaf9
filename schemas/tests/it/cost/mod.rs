//! Cost of work on its thread: allocations and CPU time. Sets the allocator of the test binary.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

/// Allocations of a thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allocated {
    /// Bytes allocated now.
    held: isize,
    /// Maximum of that.
    pub(crate) peak_bytes: isize,
    /// Sum of all requested bytes; a block that grows counts again with its new size.
    pub(crate) bytes: usize,
    /// Number of requests.
    pub(crate) calls: usize,
}

thread_local! {
    static ALLOCATED: Cell<Allocated> = const {
        Cell::new(Allocated { held: 0, peak_bytes: 0, bytes: 0, calls: 0 })
    };
}

/// Counts each thread's allocations.
struct Counting;

// SAFETY: everything is forwarded unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut allocated = ALLOCATED.get();
        allocated.held += layout.size() as isize;
        allocated.peak_bytes = allocated.peak_bytes.max(allocated.held);
        allocated.bytes += layout.size();
        allocated.calls += 1;
        ALLOCATED.set(allocated);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let mut allocated = ALLOCATED.get();
        allocated.held -= layout.size() as isize;
        ALLOCATED.set(allocated);
        // SAFETY: the caller's promises are handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `work`, and its allocations.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let before = ALLOCATED.get();
    ALLOCATED.set(Allocated {
        peak_bytes: before.held,
        ..before
    });
    let done = work();
    let after = ALLOCATED.get();
    let allocated = Allocated {
        held: after.held - before.held,
        peak_bytes: after.peak_bytes - before.held,
        bytes: after.bytes - before.bytes,
        calls: after.calls - before.calls,
    };
    (done, allocated)
}

/// CPU time of `work`: the mean over enough runs for the resolution of the kernel's clock.
pub(crate) fn time<T>(mut work: impl FnMut() -> T) -> Duration {
    let (begun, mut turns) = (on_processor(), 0);
    loop {
        drop(work());
        turns += 1;
        let took = on_processor() - begun;
        if took >= Duration::from_millis(40) {
            return took / turns;
        }
    }
}

/// CPU time of this thread.
fn on_processor() -> Duration {
    thread_local! { static BEGUN: Instant = Instant::now(); }
    let nanoseconds = std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|stat| stat.split(' ').next()?.parse().ok());
    // Without these statistics in the kernel: elapsed time.
    nanoseconds.map_or_else(|| BEGUN.with(Instant::elapsed), Duration::from_nanos)
}

/// Asserts that the cost of `work` on inputs of doubling size is proportional to their bytes, up to the
/// logarithm of a sort: in bytes allocated, in allocations per byte, and in time, where four times the input
/// may take ten times as long. `input` returns an input with this number of items, and its bytes.
pub(crate) fn assert_linear<I>(
    what: &str,
    items: usize,
    per_byte: Allowed,
    input: impl Fn(usize) -> (I, usize),
    mut work: impl FnMut(&I),
) {
    let mut cost = |items: usize| {
        let (input, bytes) = input(items);
        let ((), allocated) = allocated(|| work(&input));
        let time = time(|| work(&input));
        assert!(
            allocated.bytes <= per_byte.bytes * bytes + (64 << 10)
                && allocated.calls <= per_byte.calls * bytes + 256,
            "{what}: {allocated:?} for an input of {bytes} bytes"
        );
        (bytes, time)
    };
    // Repeated after a disturbance.
    let mut message = String::new();
    for _ in 0..3 {
        let (bytes, time) = cost(items);
        let (more_bytes, more_time) = cost(4 * items);
        let growth = more_bytes as f64 / bytes as f64;
        if more_time.as_secs_f64() <= 2.5 * growth * time.as_secs_f64() {
            return;
        }
        message = format!("{time:?} for {bytes} bytes, {more_time:?} for {more_bytes}");
    }
    panic!("{what} takes more than its share of time: {message}");
}

/// Limits of allocations per byte of input.
#[derive(Clone, Copy)]
pub(crate) struct Allowed {
    pub(crate) bytes: usize,
    pub(crate) calls: usize,
}
