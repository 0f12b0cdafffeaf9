//! The `consumer` program.

use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use consumer::DatabaseOptions;
use jiff::Timestamp;
use service::exit::{self, Kind, WrongUsage, help};
use service::health::Health;
use service::kafka::KafkaOptions;
use service::telemetry::{LogOptions, MetricsOptions};
use service::threads::on_this_thread;
use service::time::timestamp;
use tokio_util::sync::CancellationToken;

/// Stores events in a database and answers queries about them
#[derive(Parser)]
#[command(version, after_help = help(Kind::Command, EXAMPLES))]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    database: DatabaseOptions,
    #[command(flatten)]
    logs: LogOptions,
}

const EXAMPLES: &str = "Examples:
  consumer run --bootstrap-servers localhost:9092 --database-url sqlite:tasks.db
  consumer tasks --running --database-url sqlite:tasks.db
  consumer task exec-1 --at -2h --database-url sqlite:tasks.db

The exit codes of audit and diff report their verdict: see their --help";

const RUN_HELP: &str = "\
Example:
  consumer run --bootstrap-servers localhost:9092 --database-url sqlite:tasks.db \\
    --instance-id consumer-1 --metrics-listen 127.0.0.1:9102";

const AUDIT_HELP: &str = "\
Joins no consumer group and commits nothing, so it can run at any time. It compares the topic, up to the offsets that the database \
has stored, with one snapshot of the database. It also counts the events that are not stored yet.

A row is extra only if the topic's record at its offset contradicts it. If the topic no longer has that record, the row is \
unprovable, and no repair removes it; --from earliest compares only what the topic still has. A repair prints its plan before it \
changes anything, and requires --yes to remove more rows than it keeps.

The audit cannot tell if nothing was compared, if rows are unprovable, if the topic is compacted or is not the one that was stored, \
or if Kafka or the database is unavailable.

Examples:
  consumer audit --bootstrap-servers localhost:9092 --database-url sqlite:tasks.db
  consumer audit --from time:2026-11-25T10:00Z --to -2h --report report.html --report report.json";

const REPLAY_HELP: &str = "\
Reads the events from --from up to --to (by default the end that read_committed consumers see at the start), outside any consumer \
group, and stores each once, as `run` does. An interrupted replay resumes when the same command is started again. A database that \
holds anything other than a beginning of the same range is left unchanged. Events that are unusable, or that the database refuses, \
are counted, listed and skipped: a replay writes no dead letters.

Examples:
  consumer replay --into sqlite:audit.db
  consumer replay --from 2026-11-25T10:00Z --to 2026-11-25T12:00Z --into sqlite:hours.db
  consumer replay --from offset:0=1200,3=800 --to latest --into sqlite:audit.db";

const DIFF_HELP: &str = "\
Needs no Kafka. For each part and partition, it compares the offsets that both databases have stored. Rows that only one of them has \
beyond that range are reported but are not a fault: the rest of the tables beside a replayed range, for example, or the newest events \
in the database that is further ahead. The same holds for a task whose newest report one of them has not read. Rows are the same in \
every database; a task is identified by its exec id. Each database is read in one snapshot, so both can be written to \
meanwhile. --database-url is not used.

Examples:
  consumer diff sqlite:tasks.db sqlite:audit.db
  consumer diff sqlite:tasks.db sqlite:audit.db --limit 0";

const EXPIRE_HELP: &str = "\
Removes what was reported longer ago than the age, by the engines' clocks: rows of task_progress, task_resource and task_metrics, \
and each task whose newest state is that old and that has no history left. A task that has reported since then keeps its row and \
its later reports.

Runs beside consumers: it walks the tables once and removes 1,000 to 5,000 rows per transaction, followed by a pause of the same \
length. If it is interrupted, what was removed stays removed, and the same command removes the rest. The database records up to \
when history was removed: audits and `consumer diff` exclude that history and say so, `--repair` does not restore it, and `--at` an \
earlier time is refused. New rows reuse the disk space (in PostgreSQL after a vacuum); files do not shrink.

Examples:
  consumer expire --older-than 30d --dry-run --database-url sqlite:tasks.db
  consumer expire --older-than 30d --database-url sqlite:tasks.db";

const SERVE_HELP: &str = "\
Read-only: it needs a database that consumers write to, or a copy. The page is at http://localhost:8080/, and GET /openapi.json \
describes the API. While the database is unavailable, requests are answered with 503.

Example:
  consumer serve --database-url sqlite:tasks.db
  curl http://localhost:8080/api/v1/status";

const TASKS_HELP: &str = "\
With --at, each task is shown as of that time: in the state of its greatest report, by (final status, time, sequence), among those \
that its engine made by then. Tasks without a report by then are omitted. The job, engine, user and ticket are the newest known \
ones, because the history does not contain them.

If there are more tasks, a page ends with a cursor: --cursor with the same options returns the next page. With --json, the cursor is \
printed on standard error.

