//! The integration tests, one module per subject, in one binary because linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

#[path = "../../../schemas/tests/it/newer/mod.rs"]
mod newer;
#[path = "../../../router/tests/it/report/mod.rs"]
mod report;
#[path = "../sql/mod.rs"]
#[allow(dead_code, reason = "shared with the chaos run")]
mod sql;
#[path = "../../../schemas/tests/it/strategies/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of other crates")]
mod strategies;
mod support;

mod as_of;
mod audit;
mod book;
mod breaker;
mod changes;
mod clients;
mod commits;
mod connecting;
mod dashboards;
mod diff;
mod errors;
mod evolving;
mod exit_codes;
mod expire;
mod fencing;
mod hostile_text;
mod identity;
mod invalid_values;
mod letters;
mod linkis;
mod lists;
mod mariadb;
mod memory;
mod metrics;
mod offsets;
mod openapi;
mod operating;
mod outages;
mod ownership;
mod page;
mod pipeline;
mod poison;
mod registry;
mod replaced;
mod replay;
mod report_files;
mod rollups;
mod security;
mod series;
mod serve;
mod settings;
mod snapshots;
mod snippets;
mod soak;
mod spark;
mod stopping;
mod storing;
mod storm;
mod top;
mod unprovable;
mod usage;
