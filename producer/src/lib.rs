//! Reporting on tasks: a library for engines written in Rust, and adapters for engines that do not report themselves.
//!
//! # An engine in Rust
//!
//! ```no_run
//! # use producer::{Part, Reporter, TaskSource};
//! # use schemas::{EngineInstance, TaskProgressInfo, TaskStatus};
//! # struct Query;
//! # impl Query { async fn run(&self) {} fn share_done(&self) -> f64 { 0.5 } }
//! # #[derive(Clone)] struct Watch(std::sync::Arc<Query>);
//! impl TaskSource for Watch {
//!     async fn progress(&self) -> Part<TaskProgressInfo> {
//!         Ok(Some(TaskProgressInfo { progress: self.0.share_done(), progress_info: vec![] }))
//!     }
//! }
//!
//! # async fn reported(engine: EngineInstance, query: std::sync::Arc<Query>) -> Result<(), Box<dyn std::error::Error>> {
//! # let watch = Watch(query.clone());
//! let reporter = Reporter::connect("localhost:9092", engine)?;
//! let task = reporter.task("exec-1", "job-1", watch);
//! query.run().await;
//! task.finish(TaskStatus::Succeed);
//! reporter.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Engines that do not report themselves
//!
//! - [`spark`]: through the REST API of a Spark UI or a History Server.
//! - [`flink`]: through the REST API of a Flink JobManager.
//! - [`trino`]: through the REST API of a Trino or Presto coordinator.
//! - [`spark_log`]: from Spark's event logs.
//! - [`openlineage`]: from the OpenLineage events in a Kafka topic, exactly once.
//! - [`publish`]: JSON lines, from any language and from shells.
//! - [`listen`]: over HTTP, from engines that push.
//! - [`simulate`]: made-up tasks, reproducible by seed.
//!
//! ```text
//! Reporter, spark, flink, trino ──▶ Outbox ──▶ Delivery ─┐   never wait: newer reports replace unsent ones
//!                                                        ├──▶ task-running-info, key execId
//! publish, simulate, spark_log ──▶ Sender ───────────────┤   wait while Kafka is slower than they are
//! spark_log --follow ──▶ Checkpointed ───────────────────┤   in transactions, with checkpoints
//! listen ──▶ AwaitedSender ──────────────────────────────┤   each request waits for its acknowledgements
//! openlineage ──▶ one transaction with the offsets ──────┘
//! ```

// Layers, the highest first: a module uses its own layer and those below.

mod engines;
mod reporter;

mod polling;
mod session;

mod awaited;
mod checkpointed;
mod delivery;
mod dry_run;
mod sender;

mod client;
mod connection;
mod json;
mod observer;
mod outbox;
mod size_limit;

pub use delivery::{Stats, Undelivered};
pub use engines::{flink, listen, openlineage, publish, simulate, spark, spark_log, trino};
pub use reporter::{Options, Part, Reporter, ReporterError, Task, TaskSource};
pub use session::Setup;

/// Descriptions of the producer's own metrics, for `/metrics`.
pub const HELP: &[service::telemetry::Help] = &[
    (
        delivery::REPLACED,
        "Unsent reports that a newer one of their task replaced.",
    ),
    (
        delivery::LOST,
        "Reports not sent for want of room, or refused by Kafka for good, by reason.",
    ),
    (
        delivery::WAITING,
        "Reports that wait for Kafka or are on their way.",
    ),
    (
        spark::FOLLOWED,
        "Applications that are followed, those whose end is being looked up included.",
    ),
    (
        flink::FOLLOWED,
        "Jobs that are followed, those whose end is being looked up included.",
    ),
    (
        trino::FOLLOWED,
        "Queries that are followed, those whose end is being looked up included.",
    ),
    (
        openlineage::REMEMBERED,
        "OpenLineage runs whose state is remembered.",
    ),
    (
        openlineage::DEAD_LETTERS,
        "Dead letters written, by kind of fault.",
    ),
    (
        spark_log::FOLLOWED,
        "Event logs that are followed, those whose application has ended not included.",
    ),
    (
        service::http_server::DURATION,
        "Duration of an HTTP request until its answer begins, in seconds.",
    ),
    (
        listen::RECEIVED,
        "Reports received over HTTP, by what became of them.",
    ),
    (
        listen::RECEIVED_BYTES,
        "Bytes of requests received over HTTP, decompressed.",
    ),
    (
        polling::poll_limit::POLL_DURATION,
        "Duration of a poll of an application, job or query, in seconds.",
    ),
    (
        polling::poll_limit::POLLS_LATE,
        "Polls that waited for their turn for a whole interval, by share.",
    ),
];