Examples:
  consumer tasks --running --order memory --database-url sqlite:tasks.db
  consumer tasks --user ada --stalled --stalled-after 30m --json --database-url sqlite:tasks.db
  consumer tasks --running --at 2026-11-25T14:05Z --database-url sqlite:tasks.db";

const TOP_HELP: &str = "\
Keys: q quits, ? lists the others. If standard output is not a terminal, the list is printed once.

Examples:
  consumer top --running --database-url sqlite:tasks.db
  consumer top --url http://127.0.0.1:8080 --token-file token --order memory";

const TASK_HELP: &str = "\
With --at, the state, resources, metrics, sequences and reports are those of the reports that its engine made by then. The job, \
engine, user and ticket are the newest known ones, because the history does not contain them.

Examples:
  consumer task exec-1 --database-url sqlite:tasks.db
  consumer task exec-1 --at -2h --database-url sqlite:tasks.db";

const JOBS_HELP: &str = "\
The most recently started job comes first. A job's resources are the sum over the applications of its exec tasks that have no final \
status, by the newest report of each task; an application that several exec tasks report counts once.

Examples:
  consumer jobs --running --database-url sqlite:tasks.db
  consumer jobs --job job-1 --at -2h --json --database-url sqlite:tasks.db";

const ENGINES_HELP: &str = "\
Lists the engines that reported between --from and --to. An engine is busy while at least one of its exec tasks has reported and has \
not ended; an exec task without an end counts for at most --longest-gap after its last report. Between busy times the engine is idle. \
Before its first exec task and after its last one, nothing is known. The busy share is busy time divided by known time. The numbers \
of exec tasks are current ones.

Examples:
  consumer engines --database-url sqlite:tasks.db
  consumer engines --engine-type spark --from -2h --json --database-url sqlite:tasks.db";

const USAGE_HELP: &str = "\
A report counts for its application until the next report that names the application, by any exec task, and for at most \
--longest-gap; after that, usage is unknown and not counted. An application that several exec tasks report therefore counts once at \
any time, for the exec task that reported it last. The first final report of an exec task ends its usage. Usage reported before --from \
counts from --from on; nothing counts after --to or in the future. Hours and days are in UTC.

Examples:
  consumer usage --database-url sqlite:tasks.db
  consumer usage --by queue --every hour --from -6h --json --database-url sqlite:tasks.db";

const SERIES_HELP: &str = "\
Shows progress, memory, cores and instances (summed over the applications of a report) and the metrics given by --metric. Reports \
without a value are skipped. A series of more than --points reports is thinned: its time is divided into equal intervals, and the \
smallest and the largest value of each are kept with their own times, as are the first and the last one.

Examples:
  consumer series exec-1 --database-url sqlite:tasks.db
  consumer series exec-1 --from -2h --metric peakMemory --json --database-url sqlite:tasks.db";

