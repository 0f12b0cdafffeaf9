//! Which faults occur, when, and for how long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::database::Database;
use crate::fleet::Fleet;
use crate::journal::Journal;
use crate::kafka::Kafka;
use crate::{EVENTS, SOURCE};

/// Maximum number of partitions of a topic.
const MOST_PARTITIONS: i32 = 12;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Action {
    KillService,
    StopService,
    PauseService,
    KillBroker,
    PauseBroker,
    AddPartitions,
    BreakDatabase,
}

impl Action {
    /// Each with its weight.
    const ALL: [(Self, u32); 7] = [
        (Self::KillService, 25),
        (Self::StopService, 12),
        (Self::PauseService, 20),
        (Self::KillBroker, 15),
        (Self::PauseBroker, 10),
        (Self::AddPartitions, 5),
        (Self::BreakDatabase, 25),
    ];
}

/// A fault in progress, which ends by itself.
type Under = JoinHandle<anyhow::Result<()>>;

pub(crate) struct Faults {
    rng: ChaCha8Rng,
    kafka: Arc<Kafka>,
    database: Arc<Database>,
    journal: Arc<Journal>,
    next: Instant,
    /// One broker at a time, and the next only when all replicas are in sync: three replicas with two required in sync
    /// tolerate no more.
    cluster: Option<Under>,
    at_database: Option<Under>,
    counts: BTreeMap<String, u64>,
}

impl Faults {
    pub(crate) fn new(
        rng: ChaCha8Rng,
        kafka: Arc<Kafka>,
        database: Arc<Database>,
        journal: Arc<Journal>,
    ) -> Self {
        Self {
            rng,
            kafka,
            database,
            journal,
            next: Instant::now(),
            cluster: None,
            at_database: None,
            counts: BTreeMap::new(),
        }
    }

    /// Causes the next fault, if it is due.
    ///
    /// # Errors
    /// If a fault could not be ended: then this run proves nothing.
    pub(crate) async fn tick(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        finished(&mut self.cluster).await?;
        finished(&mut self.at_database).await?;
        if Instant::now() < self.next {
            return Ok(());
        }
        // Sometimes a pause long enough for groups to settle: faults prove nothing if the pipeline never works.
        let pause = match self.rng.random_range(0..8) {
            0 => 10_000..25_000,
            _ => 500..8_000,
        };
        self.next = Instant::now() + Duration::from_millis(self.rng.random_range(pause));
        let possible: Vec<_> = Action::ALL
            .into_iter()
            .filter(|(action, _)| match action {
                Action::KillBroker | Action::PauseBroker | Action::AddPartitions => {
                    self.cluster.is_none()
                }
                Action::BreakDatabase => self.at_database.is_none(),
                _ => true,
            })
            .collect();
        let (action, _) = possible.choose_weighted(&mut self.rng, |(_, weight)| *weight)?;
        match action {
            Action::KillService | Action::StopService | Action::PauseService => {
                self.at_service(*action, fleet);
            }
            Action::KillBroker | Action::PauseBroker => self.at_broker(*action),
            Action::AddPartitions => self.add_partitions(),
            Action::BreakDatabase => self.at_database(),
        }
        Ok(())
    }

    fn at_service(&mut self, action: Action, fleet: &mut Fleet) {
        let Some(i) = fleet.any(&mut self.rng) else {
            return;
        };
        let name = fleet.name(i).to_owned();
        let kind = name.split('-').next().unwrap().to_owned();
        match action {
            Action::KillService => {
                self.note(&format!("{kind} SIGKILL"), &format!("SIGKILL {name}"));
                fleet.end(i, "KILL");
            }
            Action::StopService => {
                self.note(&format!("{kind} SIGTERM"), &format!("SIGTERM {name}"));
                fleet.end(i, "TERM");
            }
            _ => {
                let lasting = self.standstill();
                self.note(
                    &format!("{kind} SIGSTOP"),
                    &format!("SIGSTOP {name} for {lasting:.1?}"),
                );
                fleet.pause(i, lasting);
            }
        }
    }

