//! How many polls of one server run at a time.
//!
//! | Share | Polls | So that |
//! | --- | --- | --- |
//! | running | running things whose last poll was in time | the server is not flooded |
//! | other | slow ones, and lookups of how something ended | they never delay the running ones |

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

/// Histogram, seconds: a poll, from its first request to its last response. Label `share`: `running`, `other`.
pub(crate) const POLL_DURATION: &str = "taskrunning_poll_duration_seconds";
/// Counter: polls that waited for their turn for a whole interval or longer. Label `share`.
pub(crate) const POLLS_LATE: &str = "taskrunning_polls_late_total";

/// The polls that a poll shares its limit with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Running,
    Other,
}

impl Share {
    fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Other => "other",
        }
    }
}

/// A poll that has ended.
pub(crate) struct Polled<T> {
    pub(crate) output: T,
    /// When it began.
    pub(crate) began: Instant,
    /// It took longer than the interval.
    pub(crate) slow: bool,
}

/// The limit of one server, for each share. Turns are granted in the order of the requests.
pub(crate) struct PollLimit {
    server: String,
    /// What is polled there, in logs.
    what: &'static str,
    polls: usize,
    running: Semaphore,
    other: Semaphore,
    late: AtomicBool,
}

impl PollLimit {
    /// `server` is its name in logs, `what` that of the things polled there, as in `applications`.
    pub(crate) fn new(server: String, what: &'static str, polls: usize) -> Self {
        Self {
            server,
            what,
            polls,
            running: Semaphore::new(polls),
            other: Semaphore::new(polls),
            late: AtomicBool::new(false),
        }
    }

    /// Runs a poll when its turn comes. A poll of the running share that takes longer than `interval` moves to the other
    /// share as soon as that has room, and frees its turn.
    pub(crate) async fn run<T>(
        &self,
        share: Share,
        interval: Duration,
        poll: impl Future<Output = T>,
    ) -> Polled<T> {
        let asked = Instant::now();
        let turns = match share {
            Share::Running => &self.running,
            Share::Other => &self.other,
        };
        // It fails only on a closed semaphore; this one never closes.
        let turn = turns.acquire().await.ok();
        let began = Instant::now();
        self.note_wait(share, began - asked, interval);

        let mut poll = pin!(poll);
        let move_over = async {
            sleep(interval).await;
            self.other.acquire().await.ok()
        };
        let output = tokio::select! {
            biased;
            output = &mut poll => output,
            other_turn = move_over, if share == Share::Running => {
                drop(turn);
                let output = poll.await;
                drop(other_turn);
                output
            }
        };
        let took = began.elapsed();
        metrics::histogram!(POLL_DURATION, "share" => share.as_str()).record(took.as_secs_f64());
        Polled {
            output,
            began,
            slow: took > interval,
        }
    }

    /// Counts a late poll, and logs when polls of the running share begin and cease to be late.
    fn note_wait(&self, share: Share, waited: Duration, interval: Duration) {
        let late = waited >= interval;
        if late {
            metrics::counter!(POLLS_LATE, "share" => share.as_str()).increment(1);
        }
        if share == Share::Other {
            return;
        }
        if late && !self.late.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{}: more {} run than can be polled every {interval:?}, {} at a time: raise --polls or --interval",
                self.server,
                self.what,
                self.polls
            );
        } else if waited < interval / 4 && self.late.swap(false, Ordering::Relaxed) {
            tracing::info!("{}: polls keep up again", self.server);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;

    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(20);
    const WAIT: Duration = Duration::from_secs(60);

    /// Polls that never end, each in a task of its own.
    fn endless(limit: &Arc<PollLimit>, share: Share, polls: usize) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        for _ in 0..polls {
            let limit = limit.clone();
            tasks.spawn(async move { limit.run(share, INTERVAL, pending()).await.output });
        }
        tasks
    }

    async fn until_free(turns: &Semaphore, free: usize) {
        let reached = async {
            while turns.available_permits() != free {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(WAIT, reached).await.unwrap();
    }

    #[tokio::test]
    async fn slow_polls_leave_the_running_share_and_lookups_never_enter_it() {
        let limit = Arc::new(PollLimit::new("here".to_owned(), "jobs", 4));
        let _slow = endless(&limit, Share::Running, 3);
        until_free(&limit.other, 1).await;
        until_free(&limit.running, 4).await;
        let _lookups = endless(&limit, Share::Other, 10);
        until_free(&limit.other, 0).await;
        assert_eq!(limit.running.available_permits(), 4);
        let prompt = limit.run(Share::Running, WAIT, ready(7));
        let prompt = timeout(WAIT, prompt).await.unwrap();
        assert_eq!((prompt.output, prompt.slow), (7, false));
    }

    #[tokio::test]
    async fn a_poll_that_is_given_up_gives_its_turn_back() {
        let limit = Arc::new(PollLimit::new("here".to_owned(), "jobs", 2));
        let mut slow = endless(&limit, Share::Running, 2);
        until_free(&limit.other, 0).await;
        slow.shutdown().await;
        assert_eq!(limit.other.available_permits(), 2);
        assert_eq!(limit.running.available_permits(), 2);
    }

    #[tokio::test]
    async fn a_poll_that_outlasts_the_interval_is_slow() {
        let limit = PollLimit::new("here".to_owned(), "jobs", 1);
        for share in [Share::Running, Share::Other] {
            let polled = limit.run(share, INTERVAL, sleep(3 * INTERVAL)).await;
            assert!(polled.slow, "{share:?}");
        }
    }
}
