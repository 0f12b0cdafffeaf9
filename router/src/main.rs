//! The `router` program.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use service::exit;
use service::health::Health;
use service::telemetry::{LogOptions, MetricsOptions};

/// Turns each TaskRunningInfo into a TaskRunningInfoEvent, exactly once
///
/// Reads what engines report, checks and repairs each record, and writes events and dead letters,
/// with the consumed offsets in the same Kafka transaction. Start as many as there are partitions.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  router --bootstrap-servers localhost:9092 --instance-id router-1 --metrics-listen 127.0.0.1:9101\n\nExit codes: 0 stopped as asked; 1 failed, start again; 2 wrong usage; 78 a person has to change something first"
)]
struct Cli {
    #[command(flatten)]
    router: router::Config,
    #[command(flatten)]
    logs: LogOptions,
    #[command(flatten)]
    metrics: MetricsOptions,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit::code(run(Cli::parse()).await)
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    cli.logs.start()?;
    let health = Arc::new(Health::default());
    cli.metrics.start(health.clone()).await?;
    router::run(cli.router, health, exit::on_signal()?).await
}
