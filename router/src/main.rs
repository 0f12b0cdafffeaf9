//! The `router` program.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use service::exit::{self, Kind, help};
use service::health::Health;
use service::telemetry::{LogOptions, MetricsOptions};

/// Turns each TaskRunningInfo into a TaskRunningInfoEvent, exactly once
///
/// Reads the reports of engines, checks and repairs each record, and writes events and dead letters
/// with the consumed offsets in one Kafka transaction. Start up to one router per partition.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = help(Kind::Service, EXAMPLES)
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    router: router::Config,
    #[command(flatten)]
    logs: LogOptions,
    #[command(flatten)]
    metrics: MetricsOptions,
}

const EXAMPLES: &str = "\
Examples:
  router --bootstrap-servers localhost:9092 --instance-id router-1 --metrics-listen 127.0.0.1:9101
  router dead-letters list --bootstrap-servers localhost:9092
  router audit --from -2h --bootstrap-servers localhost:9092";

#[derive(Subcommand)]
enum Command {
    /// List, show and redrive dead letters
    DeadLetters(router::DeadLetters),
    /// Prove that every source record has exactly one event or one dead letter, with the same content
    Audit(router::Audit),
}

fn main() -> ExitCode {
    exit::main(Cli::kind, run)
}

impl Cli {
    fn kind(&self) -> Kind {
        match self.command {
            None => Kind::Service,
            Some(Command::DeadLetters(_)) => Kind::Command,
            Some(Command::Audit(_)) => Kind::Audit,
        }
    }
}

async fn run(mut cli: Cli) -> anyhow::Result<u8> {
    cli.logs.start()?;
    let (name, instance) = match &cli.command {
        None => ("router", cli.router.instance_id.as_deref()),
        Some(Command::DeadLetters(_)) => ("router-dead-letters", None),
        Some(Command::Audit(_)) => ("router-audit", None),
    };
    cli.router.kafka = cli.router.kafka.named(name, instance);
    let stop = exit::on_signal(match &cli.command {
        None => exit::OK,
        Some(Command::DeadLetters(_)) => exit::FAILED,
        Some(Command::Audit(_)) => exit::USAGE,
    })?;
    match cli.command {
        Some(Command::DeadLetters(asked)) => {
            return router::dead_letters(asked, &cli.router.kafka, &stop).await;
        }
        Some(Command::Audit(asked)) => {
            return Ok(router::audit(asked, &cli.router.kafka, &stop).await);
        }
        None => {}
    }
    let health = Arc::new(Health::default());
    cli.metrics.start(health.clone(), router::HELP).await?;
    router::run(cli.router, health, stop).await?;
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn help_shows_no_secret_of_the_environment() {
        service::testing::secrets::assert_help_hides_secrets(&super::Cli::command());
    }

    #[test]
    fn the_man_pages_and_completions_have_every_command_and_option() {
        manual::assert_complete(super::Cli::command());
    }
}
