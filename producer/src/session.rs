//! The frame of every adapter: connect to Kafka before the first report, hand reports over, account for them at the end.
//! With `--dry-run` it prints the reports instead, and needs no Kafka.
//!
//! ```text
//! Setup ─▶ Session::open ─┬▶ live()         ─▶ LiveReports          never wait: newer reports replace unsent ones
//!                         ├▶ paced()        ─▶ PacedReports         wait while Kafka is slower than the input
//!                         ├▶ checkpointed() ─▶ CheckpointedReports  in transactions, with the input's checkpoints
//!                         └▶ awaited()      ─▶ AwaitedReports       each is answered once it is acknowledged
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::bail;
use schemas::TaskRunningInfo;
use service::health::Health;
use service::kafka::KafkaOptions;
use service::output;
use service::words::counted;
use tokio_util::sync::CancellationToken;

use crate::awaited::{AwaitedSender, Sent, Unsent};
use crate::checkpointed::{Batch, Checkpointed, Stored};
use crate::client::LAST_ACKS;
use crate::connection::Connection;
use crate::delivery::{Delivery, Written};
use crate::dry_run::Printer;
use crate::sender::{Sender, TooLarge};

/// Live reports that may wait while Kafka is away.
const QUEUE_REPORTS: usize = 50_000;
/// How long to wait for the last acknowledgements of live reports, unless a signal comes.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

/// What an adapter is started with, beside its own options.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where Kafka and the schema registry are.
    pub kafka: KafkaOptions,
    /// The topic to write.
    pub topic: String,
    /// Print the reports as JSON lines instead of sending them.
    pub dry_run: bool,
    /// What `/health` and `/ready` answer by.
    pub health: Arc<Health>,
    /// Cancelled by a signal; in a dry run also when nobody reads standard output any more.
    pub shutdown: CancellationToken,
}

/// A cluster that has the topic, or standard output.
pub(crate) struct Session {
    setup: Setup,
    /// `None` in a dry run.
    connection: Option<Connection>,
}

impl Session {
    /// Waits while Kafka or the schema registry is unavailable. `None` if a signal comes meanwhile.
    ///
    /// # Errors
    /// If a setting is wrong, the topic does not exist and cannot be created, or the registry refuses the schema.
    pub(crate) async fn open(setup: &Setup) -> anyhow::Result<Option<Self>> {
        let Setup {
            kafka,
            topic,
            dry_run,
            health,
            shutdown,
        } = setup;
        let connection = match dry_run {
            true => None,
            false => match Connection::open(kafka, topic, health, shutdown).await? {
                Some(connection) => Some(connection),
                None => return Ok(None),
            },
        };
        Ok(Some(Self {
            setup: setup.clone(),
            connection,
        }))
    }

