//! Suppression of repeated log lines. A lasting condition is logged once when it begins and once when it is
//! over, with its duration and the number of suppressed lines.
//!
//! While a broker is unavailable, each client of a process logs the same lines repeatedly. They are one
//! condition, so all clients share one record of logged lines. It is bounded. Suppressed lines are logged at
//! level debug.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;

use crate::words::counted;

/// A condition of librdkafka is over when its line has not recurred for this long: librdkafka logs a repeated
/// error at most every 30 s, and retries a connection after up to 10 s. A condition of a program may still
/// last: one try can take longer.
const OVER_AFTER: Duration = Duration::from_secs(45);
/// How often the thread checks for conditions that are over.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of conditions. A further one replaces the one that has been silent longest.
const CONDITIONS_MAX: usize = 1_024;
/// Lines with the same first bytes, up to this number, are the same.
const KEY_BYTES: usize = 240;

/// Log target of librdkafka's lines.
const LIBRDKAFKA: &str = "librdkafka";

static REPEATS: Mutex<Repeats> = Mutex::new(Repeats {
    conditions: BTreeMap::new(),
    is_watched: false,
});

/// Warns of a condition that recurs at every try: logs as [`tracing::warn!`], once while the condition lasts.
#[macro_export]
macro_rules! warn_of_change {
    ($($arg:tt)*) => {{
        let line = format!($($arg)*);
        match $crate::repeats::is_new(module_path!(), &line) {
            true => tracing::warn!("{line}"),
            false => tracing::debug!("{line}"),
        }
    }};
}

/// Logs a line of librdkafka, once while its condition lasts; if it only announces a retry, one level lower
/// than librdkafka's.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let is_quiet = matches!(level, RDKafkaLogLevel::Debug);
    if is_quiet || !is_new(LIBRDKAFKA, &format!("{facility}: {message}")) {
        tracing::debug!(target: LIBRDKAFKA, "{facility}: {message}");
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::error!(target: LIBRDKAFKA, "{facility}: {message}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            tracing::warn!(target: LIBRDKAFKA, "{facility}: {message}");
        }
        _ => tracing::info!(target: LIBRDKAFKA, "{facility}: {message}"),
    }
}

/// Whether this line begins a condition and must be logged. `source` is the module that logs it.
pub fn is_new(source: &'static str, line: &str) -> bool {
    let mut repeats = repeats();
    let (is_new, displaced) = repeats.note(Instant::now(), source, line);
    if !repeats.is_watched {
        // A thread, because lines also come from threads of librdkafka and from programs without a runtime.
        let watching = std::thread::Builder::new().name("repeats".to_owned());
        repeats.is_watched = watching.spawn(watch).is_ok();
    }
    drop(repeats);
    if let Some(displaced) = displaced {
        displaced.log_displaced();
    }
    is_new
}

/// Ends the conditions of all modules in `module`'s folder, because their outage is over. Returns their
/// maximum duration for the log, as in `after at most 75 s`. The folder may have had other conditions, so a
/// module that knows the start of its outage calls [`end_since`].
pub fn end(module: &'static str) -> String {
    let folder = module
        .rsplit_once("::")
        .map_or(module, |(folder, _)| folder);
    let ended = repeats().end(|source| is_in(source, folder), None);
    let begun = ended.iter().map(|condition| condition.begun).min();
    let lasted = match begun {
        Some(begun) => format!("after at most {} s", begun.elapsed().as_secs()),
        // The condition was removed during its last try.
        None => format!("after more than {} s", OVER_AFTER.as_secs()),
    };
    lasted + &left_out(&ended)
}

/// Ends the conditions of a module that were logged since its outage began. Returns the duration for the log,
/// as in `after 75 s`.
pub fn end_since(source: &'static str, begun: Instant) -> String {
    let ended = repeats().end(|of| of == source, Some(begun));
    format!("after {} s", begun.elapsed().as_secs()) + &left_out(&ended)
}

