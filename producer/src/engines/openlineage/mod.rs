//! `producer openlineage`: reports on the runs of OpenLineage events, from a Kafka topic.
//!
//! ```text
//! OpenLineage's topic ──▶ Subscription ──▶ Runs::take ──▶ Transaction { reports, dead letters, consumed offsets }
//!  (read_committed)       (group member)  (a partition's)
//! ```
//!
//! [`event`] reads what a report needs, [`runs`] keeps the state of runs: an event gives at most one report. `from_topic`
//! takes events from a topic exactly once.

mod event;
mod event_time;
mod from_topic;
mod options;
mod runs;
#[cfg(test)]
mod tests;

pub(crate) use self::event::{Event, Refused};
pub use self::from_topic::run;
pub(crate) use self::from_topic::{DEAD_LETTERS, REMEMBERED};
pub use self::options::{OnNoOffset, Options};
pub(crate) use self::runs::{Runs, Taken};
