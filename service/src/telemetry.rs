//! Logs, and the endpoints `/metrics`, `/livez` and `/readyz`.

use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use tracing::Metadata;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::{DefaultFields, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::health::Health;
use crate::text::{shown, shown_json};

/// How often recorded values move from the recorder's buffers into buckets. A scrape does that too, but
/// without scrapes the buffers would grow without bound.
const UPKEEP: Duration = Duration::from_secs(5);

/// Metric names. `messaging_*` and `db_*` follow OpenTelemetry's semantic conventions (messaging and database
/// clients, 1.3x) in Prometheus' spelling.
pub mod names {
    /// Counter: records received. Labels as [`super::messaging`].
    pub const CONSUMED: &str = "messaging_client_consumed_messages_total";
    /// Counter: records sent and acknowledged. Labels as [`super::messaging`].
    pub const SENT: &str = "messaging_client_sent_messages_total";
    /// Histogram, seconds: duration of a call to Kafka. Label `messaging_operation_name`.
    pub const OPERATION_DURATION: &str = "messaging_client_operation_duration_seconds";
    /// Histogram, seconds: duration of a database transaction. Label `db_system_name`.
    pub const DB_OPERATION_DURATION: &str = "db_client_operation_duration_seconds";
    /// Gauge: offsets from this member's processed position to the last stable offset; absent while unknown, and
    /// for partitions that it gave up.
    /// Labels `messaging_destination_name`, `messaging_destination_partition_id`.
    pub const LAG: &str = "messaging_consumer_lag_messages";
    /// Gauge: records behind the last stable offset, which an open transaction holds back. Labels as [`LAG`].
    pub const HELD_BACK: &str = "taskrunning_held_back_messages";
    /// Gauge: 1 while `/readyz` reports ready, else 0.
    pub const READY: &str = "taskrunning_ready";
    /// Gauge, seconds: the pause that a broker's quota imposes on a client now; 0: none. Label `client`: `producer`,
    /// `consumer`.
    pub const THROTTLED: &str = "taskrunning_throttled_seconds";

    /// Descriptions of these metrics at `/metrics`.
    pub const HELP: &[super::Help] = &[
        (CONSUMED, "Records read and committed."),
        (SENT, "Records written and committed, or acknowledged."),
        (
            OPERATION_DURATION,
            "Duration of a Kafka commit, in seconds.",
        ),
        (
            DB_OPERATION_DURATION,
            "Duration of a database transaction, in seconds.",
        ),
        (
            LAG,
            "Offsets from this member's processed position to the last stable offset.",
        ),
        (
            HELD_BACK,
            "Records behind the last stable offset: an open transaction of their producer holds them back.",
        ),
        (READY, "1 while /readyz reports ready, else 0."),
        (
            THROTTLED,
            "Pause that a broker's quota imposes on this client now, in seconds; 0 if none.",
        ),
    ];
}

/// Value of a gauge whose series ends: `/metrics` omits it until it gets another value. Without that, a member
/// would have a series for each partition that it ever read.
pub const ABSENT: f64 = f64::NAN;

/// What `/metrics` shows of the exporter's text.
fn without_absent(text: String) -> String {
    let is_shown = |line: &&str| !line.trim_end().ends_with(" NaN");
    if text.lines().all(|line| is_shown(&line)) {
        return text;
    }
    text.split_inclusive('\n').filter(is_shown).collect()
}

/// A metric's name and its description at `/metrics`.
pub type Help = (&'static str, &'static str);

/// The labels that OpenTelemetry requires on each messaging metric.
pub fn messaging(operation: &'static str, topic: &str) -> [(&'static str, String); 3] {
    [
        ("messaging_system", "kafka".to_owned()),
        ("messaging_operation_name", operation.to_owned()),
        ("messaging_destination_name", topic.to_owned()),
    ]
}

