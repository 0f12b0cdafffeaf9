//! Integration tests, one module per subject. One binary, because linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod book;
mod client_log;
mod layers;
mod limits;
mod outcomes;
mod subscription;
mod topic_id;