fn is_in(module: &str, folder: &str) -> bool {
    let rest = module.strip_prefix(folder);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn left_out(ended: &[Condition]) -> String {
    let left_out: u64 = ended.iter().map(|condition| condition.left_out).sum();
    match left_out {
        0 => String::new(),
        count => format!(", {} left out", counted(count, "line")),
    }
}

/// Logs conditions that are over, until none is left.
fn watch() {
    loop {
        std::thread::sleep(CHECK_INTERVAL);
        let mut repeats = repeats();
        let ended = repeats.take_over(Instant::now());
        repeats.is_watched = !repeats.conditions.is_empty();
        let goes_on = repeats.is_watched;
        drop(repeats);
        for condition in ended {
            condition.log();
        }
        if !goes_on {
            return;
        }
    }
}

/// Code that holds this lock does not panic.
fn repeats() -> MutexGuard<'static, Repeats> {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Repeats {
    conditions: BTreeMap<String, Condition>,
    /// Whether the thread runs.
    is_watched: bool,
}

/// A logged line.
struct Condition {
    source: &'static str,
    line: String,
    begun: Instant,
    /// Time of the last occurrence.
    last: Instant,
    /// Number of suppressed lines.
    left_out: u64,
}

impl Repeats {
    /// Whether the line begins a condition, and the condition that it replaces.
    fn note(
        &mut self,
        now: Instant,
        source: &'static str,
        line: &str,
    ) -> (bool, Option<Condition>) {
        let key = key(source, line);
        if let Some(known) = self.conditions.get_mut(&key) {
            known.last = now;
            known.left_out += 1;
            return (false, None);
        }
        let mut displaced = None;
        if self.conditions.len() >= CONDITIONS_MAX {
            let silent = self.conditions.iter().min_by_key(|(_, known)| known.last);
            let silent = silent.map(|(key, _)| key.clone());
            displaced = silent.and_then(|key| self.conditions.remove(&key));
        }
        let condition = Condition {
            source,
            line: cut(line, KEY_BYTES).to_owned(),
            begun: now,
            last: now,
            left_out: 0,
        };
        self.conditions.insert(key, condition);
        (true, displaced)
    }

    /// Removes and returns the conditions of some modules, if they occurred since then.
    fn end(&mut self, is_of: impl Fn(&str) -> bool, since: Option<Instant>) -> Vec<Condition> {
        let ended = self.conditions.extract_if(.., |_, condition| {
            is_of(condition.source) && since.is_none_or(|since| condition.last >= since)
        });
        ended.map(|(_, condition)| condition).collect()
    }

    /// Removes and returns the conditions that are over.
    fn take_over(&mut self, now: Instant) -> Vec<Condition> {
        let is_over = |condition: &Condition| now.duration_since(condition.last) >= OVER_AFTER;
        let over = self
            .conditions
            .extract_if(.., |_, condition| is_over(condition));
        over.map(|(_, condition)| condition).collect()
    }
}

impl Condition {
    /// Logs that the condition is over or silent, unless it was a single line.
    fn log(&self) {
        let Some(over) = self.over() else { return };
        match self.source {
            LIBRDKAFKA => tracing::info!(target: LIBRDKAFKA, "{over}"),
            _ => tracing::info!("{over}"),
        }
    }

    fn over(&self) -> Option<String> {
        if self.left_out == 0 {
            return None;
        }
        let seconds = self.last.duration_since(self.begun).as_secs();
        let ended = match self.source {
            LIBRDKAFKA => format!("over after {seconds} s"),
            // The next try may be in progress.
            _ => format!("not seen for {} s, after {seconds} s", OVER_AFTER.as_secs()),
        };
        Some(format!("{ended}: {} ({})", self.line, self.lines()))
    }

    /// Logs how many lines were suppressed; it is unknown whether the condition is over.
    fn log_displaced(&self) {
        if self.left_out > 0 {
            tracing::debug!("no longer tracked: {} ({})", self.line, self.lines());
        }
    }

    fn lines(&self) -> String {
        let lines = counted(self.left_out, "more line");
        format!("{lines} like this left out; LOG_LEVEL=debug shows them")
    }
}

