//! The `producer` program: one subcommand an adapter.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use producer::{Setup, flink, listen, openlineage, publish, simulate, spark, spark_log, trino};
use schemas::topics;
use service::exit::{self, Kind, help};
use service::kafka::KafkaOptions;
use service::settings::topic_name;
use service::telemetry::{LogOptions, MetricsOptions};

/// Reports on tasks, for engines that do not report themselves
#[derive(Parser)]
#[command(version, after_help = help(Kind::Command, EXAMPLES))]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Topic to write: TaskRunningInfo
    #[arg(long, env = "PRODUCER_TOPIC", value_name = "TOPIC", value_parser = topic_name, default_value = topics::TASK_RUNNING_INFO, global = true)]
    topic: String,

    /// Print the reports as JSON lines, as `publish` reads them, instead of sending them. Needs no Kafka
    #[arg(long, global = true)]
    dry_run: bool,

    #[command(flatten)]
    kafka: KafkaOptions,
    #[command(flatten)]
    logs: LogOptions,
}

const EXAMPLES: &str = "Examples:
  producer spark --url http://localhost:4040
  producer flink --url http://localhost:8081
  producer trino --url http://localhost:8080
  producer publish reports.jsonl
  producer listen 127.0.0.1:8090
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

const SPARK_LOG_EXAMPLE: &str = "Example:
  producer spark-log /var/log/spark-events --dry-run
  producer spark-log eventlog_v2_spark-1234 app-20250101120000-0001.zstd --at-end

  producer spark-log /var/log/spark-events --follow

Reads Spark's event logs: files, folders that they were rolled into, and folders of both, as
they are or compressed. Without --follow, each run reports from sequence 0 on: give it a log
once.
A bad line is reported with its file and number, and the rest is read.
Prints, when every report is acknowledged:
  sent 98 reports of 4 tasks from 3 logs
and ends with exit code 2 if a line was bad or a log could not be read.";

const OPENLINEAGE_EXAMPLE: &str = "Example:
  producer openlineage --from-topic openlineage.events --bootstrap-servers localhost:9092

Reads OpenLineage events as OpenLineage's Kafka transport writes them. The reports and the
consumed offsets commit in one Kafka transaction. Runs until it is stopped; then prints:
  sent 42 reports, 1 dead letter
With --dry-run, prints the reports of all events that the topic holds, and ends.";

const LISTEN_EXAMPLE: &str = r#"Example:
  producer listen 127.0.0.1:8090 --bootstrap-servers localhost:9092
  curl --json '{"execId": "exec-1", "jobId": "job-1", "status": "Running", "sequence": 0,
    "engine": {"instance": "node-1:22", "engineType": "shell"}}' localhost:8090/api/v1/reports

POST /api/v1/reports takes one report, an array of them, or JSON lines (Content-Type:
application/x-ndjson), also compressed by gzip. It is answered once Kafka has acknowledged each:
200; 400 if none is acceptable; 401 without a known token; 413 if too large; 429 and 503 with
Retry-After if it has to be sent again. Each report that was not acknowledged is named.
Runs until it is stopped; then prints:
  sent 98 reports, 2 refused"#;

/// An adapter's options, and what every adapter has beside them.
#[derive(Args)]
struct Adapter<O: Args> {
    #[command(flatten)]
    options: O,
    #[command(flatten)]
    metrics: MetricsOptions,
}