    /// For the state of a live engine: an adapter that reports never waits, and while Kafka is away, a task's newer
    /// report replaces its unsent one.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub(crate) fn live(self) -> anyhow::Result<LiveReports> {
        let Setup {
            kafka,
            topic,
            health,
            shutdown,
            ..
        } = self.setup;
        let to = match self.connection {
            None => Live::Printed(Printer::new(health, shutdown.clone())),
            Some(connection) => {
                let written = Written::As(connection.framing);
                let health = Some(health);
                let delivery = Delivery::start(&kafka, &topic, QUEUE_REPORTS, written, health)?;
                Live::Sent(delivery)
            }
        };
        Ok(LiveReports {
            to,
            tasks: AtomicU64::new(0),
            shutdown,
        })
    }

    /// For input that can wait, where every report counts.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub(crate) async fn paced(self) -> anyhow::Result<PacedReports> {
        let Setup {
            kafka,
            topic,
            health,
            shutdown,
            ..
        } = self.setup;
        let to = match self.connection {
            None => Paced::Printed(Printer::new(health, shutdown.clone())),
            Some(connection) => {
                let sender = Sender::connect(connection, &kafka, &topic, health).await?;
                Paced::Sent(Box::new(sender))
            }
        };
        Ok(PacedReports { to, shutdown })
    }

    /// For input that is read again after a restart, where every report counts once. Waits while Kafka is unavailable;
    /// `None` if a signal comes meanwhile.
    ///
    /// # Errors
    /// If a setting is wrong, the topic of checkpoints is missing or not compacted, or a right is missing.
    pub(crate) async fn checkpointed(
        self,
        checkpoints: &str,
    ) -> anyhow::Result<Option<CheckpointedReports>> {
        let Setup {
            kafka,
            topic,
            health,
            shutdown,
            ..
        } = self.setup;
        let Some(connection) = self.connection else {
            let printer = Printer::new(health, shutdown);
            return Ok(Some(CheckpointedReports::Printed(printer)));
        };
        let started =
            Checkpointed::start(connection, &kafka, &topic, checkpoints, health, shutdown);
        let started = started.await?;
        Ok(started.map(|started| CheckpointedReports::Sent(Box::new(started))))
    }

    /// For requests, each of which is answered once its reports are acknowledged.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub(crate) async fn awaited(self) -> anyhow::Result<AwaitedReports> {
        let Setup {
            kafka,
            topic,
            health,
            shutdown,
            ..
        } = self.setup;
        Ok(AwaitedReports(match self.connection {
            None => Awaited::Printed(Printer::new(health, shutdown)),
            Some(connection) => {
                let sender = AwaitedSender::connect(connection, kafka, topic, health).await?;
                Awaited::Sent(Box::new(sender))
            }
        }))
    }
}

/// Reports whose senders each wait for the acknowledgement.
pub(crate) struct AwaitedReports(Awaited);

enum Awaited {
    Sent(Box<AwaitedSender>),
    Printed(Printer),
}

impl AwaitedReports {
    /// Hands a report over; never waits. Reports of one task that are handed over one after the other arrive in that
    /// order, unless the topic refuses a batch for its size. Its result is that of [`acknowledged`](Self::acknowledged).
    ///
    /// # Errors
    /// If it cannot be sent.
    pub(crate) fn send(&self, info: &TaskRunningInfo) -> Result<Sent, Unsent> {
        match &self.0 {
            Awaited::Sent(sender) => sender.send(info),
            Awaited::Printed(printer) => match printer.print(info) {
                true => Ok(Sent::Printed),
                false => Err(Unsent::Unavailable(
                    "standard output cannot be written".to_owned(),
                )),
            },
        }
    }

    /// Waits until all in-sync replicas have the report (bounded by `message.timeout.ms`).
    ///
    /// # Errors
    /// If it is refused, or not acknowledged in time. In the second case it may arrive nevertheless.
    pub(crate) async fn acknowledged(&self, sent: Sent) -> Result<(), Unsent> {
        match &self.0 {
            Awaited::Sent(sender) => sender.acknowledged(sent).await,
            Awaited::Printed(_) => Ok(()),
        }
    }

    /// Gives up what is not acknowledged yet.
    pub(crate) fn give_up(&self) {
        if let Awaited::Sent(sender) = &self.0 {
            sender.give_up();
        }
    }

    /// Prints `sent 98 reports`, without a line end, and `rest`. A dry run logs it.
    ///
    /// # Errors
    /// If standard output has refused a report of a dry run.
    pub(crate) fn account(&self, rest: &str) -> anyhow::Result<()> {
        match &self.0 {
            Awaited::Sent(sender) => {
                let reports = counted(sender.acknowledged_count(), "report");
                output::account(&format!("sent {reports}{rest}\n"));
                Ok(())
            }
            Awaited::Printed(printer) => {
                let reports = counted(printer.printed(), "report");
                tracing::info!("would have sent {reports}{rest}");
                printer.check()
            }
        }
    }
}