/// The common part of lines about the same condition: includes addresses and names, but not the thread and
/// bare numbers (times, counts, offsets).
fn key(source: &str, line: &str) -> String {
    let mut key = source.to_owned();
    let mut rest = line;
    // "[thrd:NAME]: " is in front of librdkafka's text, maybe behind its facility.
    if let Some((before, after)) = line.split_once("[thrd:")
        && let Some((_, text)) = after.split_once("]: ")
    {
        key.push(' ');
        key.push_str(before.trim_end());
        rest = text;
    }
    // "(after 12ms in state CONNECT, 3 identical error(s) suppressed)"
    let took = rest.find(" (after ").and_then(|begin| {
        let length = rest[begin..].find(')')? + 1;
        Some(begin..begin + length)
    });
    let (before, after) = match took {
        Some(took) => {
            let (before, after) = (&rest[..took.start], &rest[took.end..]);
            // "error(s)" has a parenthesis of its own.
            let after = after.trim_start_matches(" suppressed)");
            (before, after)
        }
        None => (rest, ""),
    };
    for word in before.split_whitespace().chain(after.split_whitespace()) {
        key.push(' ');
        let bare = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        let is_number = bare.starts_with(|c: char| c.is_ascii_digit())
            && bare
                .trim_end_matches("ms")
                .trim_end_matches('s')
                .bytes()
                .all(|byte| byte.is_ascii_digit());
        key.push_str(if is_number { "#" } else { word });
        if key.len() > KEY_BYTES {
            return cut(&key, KEY_BYTES).to_owned();
        }
    }
    key
}

