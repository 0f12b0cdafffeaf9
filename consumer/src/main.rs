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

/// Stores events in tables, and answers queries about them
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

The exit codes of audit and diff are their verdicts: see their --help";

const RUN_HELP: &str = "\
Example:
  consumer run --bootstrap-servers localhost:9092 --database-url sqlite:tasks.db \\
    --instance-id consumer-1 --metrics-listen 127.0.0.1:9102";

const AUDIT_HELP: &str = "\
Joins no group and commits nothing: it can run while everything runs. Compares up to the offsets that the database says are
stored, in one snapshot of it, and says how many events are not stored yet.

A row is extra only where the topic's own record at its offset says something else. Where the topic has no record any more, the
row is unprovable, and no repair removes it; --from earliest compares only what the topic still has. A repair says first what it
is about to do, and needs --yes to remove more rows than it keeps.

It cannot tell where nothing was compared, where rows are unprovable, where the topic is compacted or another one than was
stored, and while Kafka or the database is away.

Examples:
  consumer audit --bootstrap-servers localhost:9092 --database-url sqlite:tasks.db
  consumer audit --from time:2026-11-25T10:00Z --to -2h --report report.html --report report.json";

const REPLAY_HELP: &str = "\
Reads the events from --from up to --to, or to the end that committed readers see at the start, outside any consumer group, and
stores them as `run` does, each once. A replay that was ended in any way goes on where it was when the same command is started
again. A database that holds anything else than a beginning of the same range is left as it is. Events that are no good, or that
the database refuses, are counted, listed and left out: a replay writes no dead letters.

Examples:
  consumer replay --into sqlite:audit.db
  consumer replay --from 2026-11-25T10:00Z --to 2026-11-25T12:00Z --into sqlite:hours.db
  consumer replay --from offset:0=1200,3=800 --to latest --into sqlite:audit.db";

const DIFF_HELP: &str = "\
Needs no Kafka. Of each part and partition the offsets are compared that both databases have stored: what one of them has beyond
is told and is no fault, such as the rest of the tables beside a replayed range, or the newest events of the one that is further
along. So is a task whose newest report one of them has not read. Rows are the same in SQLite and PostgreSQL; a task is known by its
exec id. Reads each database in one snapshot: both can be written to meanwhile. --database-url is not used.

Examples:
  consumer diff sqlite:tasks.db sqlite:audit.db
  consumer diff sqlite:tasks.db sqlite:audit.db --limit 0";

const EXPIRE_HELP: &str = "\
What was reported longer ago than the age, by the engines' clocks, is removed: rows of task_progress, task_resource and
task_metrics, and each task whose newest state is that old and of which no history is left. A task that has reported since keeps
its row and what it said since then.

Runs beside consumers: the tables are walked once, a piece of some 1,000 to 5,000 rows a transaction, with a pause as long after
each. Stopped by a signal, or killed, it has removed what it had come to; the same command again removes the rest. The database
notes up to when history was removed: audits and `consumer diff` leave that out and say so, `--repair` does not bring it back, and
`--at` an earlier time is refused. Disk space is used again by new rows (in PostgreSQL after its vacuum); it is not given back.

Examples:
  consumer expire --older-than 30d --dry-run --database-url sqlite:tasks.db
  consumer expire --older-than 30d --database-url sqlite:tasks.db";

const SERVE_HELP: &str = "\
Only reads: a database that consumers write to, or a copy. The page is at http://localhost:8080/, the API is described by
GET /openapi.json. While the database is away, requests are answered with 503.

Example:
  consumer serve --database-url sqlite:tasks.db
  curl http://localhost:8080/api/v1/status";

const TASKS_HELP: &str = "\
With --at a task is shown as the history tells it: in the state of the greatest, by (final status, time, sequence), of the reports
that its engine made by then. A task without a report by then is left out. The job, engine, user and ticket are the newest known
ones, since the history does not hold them.

A page ends with a cursor where there are more tasks: --cursor with the same options gives the next page. With --json it is told
on standard error.

Examples:
  consumer tasks --running --order memory --database-url sqlite:tasks.db
  consumer tasks --user ada --stalled --stalled-after 30m --json --database-url sqlite:tasks.db
  consumer tasks --running --at 2026-11-25T14:05Z --database-url sqlite:tasks.db";

const TOP_HELP: &str = "\
Keys: q quits, ? tells the others. Where standard output is not a terminal, the list is printed once.

Examples:
  consumer top --running --database-url sqlite:tasks.db
  consumer top --url http://127.0.0.1:8080 --token-file token --order memory";

const TASK_HELP: &str = "\
With --at the state, what it held, its metrics, sequences and reports are those of the reports that its engine made by then. The
job, engine, user and ticket are the newest known ones, since the history does not hold them.

Examples:
  consumer task exec-1 --database-url sqlite:tasks.db
  consumer task exec-1 --at -2h --database-url sqlite:tasks.db";

const JOBS_HELP: &str = "\
The job that was first heard of last comes first. What a job holds is summed over the applications of its exec tasks that have no
final status, by the newest report of each; an application that several exec tasks report counts once.