    /// Usually short; sometimes longer than the group's session timeout (10 s) and the transaction timeout (30 s).
    fn standstill(&mut self) -> Duration {
        let seconds = match self.rng.random_range(0..10) {
            0..6 => 1.0..9.0,
            6..9 => 10.0..20.0,
            _ => 31.0..40.0,
        };
        Duration::from_secs_f64(self.rng.random_range(seconds))
    }

    fn at_broker(&mut self, action: Action) {
        let nodes: Vec<usize> = Kafka::nodes().collect();
        let node = *nodes.choose(&mut self.rng).unwrap();
        let kafka = self.kafka.clone();
        if action == Action::KillBroker {
            let lasting = Duration::from_secs_f64(self.rng.random_range(2.0..10.0));
            self.note(
                "broker SIGKILL",
                &format!("SIGKILL broker {node}, down for {lasting:.1?}"),
            );
            self.cluster = Some(tokio::spawn(async move {
                kafka.kill(node).await;
                sleep(lasting).await;
                let starting = kafka.clone();
                spawn_blocking(move || starting.start_again(node)).await?;
                kafka.until_in_sync().await
            }));
        } else {
            let lasting = Duration::from_secs_f64(self.rng.random_range(2.0..15.0));
            self.note(
                "broker SIGSTOP",
                &format!("SIGSTOP broker {node} for {lasting:.1?}"),
            );
            self.cluster = Some(tokio::spawn(async move {
                kafka.signal(node, "STOP");
                sleep(lasting).await;
                kafka.signal(node, "CONT");
                kafka.until_in_sync().await
            }));
        }
    }

    fn add_partitions(&mut self) {
        let topic = *[SOURCE, EVENTS].choose(&mut self.rng).unwrap();
        let more = self.rng.random_range(1..3);
        self.note(
            "partitions added",
            &format!("up to {more} more partitions for {topic}"),
        );
        let (kafka, journal) = (self.kafka.clone(), self.journal.clone());
        self.cluster = Some(tokio::spawn(async move {
            let total = kafka.add_partitions(topic, more, MOST_PARTITIONS).await?;
            journal.line(&format!("{topic} has {total} partitions"));
            kafka.until_in_sync().await
        }));
    }

    fn at_database(&mut self) {
        let fault = *self.database.faults().choose(&mut self.rng).unwrap();
        let lasting = Duration::from_secs_f64(self.rng.random_range(0.5..8.0));
        self.note(
            &format!("database {fault:?}"),
            &format!("database: {fault:?}, {lasting:.1?}"),
        );
        let database = self.database.clone();
        self.at_database = Some(tokio::spawn(async move {
            database
                .break_for(fault, lasting)
                .await
                .with_context(|| format!("{fault:?}"))
        }));
    }

    fn note(&mut self, kind: &str, what: &str) {
        *self.counts.entry(kind.to_owned()).or_default() += 1;
        self.journal.line(what);
    }

    /// Waits until all faults have ended and the services are up.
    ///
    /// # Errors
    /// If a fault cannot be ended.
    pub(crate) async fn settle(&mut self, fleet: &mut Fleet) -> anyhow::Result<()> {
        while self.cluster.is_some() || self.at_database.is_some() {
            finished(&mut self.cluster).await?;
            finished(&mut self.at_database).await?;
            fleet.tick()?;
            sleep(Duration::from_millis(50)).await;
        }
        fleet.resume();
        fleet.tick()
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn counts(&self) -> Value {
        json!(self.counts)
    }
}

/// Takes a finished fault and its error.
async fn finished(under: &mut Option<Under>) -> anyhow::Result<()> {
    if let Some(ended) = under.take_if(|under| under.is_finished()) {
        ended.await??;
    }
    Ok(())
}
