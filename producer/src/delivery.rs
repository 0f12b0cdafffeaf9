//! Sends reports to Kafka without ever blocking an engine.
//!
//! ```text
//! report() ──▶ Outbox ──▶ at most 256 in librdkafka, one per task ──▶ Kafka
//! (never waits) (bounded, newer replace older)
//! ```
//!
//! Only a few are in librdkafka at a time, because a report there can no longer be replaced by a newer one.

mod stats;

use std::borrow::Cow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer};
use schemas::{Framing, TaskRunningInfo};
use service::backoff::Backoff;
use service::exit;
use service::health::Health;
use service::kafka::{KafkaOptions, wrong_settings};
use service::limits::{CLIENT_MESSAGE_MAX_BYTES, is_too_large, refuses_batch};
use service::producer::PolledProducer;
use service::registry::{Registry, RegistryError};
use service::repeats;
use service::telemetry::{messaging, names};
use service::throttling;
use service::warn_of_change;
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

pub use self::stats::{Stats, Undelivered};
use crate::client::{AT_ONCE, FIXED, SOCKET_TIMEOUT, STATISTICS};
use crate::connection::register;
use crate::observer::Observer;
use crate::outbox::{Displaced, Outbox, Report, Room, Ticket};
use crate::size_limit::{SizeLimit, Verdict};

/// Maximum number of reports in librdkafka at a time; also at most a quarter of the queue.
const SENDING_MAX: usize = 256;
/// Maximum bytes of waiting and in-flight reports.
const ROOM_BYTES: usize = 64 << 20;
/// Bytes per report in a batch, in addition to key and value.
const REPORT_OVERHEAD_BYTES: usize = 24;
/// Pause after a transient error.
const BACK_OFF: Duration = Duration::from_secs(1);

/// Counter: unsent reports that a newer one of their task replaced.
pub(crate) const REPLACED: &str = "taskrunning_reports_replaced_total";
/// Counter: reports that were dropped because the queue is full, or that Kafka refused for good. Label `reason`:
/// `no_room`, `no_room_final`, `refused`.
pub(crate) const LOST: &str = "taskrunning_reports_lost_total";
/// Gauge: waiting and in-flight reports.
pub(crate) const WAITING: &str = "taskrunning_reports_waiting";

const DEFAULTS: &[(&str, &str)] = &[
    AT_ONCE,
    ("compression.type", "lz4"),
    // Reports are kept while Kafka is away, however long that is.
    ("message.timeout.ms", "0"),
    SOCKET_TIMEOUT,
];

/// The framing of reports.
pub(crate) enum Written {
    /// Already known.
    As(Framing),
    /// That of a schema registry, which is asked for the schema's id in the background.
    ByRegistry(Registry),
}

/// Sends reports in the background. Dropping it abandons waiting reports: [`close`](Self::close) it first.
pub(crate) struct Delivery {
    shared: Arc<Shared>,
    sending: AbortHandle,
}

/// Why reports wait, and since when.
struct HeldUp {
    since: Instant,
    /// The error; it is logged once.
    reason: String,
}

impl HeldUp {
    /// Its duration, for the log line that says it is over.
    fn end(self) -> String {
        repeats::end_since(module_path!(), self.since.into_std())
    }
}

struct Shared {
    topic: String,
    queue: Mutex<Queue>,
    /// A report was put into the outbox.
    filled: Notify,
    /// A report left the outbox for good.
    emptied: Notify,
    held_up: Mutex<Option<HeldUp>>,
    sending_max: usize,
    size_limit: SizeLimit,
    observer: Observer,
}

/// Waiting reports and the counts of all others, under one lock so that the sum is always right.
struct Queue {
    outbox: Outbox,
    counts: Stats,
}

impl Queue {
    fn count(&mut self, displaced: Displaced) {
        self.counts.replaced += displaced.replaced;
        self.counts.dropped += displaced.dropped;
        self.counts.lost += displaced.lost;
    }
}

