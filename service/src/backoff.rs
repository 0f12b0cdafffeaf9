//! Pauses between tries.

use std::time::Duration;

/// The first pause is about so long; each further one doubles.
const FIRST: Duration = Duration::from_millis(100);
/// No pause is longer.
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses that double up to 5 s, each cut by up to a half at random, so that the many programs that
/// lost the same database do not come back to it in the same moment.
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
    fn pauses_grow_to_a_bound_and_are_not_alike() {
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
