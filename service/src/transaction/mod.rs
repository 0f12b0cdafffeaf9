//! One Kafka transaction: records and consumed offsets, all or nothing.
//!
//! [`TransactionalProducer::begin`] lends the producer to a [`Transaction`], so that no second one is begun beside
//! it; one that did not [`commit`](Transaction::commit) is [aborted](Transaction::abort).

mod deliveries;
mod producer;
mod settings;

pub use deliveries::Deliveries;
pub use producer::{Failed, Transaction, TransactionalProducer};
pub(crate) use settings::transaction_timeout;
pub use settings::{DEFAULTS, FIXED};