impl Delivery {
    /// Starts sending, on the current Tokio runtime. Does not wait for Kafka.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub(crate) fn start(
        kafka: &KafkaOptions,
        topic: &str,
        queue_reports: usize,
        written: Written,
        health: Option<Arc<Health>>,
    ) -> anyhow::Result<Self> {
        let mut defaults = DEFAULTS.to_vec();
        defaults.push(match health {
            Some(_) => STATISTICS,
            None => throttling::STATISTICS,
        });
        let mut config = kafka.client_config(&defaults, FIXED)?;
        let size_limit = SizeLimit::of(&config);
        if config.get("message.max.bytes").is_none() {
            config.set("message.max.bytes", CLIENT_MESSAGE_MAX_BYTES);
        }
        let observer = Observer::new(health);
        let producer = producer(&config, &observer).map_err(wrong_settings)?;
        let room = Room {
            reports: queue_reports.max(1),
            bytes: ROOM_BYTES,
        };
        let shared = Arc::new(Shared {
            topic: topic.to_owned(),
            queue: Mutex::new(Queue {
                outbox: Outbox::new(room),
                counts: Stats::default(),
            }),
            filled: Notify::new(),
            emptied: Notify::new(),
            held_up: Mutex::default(),
            sending_max: (room.reports / 4).clamp(1, SENDING_MAX),
            size_limit,
            observer,
        });
        let (sends, kafka) = (shared.clone(), kafka.clone());
        let sending = tokio::spawn(async move {
            let watched = sends.size_limit.watch(&kafka, &sends.topic);
            tokio::join!(
                sends.clone().send_for_ever(producer, config, written),
                watched
            );
        });
        Ok(Self {
            shared,
            sending: sending.abort_handle(),
        })
    }

    /// Puts a report into the queue; never waits.
    pub(crate) fn report(&self, info: &TaskRunningInfo) {
        let mut value = Vec::new();
        schemas::write_info(info, Framing::SingleObject, &mut value);
        self.shared.put(Report {
            exec_id: info.exec_id.clone(),
            last: info.status.is_final(),
            value,
        });
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Waits until every report is delivered, at most `within`, then ends.
    ///
    /// # Errors
    /// If some reports were not delivered: how many, and the last known error.
    pub(crate) async fn close(&self, within: Duration) -> Result<Stats, Undelivered> {
        let _waiting = exit::waiting("Kafka's acknowledgement of the last reports");
        let emptied = timeout(within, async {
            loop {
                let emptied = self.shared.emptied.notified();
                if self.shared.queue().outbox.len() == 0 {
                    return;
                }
                emptied.await;
            }
        })
        .await;
        self.sending.abort();
        let stats = self.stats();
        if emptied.is_ok() && stats.lost + stats.refused == 0 {
            return Ok(stats);
        }
        let (finals, waited) = (self.shared.queue().outbox.final_reports(), within);
        let held_up = lock(&self.shared.held_up);
        let reason = held_up.as_ref().map(|held_up| held_up.reason.clone());
        drop(held_up);
        let reason = reason.or_else(|| lock(&self.shared.observer.0.last_error).clone());
        Err(Undelivered {
            stats,
            finals,
            waited,
            reason: reason.unwrap_or_else(|| "no answer from Kafka".to_owned()),
        })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.sending.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn measure(displaced: Displaced) {
    metrics::counter!(REPLACED).increment(displaced.replaced);
    metrics::counter!(LOST, "reason" => "no_room").increment(displaced.dropped);
    metrics::counter!(LOST, "reason" => "no_room_final").increment(displaced.lost);
}

fn producer(
    config: &ClientConfig,
    observer: &Observer,
) -> Result<PolledProducer<Observer>, KafkaError> {
    config.create_with_context(observer.clone())
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    fn put(&self, report: Report) {
        let exec_id = report.exec_id.clone();
        let bytes = report.bytes();
        let verdict = self.size_limit.judge(bytes, &self.topic);
        let mut queue = self.queue();
        let refusal = match verdict {
            Verdict::Unsure if !queue.outbox.spares(&report) => Some(format!(
                "it has {bytes} bytes; whether {} takes so many is not known yet, and the queue has no room for it meanwhile",
                self.topic
            )),
            Verdict::Fits | Verdict::Unsure => None,
            Verdict::TooLarge(reason) => Some(reason),
        };
        if let Some(reason) = refusal {
            queue.counts.made += 1;
            queue.counts.refused += 1;
            drop(queue);
            self.refused(&exec_id, &reason);
            return;
        }
        let first_replaced = queue.counts.replaced == 0;
        let displaced = queue.outbox.put(report);
        queue.counts.made += 1;
        queue.count(displaced);
        metrics::gauge!(WAITING).set(queue.outbox.len() as f64);
        drop(queue);

        if displaced.lost > 0 {
            tracing::error!(
                exec_id,
                "the last report of this task is lost: Kafka takes none, and the queue is full of last reports"
            );
        }
        if first_replaced && displaced.replaced > 0 {
            tracing::warn!(
                "Kafka is slow or away: from now on newer reports replace unsent ones of their task"
            );
        }
        measure(displaced);
        self.filled.notify_one();
    }

    fn refused(&self, exec_id: &str, reason: &str) {
        tracing::error!(exec_id, "a report cannot be sent: {reason}");
        metrics::counter!(LOST, "reason" => "refused").increment(1);
    }

    /// Refuses a report that was taken out of the outbox.
    fn refuse_taken(&self, report: &Report, reason: &str) {
        let mut queue = self.queue();
        queue.outbox.arrived(report);
        queue.counts.refused += 1;
        metrics::gauge!(WAITING).set(queue.outbox.len() as f64);
        drop(queue);
        self.refused(&report.exec_id, reason);
        self.emptied.notify_waiters();
    }

    fn stats(&self) -> Stats {
        let queue = self.queue();
        Stats {
            waiting: queue.outbox.len() as u64,
            ..queue.counts
        }
    }

    /// The framing of reports. Retries for ever: whatever keeps the registry from accepting the schema, the engine goes
    /// on, and a person may fix it meanwhile.
    async fn framing(&self, written: Written) -> Framing {
        let registry = match written {
            Written::As(framing) => return framing,
            Written::ByRegistry(registry) => registry,
        };
        let mut backoff = Backoff::default();
        loop {
            let (what, lasting) = match register(&registry, &self.topic).await {
                Ok(framing) => {
                    if let Some(held_up) = lock(&self.held_up).take() {
                        let after = held_up.end();
                        tracing::info!("the schema registry answers, {after}");
                    }
                    return framing;
                }
                Err(RegistryError::Away(what)) => (what, false),
                Err(RegistryError::Refused(why)) => (why, true),
            };
            self.hold_up(&what);
            match lasting {
                false => warn_of_change!("reports wait for {what}"),
                true if repeats::is_new(module_path!(), &what) => {
                    tracing::error!("no report can be sent, trying again: {what}");
                }
                true => {}
            }
            sleep(backoff.pause()).await;
        }
    }

    async fn send_for_ever(
        self: Arc<Self>,
        first: PolledProducer<Observer>,
        config: ClientConfig,
        written: Written,
    ) {
        let framing = self.framing(written).await;
        let mut producer = first;
        let mut sending = JoinSet::new();
        // After a transient error, send nothing before this.
        let mut resume = Instant::now();
        // Reports up to this ticket were refused in a batch. Each is sent again alone, so that only the one at fault is
        // refused for good.
        let mut alone_through = None;
        loop {
            while sending.len() < self.sending_max && resume <= Instant::now() {
                if alone_through.is_some() && !sending.is_empty() {
                    break;
                }
                // What the topic takes in a batch, less the overhead of each report.
                let together = self.size_limit.bytes();
                let together = together.saturating_sub(SENDING_MAX * REPORT_OVERHEAD_BYTES);
                let Some((ticket, report)) = self.queue().outbox.take(together) else {
                    break;
                };
                alone_through = alone_through.filter(|last| ticket <= *last);
                // The limit may have become known, or lower, since the report was queued.
                if let Verdict::TooLarge(reason) =
                    self.size_limit.judge(report.bytes(), &self.topic)
                {
                    self.refuse_taken(&report, &reason);
                    continue;
                }
                let alone = alone_through.is_some();
                let mut value = Cow::Borrowed(&report.value);
                if framing != Framing::SingleObject {
                    framing.put_on(value.to_mut());
                }
                let (result, outcome) = oneshot::channel();
                let record = BaseRecord::with_opaque_to(&self.topic, Box::new(result))
                    .key(report.exec_id.as_bytes())
                    .payload(value.as_slice());
                match producer.send(record) {
                    Ok(()) => {
                        sending.spawn(async move { (ticket, report, alone, outcome.await) });
                    }
                    Err((error, _)) => resume = self.judge(ticket, report, &error, resume),
                }
            }
            tokio::select! {
                Some(sent) = sending.join_next() => match sent {
                    Ok((_, report, _, Ok(Ok(())))) => self.delivered(&report),
                    Ok((ticket, report, false, Ok(Err(failed)))) if refuses_batch(&failed.error) => {
                        alone_through = alone_through.max(Some(ticket));
                        self.size_limit.doubt();
                        self.give_back(ticket, report);
                    }
                    Ok((ticket, report, _, Ok(Err(failed)))) => {
                        resume = self.judge(ticket, report, &failed.error, resume);
                    }
                    // Its client was replaced; see below.
                    Ok((ticket, report, _, Err(_))) => self.give_back(ticket, report),
                    Err(_) => {}
                },
                () = self.filled.notified() => {}
                () = sleep_until(resume), if resume > Instant::now() => {}
            }
            if let Some((code, reason)) = producer.client().fatal_error() {
                // Unacknowledged reports may have arrived, so they can end up in the topic twice.
                tracing::error!("Kafka's client cannot go on, starting another: {code}: {reason}");
                match self::producer(&config, &self.observer) {
                    Ok(another) => producer = another,
                    Err(error) => {
                        tracing::error!("starting another client, trying again: {error}");
                        sleep(BACK_OFF).await;
                    }
                }
            }
        }
    }

    fn delivered(&self, report: &Report) {
        let mut queue = self.queue();
        queue.outbox.arrived(report);
        queue.counts.delivered += 1;
        metrics::gauge!(WAITING).set(queue.outbox.len() as f64);
        drop(queue);
        self.observer.0.delivered.fetch_add(1, Ordering::Relaxed);
        metrics::counter!(names::SENT, &messaging("send", &self.topic)).increment(1);
        if let Some(held_up) = lock(&self.held_up).take() {
            let after = held_up.end();
            tracing::info!("Kafka takes reports again, {after}");
        }
        self.emptied.notify_waiters();
    }

    fn hold_up(&self, reason: &str) {
        let mut held_up = lock(&self.held_up);
        let since = held_up
            .as_ref()
            .map_or_else(Instant::now, |held_up| held_up.since);
        *held_up = Some(HeldUp {
            since,
            reason: reason.to_owned(),
        });
    }

    fn give_back(&self, ticket: Ticket, report: Report) {
        let mut queue = self.queue();
        let displaced = queue.outbox.give_back(ticket, report);
        queue.count(displaced);
        drop(queue);
        measure(displaced);
        self.emptied.notify_waiters();
    }

    /// Handles an undelivered report: refuses it for good, or gives it back to be sent again. Returns the time from which
    /// reports may be sent again.
    fn judge(
        &self,
        ticket: Ticket,
        report: Report,
        error: &KafkaError,
        resume: Instant,
    ) -> Instant {
        if refuses_batch(error) {
            let mut reason = format!("{error}; it has {} bytes", report.bytes());
            if is_too_large(error) {
                self.size_limit.doubt();
                reason += "; report less at once, or raise the topic's max.message.bytes";
            }
            self.refuse_taken(&report, &reason);
            return resume;
        }
        self.give_back(ticket, report);
        let error = error.to_string();
        self.hold_up(&error);
        warn_of_change!("{} takes no reports, trying again: {error}", self.topic);
        Instant::now() + BACK_OFF
    }
}
