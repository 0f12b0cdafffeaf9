//! A member of a consumer group as one ordered stream of records, assignments and revocations.
//!
//! librdkafka announces a rebalance in a callback and then waits until the assignment is changed, which may
//! happen after the callback. So the callback only records the rebalance, and [`Subscription::next`] returns
//! it as the next item: the owner can look up offsets, finish a transaction, and only then
//! [`assign`](Subscription::assign) or [`release`](Subscription::release).

mod committed;
mod member;
mod settings;
mod stream;

pub use committed::NoCommitted;
pub(crate) use settings::session_timeout;
pub use stream::{Next, OutsideTheLog, Subscription};
