//! Integration tests, one module per subject. One binary, because linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod adversarial;
#[expect(
    unsafe_code,
    reason = "allocations are counted by an allocator of its own"
)]
mod cost;
mod encoding;
#[allow(dead_code, reason = "shared with the tests of other crates")]
mod newer;
mod strategies;

mod contract;
mod evolution;
mod hostile;
mod plain;