/// Reports of an input that is read again after a restart.
pub(crate) enum CheckpointedReports {
    Sent(Box<Checkpointed>),
    /// A dry run has no checkpoints.
    Printed(Printer),
}

impl CheckpointedReports {
    /// The checkpoints of earlier runs; `None` if a signal comes before Kafka answers.
    ///
    /// # Errors
    /// If a right is missing, or the topic has gone.
    pub(crate) async fn stored(&self) -> anyhow::Result<Option<Vec<Stored>>> {
        match self {
            Self::Sent(sent) => sent.stored().await,
            Self::Printed(_) => Ok(Some(Vec::new())),
        }
    }

    /// Adds a report to a batch. A dry run prints it.
    ///
    /// # Errors
    /// If this user may not ask for the topic's limit, or standard output cannot be written.
    pub(crate) async fn add(
        &mut self,
        batch: &mut Batch,
        info: &TaskRunningInfo,
    ) -> anyhow::Result<()> {
        match self {
            Self::Sent(sent) => sent.add(batch, info).await,
            Self::Printed(printer) => {
                printer.print(info);
                printer.check()
            }
        }
    }

    /// Commits a batch; tries until it succeeds. Returns whether it was committed: after a signal, it is given 2 s.
    ///
    /// # Errors
    /// If a right is missing, or another process took over.
    pub(crate) async fn commit(&mut self, batch: &mut Batch) -> anyhow::Result<bool> {
        match self {
            Self::Sent(sent) => sent.commit(batch).await,
            Self::Printed(_) => Ok(true),
        }
    }

    /// Nothing waits to be committed: to be called about once a second while that is so.
    pub(crate) fn settled(&self) {
        if let Self::Sent(sent) = self {
            sent.settled();
        }
    }

    /// Prints what was done, given ` of 4 tasks from 3 logs`.
    ///
    /// # Errors
    /// If reports were refused for their size.
    pub(crate) fn conclude(&self, rest: &str) -> anyhow::Result<()> {
        match self {
            Self::Sent(sent) => {
                let reports = counted(sent.sent(), "report");
                output::account(&format!("sent {reports}{rest}\n"));
                if sent.refused() > 0 {
                    bail!(
                        "{} refused for their size",
                        counted(sent.refused(), "report")
                    );
                }
            }
            Self::Printed(printer) => {
                let reports = counted(printer.printed(), "report");
                tracing::info!("would have sent {reports}{rest}");
            }
        }
        Ok(())
    }
}

/// Reports on the state of a live engine.
pub(crate) struct LiveReports {
    to: Live,
    /// Exec tasks reported so far.
    tasks: AtomicU64,
    shutdown: CancellationToken,
}

enum Live {
    Sent(Delivery),
    Printed(Printer),
}

impl LiveReports {
    /// Puts a report into the queue; never waits for Kafka. An exec task's first report has the sequence 0.
    pub(crate) fn report(&self, info: &TaskRunningInfo) {
        if info.sequence == 0 {
            self.tasks.fetch_add(1, Ordering::Relaxed);
        }
        match &self.to {
            Live::Sent(delivery) => delivery.report(info),
            Live::Printed(printer) => {
                printer.print(info);
            }
        }
    }

    /// Waits for the acknowledgements of the last reports and prints `sent 42 reports of 4 tasks`. `failures` are
    /// faults of the engine that the adapter has met, a sentence each.
    ///
    /// # Errors
    /// If reports could not be delivered, or there are failures.
    pub(crate) async fn conclude(&self, failures: Vec<String>) -> anyhow::Result<()> {
        let tasks = counted(self.tasks.load(Ordering::Relaxed), "task");
        match &self.to {
            Live::Sent(delivery) => {
                let stats = tokio::select! {
                    closed = delivery.close(CLOSE_WITHIN) => closed,
                    closed = async {
                        self.shutdown.cancelled().await;
                        delivery.close(LAST_ACKS).await
                    } => closed,
                };
                let delivered = match &stats {
                    Ok(stats) => stats.delivered,
                    Err(undelivered) => undelivered.stats.delivered,
                };
                let reports = counted(delivered, "report");
                output::account(&format!("sent {reports} of {tasks}\n"));
                stats?;
            }
            Live::Printed(printer) => {
                printer.check()?;
                let reports = counted(printer.printed(), "report");
                tracing::info!("would have sent {reports} of {tasks}");
            }
        }
        if !failures.is_empty() {
            bail!("{}", failures.join("; "));
        }
        Ok(())
    }
}