/// Logging options of every program.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct LogOptions {
    /// Format of logs (on standard error)
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    pub log_format: LogFormat,

    /// Level of logs: error, warn, info, debug, trace, or per module as in router=debug,librdkafka=warn
    #[arg(
        long,
        env = "LOG_LEVEL",
        value_name = "LEVEL",
        default_value = "info",
        value_parser = log_level,
        global = true
    )]
    pub log_level: String,
}

/// Format of logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Option of every service: address of its endpoints.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Health and metrics")]
pub struct MetricsOptions {
    /// Serve Prometheus metrics at /metrics, and /livez and /readyz, on this address
    #[arg(long, env = "METRICS_LISTEN", value_name = "ADDR:PORT")]
    pub metrics_listen: Option<SocketAddr>,
}

fn log_level(text: &str) -> Result<String, String> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl LogOptions {
    /// Starts logging to standard error.
    ///
    /// # Errors
    /// If the level is invalid.
    pub fn start(&self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(&self.log_level)
            .with_context(|| format!("--log-level {:?}", self.log_level))?;
        // sqlx logs malformed lines of PGPASSFILE and unknown fields of a URL, including the password.
        let shows_password = |event: &Metadata<'_>| {
            let has = |name| event.fields().field(name).is_some();
            let target = event.target();
            target.ends_with("::pgpass") && has("line")
                || target.starts_with("sqlx_postgres::options") && has("value")
        };
        let logs = tracing_subscriber::registry()
            .with(filter)
            .with(filter_fn(move |event| !shows_password(event)));
        let layer = tracing_subscriber::fmt::layer()
            // Otherwise it reports a failed write by `eprintln!`, which panics then.
            .log_internal_errors(false);
        match self.log_format {
            LogFormat::Text => {
                let ansi = std::io::stderr().is_terminal();
                let layer = layer.fmt_fields(OneLine).with_ansi(ansi);
                logs.with(layer.with_writer(|| Stderr)).init();
            }
            LogFormat::Json => {
                let layer = layer.json().flatten_event(true);
                logs.with(layer.with_writer(|| JsonLines(Stderr))).init();
            }
        }
        Ok(())
    }
}

/// Writer of logs: standard error, unless logs are [held](hold_logs).
struct Stderr;

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut held = lock_held();
        let Some(lines) = held.as_mut() else {
            return std::io::stderr().write(line);
        };
        if lines.len() == HELD_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// While this exists, logs are held in memory; when it is dropped, the newest of them are written.
#[must_use]
pub struct HeldLogs(());

/// Maximum number of held log lines.
const HELD_LINES: usize = 100;

static HELD: Mutex<Option<VecDeque<Vec<u8>>>> = Mutex::new(None);

/// Holds logs back from a terminal that shows something else, until the returned value is dropped. Does
/// nothing if standard error is not a terminal.
pub fn hold_logs() -> Option<HeldLogs> {
    std::io::stderr().is_terminal().then(|| {
        *lock_held() = Some(VecDeque::new());
        HeldLogs(())
    })
}

impl Drop for HeldLogs {
    fn drop(&mut self) {
        for line in lock_held().take().into_iter().flatten() {
            // Errors are ignored.
            let _ = std::io::stderr().write_all(&line);
        }
    }
}

fn lock_held() -> MutexGuard<'static, Option<VecDeque<Vec<u8>>>> {
    HELD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Formats an event's message and fields as tracing-subscriber does, escaped by [`shown`]: they may contain
/// foreign text, and its line ends must not begin a line of the log.
struct OneLine;

impl<'writer> FormatFields<'writer> for OneLine {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> std::fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&shown(&text))
    }
}

/// Writes an event in JSON, escaped by [`shown_json`]. Each call gets a complete event.
struct JsonLines<W>(W);

