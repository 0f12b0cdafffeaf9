//! Integration tests, one module per subject. One binary, because linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

#[path = "../../../schemas/tests/it/adversarial/mod.rs"]
mod adversarial;
mod audit_support;
#[path = "../../../schemas/tests/it/cost/mod.rs"]
#[expect(
    unsafe_code,
    reason = "allocations are counted by an allocator of its own"
)]
mod cost;
mod faults_support;
#[path = "../../../schemas/tests/it/newer/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of other crates")]
mod newer;
mod report;
#[path = "../../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of other crates")]
mod strategies;
mod support;

mod audit;
mod bounces;
mod compaction;
mod dead_letters;
mod evolving;
mod exit_codes;
mod faults;
mod hints;
mod linear;
mod rejects;
mod resume;
mod route;
mod routing;
mod settings;
mod sizes;
mod stopping;
mod topic_ids;
mod waiting;
