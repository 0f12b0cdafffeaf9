//! Adapters for engines that do not report themselves: one folder each.

pub mod flink;
pub mod listen;
pub mod openlineage;
pub mod publish;
pub mod simulate;
pub mod spark;
pub mod spark_log;
pub mod trino;
