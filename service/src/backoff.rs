//! Pauses between tries.

use std::time::Duration;

/// Length of the first pause, approximately; each further one doubles.
const FIRST: Duration = Duration::from_millis(100);
/// Maximum length of a pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Exponential back-off up to 5 s with jitter: each pause is cut by up to a half at random, so that many
/// programs do not reconnect to a database at the same moment.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = (FIRST * 2_u32.pow(self.tries.min(10))).min(LONGEST);
        self.tries += 1;
        pause.mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_vary() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..100).map(|_| backoff.pause()).collect();
        assert!(pauses[0] <= FIRST && pauses[0] >= FIRST / 2);
        assert!(
            pauses[50..]
                .iter()
                .all(|pause| (LONGEST / 2..=LONGEST).contains(pause))
        );
        assert!(pauses[50..].windows(2).any(|two| two[0] != two[1]));
    }
}
