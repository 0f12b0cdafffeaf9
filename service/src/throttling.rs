//! Detection of throttling by brokers' quotas, from a client's statistics: a log line when it begins, one
//! when it ends, and a gauge.
//!
//! A broker that throttles a client answers at once with the throttle time, and reads nothing more from it
//! for that time (KIP-219). Nothing fails, so without these lines a throttled program is just slow.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::statistics::Statistics;

use crate::telemetry::names;

/// Interval of statistics for clients that have no other use for them.
pub const STATISTICS: (&str, &str) = ("statistics.interval.ms", "5000");

/// Throttling is over when this time has passed since the last pause.
const OVER_AFTER: Duration = Duration::from_secs(15);

/// Throttling of one client, by broker.
#[derive(Debug, Default)]
pub struct Throttling(Mutex<BTreeMap<String, Throttled>>);

#[derive(Debug)]
struct Throttled {
    begun: Instant,
    /// End of the last pause.
    until: Instant,
    longest: Duration,
}

impl Throttling {
    /// Takes a client's statistics.
    pub fn observe(&self, statistics: &Statistics) {
        let pauses = statistics.brokers.values().filter_map(|broker| {
            let longest = u64::try_from(broker.throttle.as_ref()?.max).ok()?;
            let pause = Duration::from_millis(longest);
            (!pause.is_zero()).then_some((broker.nodename.as_str(), pause))
        });
        let client = statistics.client_type.as_str();
        let mut by_broker = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (current, lines) = observe(&mut by_broker, Instant::now(), client, pauses);
        drop(by_broker);
        metrics::gauge!(names::THROTTLED, "client" => client.to_owned()).set(current.as_secs_f64());
        for (begins, line) in lines {
            match begins {
                true => tracing::warn!("{line}"),
                false => tracing::info!("{line}"),
            }
        }
    }
}

/// Returns the longest current pause, and the lines to log, each with whether throttling begins.
fn observe<'a>(
    by_broker: &mut BTreeMap<String, Throttled>,
    now: Instant,
    client: &str,
    pauses: impl Iterator<Item = (&'a str, Duration)>,
) -> (Duration, Vec<(bool, String)>) {
    let (mut current, mut lines) = (Duration::ZERO, Vec::new());
    for (broker, pause) in pauses {
        current = current.max(pause);
        let known = by_broker.get_mut(broker);
        let until = now + pause;
        match known {
            Some(known) => {
                known.until = known.until.max(until);
                known.longest = known.longest.max(pause);
            }
            None => {
                lines.push((
                    true,
                    format!(
                        "the broker {broker} throttles this {client}: a quota of its user or client.id is used up, and each \
                         request waits up to {} ms. Nothing is lost. To see the quotas: kafka-configs.sh \
                         --bootstrap-server {broker} --describe --entity-type users --entity-type clients",
                        pause.as_millis()
                    ),
                ));
                let throttled = Throttled {
                    begun: now,
                    until,
                    longest: pause,
                };
                by_broker.insert(broker.to_owned(), throttled);
            }
        }
    }
    let lasting = by_broker.values().filter(|known| known.until > now);
    if let Some(longest) = lasting.map(|known| known.until - now).max() {
        current = current.max(longest);
    }
    by_broker.retain(|broker, known| {
        let goes_on = now.saturating_duration_since(known.until) < OVER_AFTER;
        if !goes_on {
            let line = format!(
                "the broker {broker} does not throttle this {client} any more: it did for {} s, by up to {} ms a request",
                (known.until - known.begun).as_secs(),
                known.longest.as_millis()
            );
            lines.push((false, line));
        }
        goes_on
    });
    (current, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_throttles_is_one_line_and_one_more_when_it_does_not_any_more() {
        let (mut by_broker, begun) = (BTreeMap::new(), Instant::now());
        let mut lines = Vec::new();
        for second in 0..60 {
            let now = begun + Duration::from_secs(second);
            // During a pause, no request is answered, so the statistics do not mention it.
            let pause = (second % 10 == 0 && second <= 20).then_some(Duration::from_secs(9));
            let pauses = pause.map(|pause| ("kafka-1:9092", pause)).into_iter();
            let (current, more) = observe(&mut by_broker, now, "producer", pauses);
            assert_eq!(current.is_zero(), second >= 29 || second % 10 == 9);
            lines.extend(
                more.into_iter()
                    .map(|(begins, line)| (second, begins, line)),
            );
        }
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].1 && lines[0].0 == 0);
        assert!(
            lines[0].2.contains("kafka-1:9092 throttles this producer"),
            "{lines:?}"
        );
        assert!(lines[0].2.contains("up to 9000 ms"), "{lines:?}");
        assert_eq!((lines[1].0, lines[1].1), (44, false));
        assert!(lines[1].2.contains("it did for 29 s"), "{lines:?}");
        assert!(by_broker.is_empty());
    }
}