/// Reports of an input that can wait. The caller numbers them, in ascending order.
pub(crate) struct PacedReports {
    to: Paced,
    shutdown: CancellationToken,
}

enum Paced {
    Sent(Box<Sender>),
    Printed(Printer),
}

impl PacedReports {
    /// Hands a report over; waits while the queue to Kafka is full. Returns whether it was handed over: after a signal
    /// there is no waiting. A report that is refused for its size is in [`take_too_large`](Self::take_too_large), at
    /// once if the topic's limit is known.
    ///
    /// # Errors
    /// If this report or an earlier one cannot be delivered. Send nothing after that: it would arrive before the
    /// undelivered ones.
    pub(crate) async fn send(
        &mut self,
        info: &TaskRunningInfo,
        number: usize,
    ) -> anyhow::Result<bool> {
        match &mut self.to {
            Paced::Sent(sender) => sender.send(info, number, &self.shutdown).await,
            Paced::Printed(printer) => {
                printer.print(info);
                printer.check()?;
                Ok(true)
            }
        }
    }

    /// The reports that were refused for their size since the last call. None in a dry run, which knows no limit.
    pub(crate) fn take_too_large(&self) -> Vec<TooLarge> {
        match &self.to {
            Paced::Sent(sender) => sender.take_too_large(),
            Paced::Printed(_) => Vec::new(),
        }
    }

    /// Reports that Kafka has acknowledged, or that were printed.
    pub(crate) fn acknowledged(&self) -> u64 {
        match &self.to {
            Paced::Sent(sender) => sender.acknowledged(),
            Paced::Printed(printer) => printer.printed(),
        }
    }

    /// The number of the first report that failed or, after [`finish`](Self::finish), was not acknowledged.
    pub(crate) fn first_failed(&self) -> Option<usize> {
        match &self.to {
            Paced::Sent(sender) => sender.first_failed(),
            Paced::Printed(_) => None,
        }
    }

    /// Waits until every report is acknowledged or has failed (bounded by `message.timeout.ms`, and by 5 s after a
    /// signal). Returns the number of acknowledged ones. Reports that were refused for their size are not failures.
    ///
    /// # Errors
    /// If reports failed: how many, and the reason of the first.
    pub(crate) async fn finish(&self) -> anyhow::Result<u64> {
        match &self.to {
            Paced::Sent(sender) => sender.finish(&self.shutdown).await,
            Paced::Printed(printer) => {
                printer.check()?;
                Ok(self.acknowledged())
            }
        }
    }

    /// Prints what was done, without a line end: `sent 98 reports, 2 bad lines`, given `, 2 bad lines`. A dry run logs
    /// it, so that standard output holds only reports.
    pub(crate) fn account(&self, rest: &str) {
        let reports = counted(self.acknowledged(), "report");
        match &self.to {
            Paced::Sent(_) => output::account(&format!("sent {reports}{rest}\n")),
            Paced::Printed(_) => tracing::info!("would have sent {reports}{rest}"),
        }
    }

    pub(crate) fn is_dry_run(&self) -> bool {
        matches!(self.to, Paced::Printed(_))
    }

    /// Whether a dry run has ended because nobody reads standard output any more, as with `| head`.
    pub(crate) fn reader_has_gone(&self) -> bool {
        match &self.to {
            Paced::Sent(_) => false,
            Paced::Printed(printer) => printer.reader_has_gone(),
        }
    }
}