#[derive(Subcommand)]
enum Command {
    /// Store events until stopped; start up to one per partition
    #[command(after_help = help(Kind::Service, RUN_HELP))]
    Run {
        #[command(flatten)]
        config: consumer::Config,
        #[command(flatten)]
        kafka: KafkaOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
    /// Rebuild the tables of a range of the events topic in another database
    #[command(after_help = help(Kind::Command, REPLAY_HELP))]
    Replay {
        #[command(flatten)]
        asked: consumer::ReplayOptions,
        #[command(flatten)]
        kafka: KafkaOptions,
    },
    /// Create the tables or migrate them to this version
    #[command(after_help = help(Kind::Command, "Example:\n  consumer migrate --database-url sqlite:tasks.db"))]
    Migrate,
    /// Prove that the tables equal the topic, or show where they do not
    #[command(after_help = help(Kind::Audit, AUDIT_HELP))]
    Audit {
        #[command(flatten)]
        config: consumer::AuditConfig,
        #[command(flatten)]
        kafka: KafkaOptions,
    },
    /// Compare the tables of two databases over the range of the topic that both have stored
    #[command(after_help = help(Kind::Audit, DIFF_HELP))]
    Diff {
        #[command(flatten)]
        asked: consumer::DiffOptions,
    },
    /// Remove old history; consumers can keep running
    #[command(after_help = help(Kind::Command, EXPIRE_HELP))]
    Expire {
        #[command(flatten)]
        asked: consumer::ExpireOptions,
    },
    /// Serve queries over HTTP until stopped
    #[command(after_help = help(Kind::Service, SERVE_HELP))]
    Serve {
        #[command(flatten)]
        asked: consumer::ServeOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
    /// List tasks, by default the newest report first
    #[command(after_help = help(Kind::Command, TASKS_HELP))]
    Tasks {
        #[command(flatten)]
        asked: Box<consumer::TaskOptions>,
        /// Continue after an earlier page, which printed this cursor; all other options must be the same
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Maximum number of tasks; 0 for all
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Show tasks live in the terminal
    #[command(after_help = help(Kind::Command, TOP_HELP))]
    Top {
        #[command(flatten)]
        asked: Box<consumer::TopOptions>,
    },
    /// Show one task: its newest state, its resources and its reports
    #[command(after_help = help(Kind::Command, TASK_HELP))]
    Task {
        /// The exec task's id
        exec_id: String,
        /// Show the task as of this time, by the engine's clock: RFC 3339, or relative to now as in -2h
        #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
        at: Option<Timestamp>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Maximum number of newest reports to show; 0 for all
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Show a task's progress, memory, cores and metrics over time
    #[command(after_help = help(Kind::Command, SERIES_HELP))]
    Series {
        #[command(flatten)]
        asked: consumer::SeriesOptions,
    },
    /// List jobs: the exec tasks of each job id, aggregated
    #[command(after_help = help(Kind::Command, JOBS_HELP))]
    Jobs {
        #[command(flatten)]
        asked: consumer::JobsOptions,
    },
    /// List engines: who uses them, what they run, and how busy they were
    #[command(after_help = help(Kind::Command, ENGINES_HELP))]
    Engines {
        #[command(flatten)]
        asked: consumer::EnginesOptions,
    },
    /// Sum the cores, memory and instances that were used between two times
    #[command(after_help = help(Kind::Command, USAGE_HELP))]
    Usage {
        #[command(flatten)]
        asked: consumer::UsageOptions,
    },
}

fn main() -> ExitCode {
    exit::main(Cli::kind, run)
}

impl Cli {
    fn kind(&self) -> Kind {
        match self.command {
            Command::Run { .. } | Command::Serve { .. } => Kind::Service,
            Command::Audit { .. } | Command::Diff { .. } => Kind::Audit,
            _ => Kind::Command,
        }
    }

    /// Rejects missing or dangerous options before anything is done.
    fn check(&self) -> Result<(), WrongUsage> {
        match &self.command {
            // These commands name their databases with options of their own.
            Command::Diff { .. } | Command::Replay { .. } => return Ok(()),
            Command::Expire { asked } => asked.check()?,
            Command::Serve { asked, .. } => asked.check()?,
            // It reads from another server instead.
            Command::Top { asked } if asked.url.is_some() => return Ok(()),
            _ => {}
        }
        self.database.url().map(drop)
    }
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    cli.logs.start()?;
    cli.check()?;
    let stop = match &cli.command {
        Command::Run { .. }
        | Command::Replay { .. }
        | Command::Expire { .. }
        | Command::Serve { .. } => exit::on_signal(exit::OK)?,
        Command::Audit { .. } => exit::on_signal(exit::USAGE)?,
        Command::Diff { .. } => exit::at_once_on_signal(exit::USAGE)?,
        // The live view has a terminal to restore.
        Command::Top { asked } if asked.is_live() => CancellationToken::new(),
        Command::Migrate
        | Command::Tasks { .. }
        | Command::Task { .. }
        | Command::Top { .. }
        | Command::Series { .. }
        | Command::Jobs { .. }
        | Command::Engines { .. }
        | Command::Usage { .. } => exit::at_once_on_signal(exit::FAILED)?,
    };
    let ended = match cli.command {
        Command::Audit { config, kafka } => {
            let kafka = kafka.named("consumer-audit", None);
            return Ok(consumer::audit(config, kafka, cli.database, stop).await);
        }
        Command::Diff { asked } => return Ok(consumer::diff(asked).await),
        Command::Run {
            config,
            kafka,
            metrics,
        } => {
            let health = Arc::new(Health::default());
            let kafka = kafka.named("consumer", config.instance_id.as_deref());
            metrics.start(health.clone(), consumer::HELP).await?;
            on_this_thread(consumer::run(config, kafka, cli.database, health, stop))?
        }
        Command::Replay { asked, kafka } => {
            let kafka = kafka.named("consumer-replay", None);
            consumer::replay(asked, kafka, &cli.database, stop).await
        }
        Command::Expire { asked } => consumer::expire(asked, &cli.database, stop).await,
        Command::Serve { asked, metrics } => {
            let health = Arc::new(Health::default());
            metrics.start(health.clone(), consumer::HELP).await?;
            consumer::serve(asked, &cli.database, health, stop).await
        }
        Command::Migrate => consumer::migrate(&cli.database).await,
        Command::Tasks {
            asked,
            cursor,
            json,
            limit,
        } => consumer::tasks(&cli.database, *asked, cursor, limit, json).await,
        Command::Top { asked } => consumer::top(*asked, &cli.database).await,
        Command::Task {
            exec_id,
            at,
            json,
            limit,
        } => consumer::task(&cli.database, &exec_id, at, limit, json).await,
        Command::Series { asked } => consumer::series(asked, &cli.database).await,
        Command::Jobs { asked } => consumer::jobs(asked, &cli.database).await,
        Command::Engines { asked } => consumer::engines(asked, &cli.database).await,
        Command::Usage { asked } => consumer::usage(asked, &cli.database).await,
    };
    ended.map_err(consumer::for_an_operator)?;
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
