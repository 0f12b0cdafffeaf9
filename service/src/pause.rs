//! Precise short waits.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::threads::blocking;

/// tokio's timer has a resolution of 1 ms and is late by more than that: waits of 1, 2 and 3 ms took 2.1, 3.2
/// and 4.2 ms.
const EARLY: Duration = Duration::from_millis(2);

/// Waits until `deadline`, precise to about 0.1 ms: the last 2 ms block this thread.
pub async fn until(deadline: Instant) {
    let left = || deadline.saturating_duration_since(Instant::now());
    if left() > EARLY {
        sleep_until(deadline - EARLY).await;
    }
    blocking(|| std::thread::sleep(left()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn the_shortest_of_some_waits_is_hardly_longer_than_asked_for() {
        for asked in [0, 1, 3].map(Duration::from_millis) {
            let mut shortest = Duration::MAX;
            for _ in 0..20 {
                let begun = Instant::now();
                until(begun + asked).await;
                shortest = shortest.min(begun.elapsed());
            }
            let most = asked + Duration::from_micros(900);
            assert!((asked..most).contains(&shortest), "{asked:?}: {shortest:?}");
        }
    }
}
