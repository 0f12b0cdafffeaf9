//! A member of a consumer group as one ordered stream of records, assignments and revocations.
//!
//! librdkafka tells of a rebalance while it is polled and waits until the assignment is changed;
//! nothing says that this has to happen inside the callback. So the callback only notes what is
//! asked, and [`Subscription::next`] hands it on as the next item: the owner can look up offsets,
//! finish a transaction, and only then [`assign`](Subscription::assign) or
//! [`release`](Subscription::release).

mod committed;
mod member;
mod settings;
mod stream;

pub use committed::NoCommitted;
pub(crate) use settings::session_timeout;
pub use stream::{Next, OutsideTheLog, Subscription};
