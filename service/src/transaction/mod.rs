//! One Kafka transaction: records, and consumed offsets if there are any, all or nothing.
//!
//! [`TransactionalProducer::begin`] lends the producer to a [`Transaction`], so that only one is open at a
//! time. A transaction that does not [`commit`](Transaction::commit) must be [aborted](Transaction::abort).

mod deliveries;
mod producer;
mod settings;

pub use deliveries::Deliveries;
pub use producer::{Failed, Transaction, TransactionalProducer};
pub(crate) use settings::transaction_timeout;
pub use settings::{DEFAULTS, FIXED};