Examples:
  consumer jobs --running --database-url sqlite:tasks.db
  consumer jobs --job job-1 --at -2h --json --database-url sqlite:tasks.db";

const ENGINES_HELP: &str = "\
Lists the engines that were heard of between --from and --to. An engine is busy while at least one of its exec tasks has reported
and has not ended; an exec task without an end counts for at most --longest-gap after its last report. It is idle between such
times. Before its first exec task and after its last one, nothing is known. The share is that of the busy time in the time that is
known. Numbers of exec tasks are those of now.

Examples:
  consumer engines --database-url sqlite:tasks.db
  consumer engines --engine-type spark --from -2h --json --database-url sqlite:tasks.db";

const USAGE_HELP: &str = "\
A report says what an application holds until the next report that names the application, by whichever exec task, and for at most
--longest-gap: what is held after that nobody knows, and it is not counted. So an application that several exec tasks report counts
once at any time, for the exec task that reported it last. The first final report of an exec task ends what it holds. What was
reported before --from counts from there on; nothing counts from --to on, or in the future. Hours and days are those of UTC.

Examples:
  consumer usage --database-url sqlite:tasks.db
  consumer usage --by queue --every hour --from -6h --json --database-url sqlite:tasks.db";

const SERIES_HELP: &str = "\
Progress, memory, cores and instances (summed over the applications of a report) and the metrics that --metric names. A report
that does not hold a value leaves it out. A series of more than --points reports is thinned: its time is divided into equal
stretches, and the least and the greatest value of each are kept with their own times, beside the first and the last one.

Examples:
  consumer series exec-1 --database-url sqlite:tasks.db
  consumer series exec-1 --from -2h --metric peakMemory --json --database-url sqlite:tasks.db";

#[derive(Subcommand)]
enum Command {
    /// Store events until told to stop; start as many as there are partitions
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
    /// Make the tables or bring them up to date
    #[command(after_help = help(Kind::Command, "Example:\n  consumer migrate --database-url sqlite:tasks.db"))]
    Migrate,
    /// Prove that the tables are what the topic says, or show where not
    #[command(after_help = help(Kind::Audit, AUDIT_HELP))]
    Audit {
        #[command(flatten)]
        config: consumer::AuditConfig,
        #[command(flatten)]
        kafka: KafkaOptions,
    },
    /// Compare two databases' tables over the range of the topic that they share
    #[command(after_help = help(Kind::Audit, DIFF_HELP))]
    Diff {
        #[command(flatten)]
        asked: consumer::DiffOptions,
    },
    /// Remove old history while everything runs
    #[command(after_help = help(Kind::Command, EXPIRE_HELP))]
    Expire {
        #[command(flatten)]
        asked: consumer::ExpireOptions,
    },
    /// Answer over HTTP what the tables say, until told to stop
    #[command(after_help = help(Kind::Service, SERVE_HELP))]
    Serve {
        #[command(flatten)]
        asked: consumer::ServeOptions,
        #[command(flatten)]
        metrics: MetricsOptions,
    },
    /// List tasks, the newest report first if no other order is asked for
    #[command(after_help = help(Kind::Command, TASKS_HELP))]
    Tasks {
        #[command(flatten)]
        asked: Box<consumer::TaskOptions>,
        /// Go on behind an earlier page, which printed this cursor; the other options have to be the same
        #[arg(long, value_name = "CURSOR")]
        cursor: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// At most so many tasks; 0 for all
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
    },
    /// Show tasks live in the terminal
    #[command(after_help = help(Kind::Command, TOP_HELP))]
    Top {
        #[command(flatten)]
        asked: Box<consumer::TopOptions>,
    },
    /// Show one task: its newest state, what it holds, and its reports
    #[command(after_help = help(Kind::Command, TASK_HELP))]
    Task {
        /// The exec task's id
        exec_id: String,
        /// As it was known at this time, by the engine's clock: RFC 3339, or back from now as in -2h
        #[arg(long, value_name = "TIME", value_parser = timestamp, allow_hyphen_values = true)]
        at: Option<Timestamp>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show at most so many of its newest reports; 0 for all
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: u32,
    },
    /// Show a task's progress, memory, cores and metrics over time
    #[command(after_help = help(Kind::Command, SERIES_HELP))]
    Series {
        #[command(flatten)]
        asked: consumer::SeriesOptions,
    },
    /// List jobs: the exec tasks of one job id, rolled up
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
    /// Add up the cores, memory and instances that were used between two times
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

    /// Refuses what this command cannot do without, or what it would do by mistake.
    fn check(&self) -> Result<(), WrongUsage> {
        match &self.command {
            // These name their databases by themselves.
            Command::Diff { .. } | Command::Replay { .. } => return Ok(()),
            Command::Expire { asked } => asked.check()?,
            Command::Serve { asked, .. } => asked.check()?,
            // It may read another's answers instead.
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
        // It has a terminal to restore.
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
