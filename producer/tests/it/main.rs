//! The integration tests, a module for each subject. They share one binary: linking is slow.
#![expect(clippy::unwrap_used, reason = "a test's helpers may end the test")]

mod support;

mod dry_run;
mod exit_codes;
mod flink;
mod flink_live;
mod listen;
mod openlineage;
mod openlineage_http;
mod publishing;
mod registry;
mod reporting;
mod secrets;
mod settings;
mod simulating;
mod spark_faults;
mod spark_live;
mod spark_log;
mod spark_log_follow;
mod spark_polls;
mod stopping;
mod trino;
mod trino_live;
