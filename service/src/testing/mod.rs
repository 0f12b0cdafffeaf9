//! Helpers of integration tests. A failure ends the test, so everything panics.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]
#![expect(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "the output of a test is for the person who runs it"
)]

pub mod book;
mod environment;
mod gate;
pub mod invocation;
mod ports;
mod process;
mod registry;
pub mod secrets;
pub mod settings;
pub mod spark;
pub mod stopping;
mod topics;

pub use environment::{ASK, alone, kafka, program, service, unique, until};
pub use gate::Gate;
pub use ports::{NOBODY, free_port, get};
pub use process::{ANY_PORT, Process, memory_kib};
pub use registry::OwnRegistry;
pub use topics::{
    Topic, add_partitions, alter_topic, create_topics, delete_topic, make_topic_as_hinted,
    read_all, read_each, reader, set_max_bytes, topic_setting,
};
