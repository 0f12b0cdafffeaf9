//! Runtime shared by the three binaries: Kafka clients, logs, metrics, shutdown. No task-domain code.
//!
//! - [`kafka`]: `--bootstrap-servers`, `-X key=value`, `--kafka-config`: settings of all clients.
//! - [`settings`]: a program's command line and environment.
//! - [`http`]: HTTP requests with limits.
//! - [`http_server`]: HTTP servers with limits, tokens and TLS.
//! - [`registry`]: `--schema-registry`: a schema registry's client.
//! - [`schema_source`]: a decoder, and the registry for schemas that it does not know.
//! - [`subscription`]: a member of a consumer group as one ordered stream of records, assignments
//!   and revocations.
//! - [`offset_commit`]: an asynchronous OffsetCommit.
//! - [`producer`]: a producer with a polling thread.
//! - [`rival`]: detection of another process with this one's identity.
//! - [`transaction`]: records and consumed offsets in one Kafka transaction.
//! - [`topic_id`]: Kafka's id of a topic; a topic created again under the same name has another one.
//! - [`limits`]: maximum record sizes of topics, read again while a program runs.
//! - [`range`]: reading a bounded range of a topic, outside any group.
//! - [`lookup`]: single records by partition and offset.
//! - [`address`]: an address that may contain a secret, which is never shown.
//! - [`reloaded`]: files that are read again when they change.
//! - [`text`]: foreign text, made safe to print.
//! - [`breaker`]: circuit breaker that stops a service with too many bad records.
//! - [`backoff`]: exponential back-off.
//! - [`pause`]: precise short waits.
//! - [`threads`]: blocking calls in an async runtime.
//! - [`repeats`]: suppression of repeated log lines.
//! - [`throttling`]: detection of brokers' quotas that slow a client down.
//! - [`telemetry`]: logs, and `--metrics-listen` with `/metrics`, `/livez`, `/readyz`.
//! - [`health`]: readiness: whether a service makes progress.
//! - [`time`]: durations and times on a command line.
//! - [`words`]: singular and plural in messages.
//! - [`grid`]: text tables for terminals.
//! - `testing` (feature): topics on a real Kafka, child processes, waiting for conditions.
//! - [`output`]: results on standard output, remarks on standard error, without panics.
//! - [`exit`]: signals and exit codes.

// Layers, highest first: a module uses its own layer and those below.

#[cfg(feature = "testing")]
pub mod testing;

pub mod limits;
pub mod lookup;
pub mod range;
pub mod registry;
pub mod rival;
pub mod schema_source;

pub mod subscription;
pub mod transaction;

pub mod kafka;

pub mod breaker;
mod client_log;
pub mod exit;
pub mod health;
mod held_back;
pub mod http;
pub mod http_server;
pub mod offset_commit;
pub mod pause;
pub mod producer;
pub mod repeats;
pub mod telemetry;
pub mod throttling;

pub mod address;
pub mod backoff;
mod brokers;
mod error;
pub mod grid;
pub mod output;
pub mod reloaded;
pub mod settings;
pub mod text;
pub mod threads;
pub mod time;
pub mod topic_id;
pub mod words;
