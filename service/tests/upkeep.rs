//! Metrics that nobody scrapes take bounded memory. A separate binary, because it counts the allocations of
//! the whole process.
#![expect(unsafe_code, reason = "memory is counted by an allocator of its own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use service::health::Health;
use service::telemetry::{MetricsOptions, names};
use service::testing::{ANY_PORT, until};

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Values recorded at a time, of at least eight bytes each.
const VALUES: usize = 2_000;
/// More than everything else in this test allocates.
const NOTICEABLE_BYTES: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn histograms_that_nobody_scrapes_give_their_memory_back_again_and_again() {
    let listening = MetricsOptions {
        metrics_listen: Some(ANY_PORT.parse().unwrap()),
    };
    let health = Arc::new(Health::default());
    listening.start(health, &[]).await.unwrap();
    let histogram =
        metrics::histogram!(names::OPERATION_DURATION, "messaging_operation_name" => "commit");
    let (mut largest, mut recorded) = (0, 0);
    for _ in 0..3 {
        until(
            "half of the buffered memory is released",
            Duration::from_secs(60),
            async || {
                for _ in 0..VALUES {
                    histogram.record(0.003);
                }
                recorded += VALUES;
                let in_use = IN_USE.load(Ordering::Relaxed);
                largest = in_use.max(largest);
                (largest > NOTICEABLE_BYTES && in_use < largest / 2).then_some(())
            },
        )
        .await;
        largest = 0;
    }
    println!("recorded {recorded} values");
}
