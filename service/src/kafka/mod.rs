//! Creation of all Kafka clients: address, any librdkafka setting, secrets from a file.

mod cluster;
mod headers;
mod logging_context;
mod options;

pub use cluster::{Cluster, NewTopic};
pub use headers::{header, headers};
pub use logging_context::LoggingContext;
pub use options::{KafkaOptions, wrong_settings};
pub(crate) use options::{REGISTRY_PREFIX, USER_INFO_INSTEAD};
