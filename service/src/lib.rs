//! The runtime that the three binaries share: Kafka clients, logs, metrics, shutdown. It knows nothing of tasks.
//!
//! - [`kafka`]: `--bootstrap-servers`, `-X key=value`, `--kafka-config`: one way to a client.
//! - [`settings`]: a program's command line and environment.
//! - [`http`]: HTTP requests with limits.
//! - [`registry`]: `--schema-registry`: schemas by their ids, and ids of schemas.
//! - [`schema_source`]: a decoder, and the registry that has the schemas it does not know.
//! - [`subscription`]: a member of a consumer group as one ordered stream of records, assignments
//!   and revocations.
//! - [`offset_commit`]: an OffsetCommit whose answer is not waited for.
//! - [`producer`]: a producer whose acknowledgements a thread of its own takes.
//! - [`rival`]: another process with this one's identity.
//! - [`transaction`]: records and consumed offsets in one Kafka transaction.
//! - [`topic_id`]: Kafka's id of a topic, which a topic of the same name does not share.
//! - [`limits`]: how large a record topics take, read again while a program runs.
//! - [`range`]: a part of a topic that ends, outside any group.
//! - [`lookup`]: single records by their coordinates.
//! - [`address`]: an address that may hold a secret, which is never shown.
//! - [`text`]: the text of others, made safe to print.
//! - [`breaker`]: few bad records are set aside, many stop the service.
//! - [`backoff`]: pauses between tries.
//! - [`pause`]: waits that end when they should.
//! - [`threads`]: which thread waits for what.
//! - [`repeats`]: log lines that repeat themselves.
//! - [`throttling`]: quotas of brokers that slow a client down.
//! - [`telemetry`]: logs, and `--metrics-listen` with `/metrics`, `/livez`, `/readyz`.
//! - [`health`]: ready means *progressing*.
//! - [`time`]: durations and times on a command line.
//! - [`words`]: numbers in sentences.
//! - [`grid`]: tables for a person at a terminal.
//! - `testing` (feature): topics of a test on a real Kafka, child processes, waiting for a condition.
//! - [`output`]: results on standard output, remarks on standard error; neither ends in a panic.
//! - [`exit`]: how a program ends: on a signal, and with which code.

// Layers, the highest first: a module uses its own layer and those below.

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
pub mod settings;
pub mod text;
pub mod threads;
pub mod time;
pub mod topic_id;
pub mod words;
