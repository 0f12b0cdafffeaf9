//! The `producer` program: one subcommand an adapter.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use producer::{publish, simulate, spark};
use schemas::topics;
use service::exit::{self, Kind, help};
use service::health::Health;
use service::kafka::KafkaOptions;
use service::settings::topic_name;
use service::telemetry::{LogOptions, MetricsOptions};

/// Reports on tasks, for engines that do not report by themselves
#[derive(Parser)]
#[command(version, after_help = help(Kind::Command, EXAMPLES))]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Topic to write: TaskRunningInfo
    #[arg(long, env = "PRODUCER_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO, global = true)]
    topic: String,

    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    logs: LogOptions,
}

const EXAMPLES: &str = "Examples:
  producer spark --url http://localhost:4040
  producer publish reports.jsonl
  producer simulate --tasks 40 --rate 200 --for 30s";

const PUBLISH_EXAMPLE: &str = r#"Example:
  echo '{"execId": "exec-1", "jobId": "job-1", "status": "Running",
         "engine": {"instance": "node-1:22", "engineType": "shell"},
         "progress": {"progress": 0.5}}' | tr -d '\n' | producer publish

reportedAt is RFC 3339 text, or whole microseconds since 1970; left out, it is the present.
sequence numbers an execId's reports 0, 1, 2 … and shows loss. Left out, it counts the lines of
this run until the task's final status. Another run counts from 0 again, so give all of a task's
reports to one run:
  while sleep 5; do my-report; done | producer publish
or, with a run for each report, write its sequence.
A bad line, one that the topic refuses for its size included, is reported with its number and
every field that is wrong.
Prints, when every report is acknowledged:
  sent 98 reports, 2 bad lines
and ends with exit code 2 if any line was bad, the input is not UTF-8, or it has no line N. A file
that was not sent to its end (a signal, Kafka away) ends with 1 and names the line to go on from:
--from-line N."#;

#[derive(Subcommand)]
enum Command {
    /// Report on Spark applications, through the REST API of their UIs
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer spark --url http://localhost:4040 --bootstrap-servers localhost:9092\n\nEnds when the applications have ended, with --stay when it is stopped, and every report is\nacknowledged; then prints:\n  sent 42 reports of 4 tasks")
    )]
    Spark {
        #[command(flatten)]
        options: spark::Options,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
    /// Report what a file or standard input says: TaskRunningInfo as JSON lines
    #[command(after_help = help(Kind::Command, PUBLISH_EXAMPLE))]
    Publish {
        #[command(flatten)]
        options: publish::Options,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
    /// Make up believable tasks and report on them
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer simulate --tasks 40 --rate 200 --for 30s --seed 7 --bootstrap-servers localhost:9092\n\nPrints, when every report is acknowledged:\n  sent 6000 reports of 212 tasks")
    )]
    Simulate {
        #[command(flatten)]
        options: simulate::Options,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
}

fn main() -> ExitCode {
    exit::main(|_: &Cli| Kind::Command, run)
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    cli.logs.start()?;
    let shutdown = exit::on_signal(exit::FAILED)?;
    let health = Arc::new(Health::default());
    let kafka = cli.kafka.named(
        match &cli.command {
            Command::Spark { .. } => "producer-spark",
            Command::Publish { .. } => "producer-publish",
            Command::Simulate { .. } => "producer-simulate",
        },
        None,
    );
    match cli.command {
        Command::Spark { options, metrics } => {
            metrics.start(health.clone(), producer::HELP).await?;
            spark::run(options, &kafka, &cli.topic, health, shutdown).await?;
        }
        Command::Publish { options, metrics } => {
            metrics.start(health.clone(), producer::HELP).await?;
            if !publish::run(options, &kafka, &cli.topic, health, shutdown).await? {
                return Ok(exit::USAGE);
            }
        }
        Command::Simulate { options, metrics } => {
            metrics.start(health.clone(), producer::HELP).await?;
            simulate::run(options, &kafka, &cli.topic, health, shutdown).await?;
        }
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    /// clap wraps a line of more than 100 characters, which leaves short ones in between.
    #[test]
    fn the_texts_below_the_help_fit_its_width() {
        let command = super::Cli::command();
        for command in std::iter::once(&command).chain(command.get_subcommands()) {
            let text = command.get_after_help().unwrap().to_string();
            let too_long = text.lines().find(|line| line.chars().count() > 98);
            assert_eq!(too_long, None, "{}", command.get_name());
        }
    }

    #[test]
    fn help_shows_no_secret_of_the_environment() {
        service::testing::secrets::assert_help_hides_secrets(&super::Cli::command());
    }

    #[test]
    fn the_man_pages_and_completions_have_every_command_and_option() {
        manual::assert_complete(super::Cli::command());
    }
}
