//! `consumer audit`: audits; with `--repair`, repairs and audits again.

use anyhow::anyhow;
use service::kafka::KafkaOptions;
use service::range::Reader;
use service::settings::distinct_topics;
use tokio_util::sync::CancellationToken;

use super::auditor::Auditor;
use super::config::Config;
use super::repair::{may_repair, repair};
use super::report;
use super::topic::Topic;
use super::verdict::{COULD_NOT_TELL, EQUAL, UNEQUAL, Verdict, print_unproven};
use crate::failure::Failure;
use crate::schema_source::schema_source;
use crate::store::{Database, DatabaseOptions};
use crate::topic_identity::id_of;

/// A repair of more findings than fit in memory takes several rounds.
const MAX_ROUNDS: usize = 100;

/// Compares the tables with the topic and prints the result. Returns the exit code: 0 equal, 1 unequal, 2 could not
/// tell (the log gives the reason).
pub async fn audit(
    config: Config,
    kafka: KafkaOptions,
    database: DatabaseOptions,
    stop: CancellationToken,
) -> u8 {
    match audit_and_repair(&config, &kafka, &database, &stop).await {
        Ok(Verdict::Equal) => EQUAL,
        Ok(Verdict::Unequal) => UNEQUAL,
        Ok(Verdict::Unproven) => COULD_NOT_TELL,
        Err(error) => {
            tracing::error!("could not tell: {error:#}");
            if config.json {
                print_unproven(&error);
            }
            COULD_NOT_TELL
        }
    }
}

async fn audit_and_repair(
    config: &Config,
    kafka: &KafkaOptions,
    database: &DatabaseOptions,
    stop: &CancellationToken,
) -> anyhow::Result<Verdict> {
    for file in &config.report {
        report::check(file)?;
    }
    distinct_topics(&[
        ("--events-topic", &config.events_topic),
        ("--dead-letters-topic", &config.dead_letters_topic),
    ])?;
    let schemas = schema_source(config.schemas.as_deref(), kafka)?;
    let database = Database::parse(database)?;
    let stopped = || anyhow!("stopped by a signal");
    let cluster = kafka.cluster_soon(stop).await?.ok_or_else(stopped)?;
    cluster
        .require_topic(&config.events_topic, "Read", None)
        .await?;
    let answer = cluster.topic_id(&config.events_topic).await;
    // Compared with the id in the database. Without one, only the records identify the topic.
    let id = id_of(&config.events_topic, answer).map_err(Failure::into_error)?;
    let id = id.ok().map(|id| id.to_string());
    let reader = Reader::connect(kafka)?;
    let mut auditor = Auditor {
        config,
        database: &database,
        cluster: &cluster,
        topic: Topic {
            name: &config.events_topic,
            id,
            partitions: 0,
            reader: &reader,
            schemas: &schemas,
            stop,
            expired_before: None,
        },
    };
    let topic = &config.events_topic;
    let mut round = 0;
    let mut is_stuck = false;
    loop {
        let (report, findings) = auditor.audit().await?;
        round += 1;
        let is_correctable = findings
            .found
            .iter()
            .any(|finding| finding.correction.is_some());
        if config.repair && is_correctable {
            if is_stuck || round > MAX_ROUNDS {
                tracing::error!(
                    "repair stopped after {} rounds: {}",
                    round - 1,
                    match is_stuck {
                        true => "the last round repaired nothing",
                        false => "run it again to continue",
                    }
                );
            } else {
                report.print_summary();
                if may_repair(topic, &database, &report, config.yes) {
                    is_stuck = repair(topic, &database, &findings).await? == 0;
                    continue;
                }
            }
        }
        let printed = report.print(config.json, config.limit);
        let is_written = report.write(&config.report, config.limit);
        printed?;
        if let Some(reasons) = report.reasons() {
            tracing::error!("could not tell: {reasons}");
        }
        return Ok(match report.verdict {
            Verdict::Equal if !is_written => Verdict::Unproven,
            verdict => verdict,
        });
    }
}