#[derive(Subcommand)]
enum Command {
    /// Report on Spark applications, through the REST API of their UIs
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer spark --url http://localhost:4040 --bootstrap-servers localhost:9092\n\nEnds when the applications have ended, with --stay when it is stopped, and every report is\nacknowledged; then prints:\n  sent 42 reports of 4 tasks")
    )]
    Spark(Adapter<spark::Options>),
    /// Report on Flink jobs, through the REST API of their JobManagers
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer flink --url http://localhost:8081 --bootstrap-servers localhost:9092\n\nEnds when the jobs have ended, with --stay when it is stopped, and every report is acknowledged;\nthen prints:\n  sent 42 reports of 4 tasks")
    )]
    Flink(Adapter<flink::Options>),
    /// Report on Trino and Presto queries, through the REST API of their coordinators
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer trino --url http://localhost:8080 --stay --bootstrap-servers localhost:9092\n\nEnds when the queries have ended, with --stay when it is stopped, and every report is\nacknowledged; then prints:\n  sent 42 reports of 4 tasks")
    )]
    Trino(Adapter<trino::Options>),
    /// Report on Spark applications from their event logs, with the logs' own times
    #[command(after_help = help(Kind::Command, SPARK_LOG_EXAMPLE))]
    SparkLog(Adapter<spark_log::Options>),
    /// Report on the runs of OpenLineage events in a Kafka topic, each event exactly once
    #[command(after_help = help(Kind::Command, OPENLINEAGE_EXAMPLE))]
    Openlineage(Adapter<openlineage::Options>),
    /// Report TaskRunningInfo records from a file or standard input, as JSON lines
    #[command(after_help = help(Kind::Command, PUBLISH_EXAMPLE))]
    Publish(Adapter<publish::Options>),
    /// Receive reports over HTTP, from engines that push
    #[command(after_help = help(Kind::Command, LISTEN_EXAMPLE))]
    Listen(Adapter<listen::Options>),
    /// Simulate believable tasks and report on them
    #[command(
        after_help = help(Kind::Command, "Example:\n  producer simulate --tasks 40 --rate 200 --for 30s --seed 7 --bootstrap-servers localhost:9092\n\nPrints, when every report is acknowledged:\n  sent 6000 reports of 212 tasks")
    )]
    Simulate(Adapter<simulate::Options>),
}

fn main() -> ExitCode {
    exit::main(|_: &Cli| Kind::Command, run)
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    cli.logs.start()?;
    let setup = Setup {
        kafka: cli.kafka,
        topic: cli.topic,
        dry_run: cli.dry_run,
        health: Arc::default(),
        shutdown: exit::on_signal(exit::FAILED)?,
    };
    match cli.command {
        Command::Spark(Adapter { options, metrics }) => {
            spark::run(
                options,
                start("producer-spark", None, setup, metrics).await?,
            )
            .await?;
        }
        Command::Flink(Adapter { options, metrics }) => {
            flink::run(
                options,
                start("producer-flink", None, setup, metrics).await?,
            )
            .await?;
        }
        Command::Trino(Adapter { options, metrics }) => {
            trino::run(
                options,
                start("producer-trino", None, setup, metrics).await?,
            )
            .await?;
        }
        Command::SparkLog(Adapter { options, metrics }) => {
            let setup = start("producer-spark-log", None, setup, metrics).await?;
            if !spark_log::run(options, setup).await? {
                return Ok(exit::USAGE);
            }
        }
        Command::Openlineage(Adapter { options, metrics }) => {
            let instance = options.instance_id.clone();
            let setup = start("producer-openlineage", instance.as_deref(), setup, metrics).await?;
            openlineage::run(options, setup).await?;
        }
        Command::Publish(Adapter { options, metrics }) => {
            let setup = start("producer-publish", None, setup, metrics).await?;
            if !publish::run(options, setup).await? {
                return Ok(exit::USAGE);
            }
        }
        Command::Listen(Adapter { options, metrics }) => {
            listen::run(
                options,
                start("producer-listen", None, setup, metrics).await?,
            )
            .await?;
        }
        Command::Simulate(Adapter { options, metrics }) => {
            simulate::run(
                options,
                start("producer-simulate", None, setup, metrics).await?,
            )
            .await?;
        }
    }
    Ok(exit::OK)
}

/// Names the adapter's Kafka clients and serves its metrics.
async fn start(
    adapter: &str,
    instance: Option<&str>,
    mut setup: Setup,
    metrics: MetricsOptions,
) -> anyhow::Result<Setup> {
    setup.kafka = setup.kafka.named(adapter, instance);
    metrics.start(setup.health.clone(), producer::HELP).await?;
    Ok(setup)
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
