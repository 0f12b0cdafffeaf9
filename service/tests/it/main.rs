//! The integration tests, a module for each subject. They share one binary: linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod book;
mod client_log;
mod layers;
mod limits;
mod outcomes;
mod subscription;
mod topic_id;