/// The text, cut at this number of bytes.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(broker: &str, took_ms: u32, more: &str) -> String {
        format!(
            "FAIL: [thrd:{broker}]: {broker}: Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after \
             {took_ms}ms in state CONNECT{more})"
        )
    }

    #[test]
    fn an_outage_is_one_line_at_its_begin_and_one_at_its_end_however_many_come_between() {
        let mut repeats = Repeats {
            conditions: BTreeMap::new(),
            is_watched: false,
        };
        let begun = Instant::now();
        let mut logged = 0;
        for i in 0..3_100 {
            let more = match i % 2 {
                0 => "",
                _ => ", 12 identical error(s) suppressed",
            };
            let line = refused("kafka-1:9092/1", i, more);
            let now = begun + Duration::from_millis(75_000 * u64::from(i) / 3_099);
            assert!(repeats.take_over(now).is_empty());
            logged += usize::from(repeats.note(now, LIBRDKAFKA, &line).0);
        }
        assert_eq!(logged, 1);
        let last = begun + Duration::from_secs(75);
        let still = last + OVER_AFTER - Duration::from_millis(1);
        assert!(repeats.take_over(still).is_empty());
        let over = repeats.take_over(last + OVER_AFTER);
        let over: Vec<_> = over.iter().filter_map(Condition::over).collect();
        assert_eq!(over.len(), 1);
        assert!(over[0].starts_with("over after 75 s: FAIL: "), "{over:?}");
        assert!(over[0].contains("(3099 more lines like this"), "{over:?}");
        assert!(repeats.note(last + OVER_AFTER, LIBRDKAFKA, "FAIL: again").0);
    }

    /// A module with another condition, whose outage is removed during a long try.
    #[test]
    fn an_outage_lasts_since_it_began_whatever_else_its_module_logs() {
        let mut repeats = Repeats {
            conditions: BTreeMap::new(),
            is_watched: false,
        };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        repeats.note(at(0), "a", "transaction aborted");
        repeats.note(at(10), "a", "waiting for it");
        repeats.note(at(20), "a", "waiting for it");
        repeats.note(at(20), "b", "waiting for it");
        let ended = repeats.end(|source| source == "a", Some(at(10)));
        assert_eq!(left_out(&ended), ", 1 line left out");
        assert_eq!(ended.len(), 1);
        assert_eq!(ended[0].line, "waiting for it");
        assert!(!repeats.note(at(21), "a", "transaction aborted").0);
        assert!(!repeats.note(at(21), "b", "waiting for it").0);

        let silent = repeats.take_over(at(66));
        let mut messages: Vec<_> = silent.iter().filter_map(Condition::over).collect();
        messages.sort();
        assert_eq!(
            messages,
            [
                "not seen for 45 s, after 1 s: waiting for it (1 more line like this left out; LOG_LEVEL=debug shows \
                 them)",
                "not seen for 45 s, after 21 s: transaction aborted (1 more line like this left out; LOG_LEVEL=debug \
                 shows them)",
            ]
        );

        // By the callers' clock.
        const MODULE: &str = "this test";
        let begun = Instant::now() - Duration::from_secs(75);
        assert_eq!(end(MODULE), "after more than 45 s");
        assert!(is_new(MODULE, "waiting"));
        assert_eq!(end(MODULE), "after at most 0 s");
        assert!(is_new(MODULE, "waiting"));
        assert!(!is_new(MODULE, "waiting"));
        assert_eq!(end_since(MODULE, begun), "after 75 s, 1 line left out");
        assert_eq!(end_since(MODULE, begun), "after 75 s");
    }

    #[test]
    fn the_end_of_an_outage_ends_the_conditions_of_all_modules_of_its_folder() {
        assert!(is_new("folder", "waiting"));
        assert!(is_new("folder::storing", "too slow"));
        assert!(is_new("folder_of_others", "waiting"));
        assert_eq!(end("folder::event_loop"), "after at most 0 s");
        assert!(is_new("folder", "waiting"));
        assert!(is_new("folder::storing", "too slow"));
        assert!(!is_new("folder_of_others", "waiting"));
    }

    #[test]
    fn another_broker_another_error_and_another_topic_are_logged_however_alike_the_lines_are() {
        let lines = [
            refused("kafka-1:9092/1", 0, ""),
            refused("kafka-2:9092/2", 0, ""),
            refused("kafka-1:9092/1", 0, "").replace("Connection refused", "Host is unreachable"),
            "REQTMOUT: [thrd:kafka-1:9092/1]: kafka-1:9092/1: Timed out ProduceRequest in flight (after 1000ms, timeout \
             #0)"
                .to_owned(),
            "COMMITFAIL: offsets of events-1 are not committed".to_owned(),
            "COMMITFAIL: offsets of events-2 are not committed".to_owned(),
        ];
        let keys: std::collections::BTreeSet<_> =
            lines.iter().map(|line| key(LIBRDKAFKA, line)).collect();
        assert_eq!(keys.len(), lines.len(), "{keys:#?}");
        let same = [
            "REQTMOUT: [thrd:a/1]: a/1: Timed out 3 in-flight, 0 retry-queued, 1 out-queue requests",
            "REQTMOUT: [thrd:a/1]: a/1: Timed out 7 in-flight, 2 retry-queued, 0 out-queue requests",
        ];
        assert_eq!(key(LIBRDKAFKA, same[0]), key(LIBRDKAFKA, same[1]));
    }

    #[test]
    fn the_number_of_conditions_is_bounded_and_a_single_line_has_no_end() {
        let mut repeats = Repeats {
            conditions: BTreeMap::new(),
            is_watched: false,
        };
        let begun = Instant::now();
        let long = "x".repeat(10_000);
        let mut ended = 0;
        for i in 0..10_000 {
            let line = format!("FAIL: kafka-{i}.example: {long}");
            let (is_new, gone) = repeats.note(begun + Duration::from_millis(i), LIBRDKAFKA, &line);
            assert!(is_new);
            ended += usize::from(gone.is_some());
            assert!(gone.is_none_or(|gone| gone.over().is_none()));
        }
        assert_eq!(repeats.conditions.len(), 1_024);
        assert_eq!(ended, 10_000 - CONDITIONS_MAX);
        let bytes = repeats
            .conditions
            .iter()
            .map(|(key, known)| key.len() + known.line.len());
        assert!(bytes.sum::<usize>() <= CONDITIONS_MAX * 2 * KEY_BYTES);
    }
}