impl<W: Write> Write for JsonLines<W> {
    fn write(&mut self, event: &[u8]) -> std::io::Result<usize> {
        let json = String::from_utf8_lossy(event);
        self.0.write_all(shown_json(&json).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl MetricsOptions {
    /// Starts the endpoints, if they are configured; they end with the program. `help` describes the
    /// program's own metrics.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn start(&self, health: Arc<Health>, help: &[Help]) -> anyhow::Result<()> {
        let Some(address) = self.metrics_listen else {
            return Ok(());
        };
        let seconds = [
            0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        ];
        let prometheus = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &seconds)?
            .install_recorder()?;
        for (name, help) in names::HELP.iter().chain(help) {
            // The exporter keeps one description per name, for any type.
            metrics::describe_gauge!(*name, *help);
        }
        let upkept = prometheus.clone();
        let asked = health.clone();
        let app = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route(
                "/readyz",
                get(move || async move {
                    match health.ready() {
                        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
                        Err(reason) => {
                            let reason = format!("{}\n", shown(&reason));
                            (StatusCode::SERVICE_UNAVAILABLE, reason)
                        }
                    }
                }),
            )
            .route(
                "/metrics",
                get(move || async move {
                    let ready = f64::from(u8::from(asked.ready().is_ok()));
                    metrics::gauge!(names::READY).set(ready);
                    without_absent(prometheus.render())
                }),
            );
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("--metrics-listen {address}"))?;
        tracing::info!("metrics and health on http://{}", listener.local_addr()?);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                upkept.run_upkeep();
            }
        });
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!("the metrics endpoint ended: {error}");
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[test]
    fn a_gauge_that_ended_is_not_shown_until_it_begins_again() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let shown = |of_two: f64| {
            metrics::with_local_recorder(&recorder, || {
                metrics::gauge!(names::LAG, "partition" => "1").set(7.0);
                metrics::gauge!(names::LAG, "partition" => "2").set(of_two);
            });
            without_absent(recorder.handle().render())
        };
        let both = shown(8.0);
        assert!(
            both.contains("\"1\"} 7\n") && both.contains("\"2\"} 8\n"),
            "{both}"
        );
        let one = shown(ABSENT);
        assert!(
            one.contains("\"1\"} 7\n") && !one.contains("\"2\""),
            "{one}"
        );
        let both = shown(8.0);
        assert!(both.contains("\"2\"} 8\n"), "{both}");
    }

    const HOSTILE: &str =
        "a\nERROR forged\r\u{1b}[31m\u{9b}\u{202e}\u{2067}\u{200b}\u{2028}\u{e0041}\u{feff} 任务";

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    fn log_hostile_text() {
        let error = std::io::Error::other(HOSTILE);
        let error: &(dyn std::error::Error + 'static) = &error;
        tracing::info_span!("batch", topic = HOSTILE).in_scope(|| {
            tracing::warn!(key = HOSTILE, display = %HOSTILE, error, "refused {HOSTILE}");
        });
    }

    #[test]
    fn a_line_of_text_holds_one_event_and_no_hidden_character() {
        for ansi in [false, true] {
            let log = Log::default();
            let layer = tracing_subscriber::fmt::layer().fmt_fields(OneLine);
            let layer = layer.with_ansi(ansi).with_writer(log.clone());
            let logs = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(logs, log_hostile_text);
            let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            let line = logged.strip_suffix('\n').unwrap();
            // The colours belong to the log format.
            let plain = line.replace("\u{1b}[", "");
            assert_eq!(ansi, plain != line);
            let hidden = plain.chars().find(|c| crate::text::is_hidden(*c));
            assert_eq!(hidden, None, "{logged}");
            assert_eq!(plain.matches("forged").count(), 5, "{logged}");
            assert!(!line.contains("\u{1b}[31m"), "{logged}");
            assert!(
                line.contains(r"\u{202e}\u{2067}\u{200b}\u{2028}\u{e0041}\u{feff} 任务"),
                "{logged}"
            );
        }
    }

    #[test]
    fn a_line_of_json_holds_one_event_no_hidden_character_and_the_exact_text() {
        let log = Log::default();
        let writer = log.clone();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let layer = layer.with_writer(move || JsonLines(writer.clone()));
        let logs = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(logs, log_hostile_text);
        let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let line = logged.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(crate::text::is_hidden), "{line}");
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(event["key"], HOSTILE);
        assert_eq!(event["span"]["topic"], HOSTILE);
    }
}
