//! `router dead-letters redrive`: selects letters, sends them back, and prints a summary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;

use schemas::topics;
use service::exit::USAGE;
use service::kafka::{Cluster, KafkaOptions, NewTopic};
use service::output;
use service::range::End;
use service::text::shown;
use service::words::counted;
use tokio::task::block_in_place;

use super::letter::Letter;
use super::letters::{Letters, Selection};
use super::print::table;
use super::redriver::{Done, Redriver, Sending};
use super::topic::DeadLetterTopic;

/// Maximum number of letters that a dry run lists.
const PLANNED_LETTERS: usize = 100;

/// Options of a redrive.
pub(super) struct How {
    pub(super) force: bool,
    pub(super) dry_run: bool,
    /// Maximum number of letters in a transaction.
    pub(super) max_records: usize,
}

impl How {
    /// Prints a plan or summary; for a dry run, this is the result.
    fn print(&self, text: &str) -> anyhow::Result<()> {
        match self.dry_run {
            true => output::print(text)?,
            false => output::account(text),
        }
        Ok(())
    }
}

/// Sends the selected letters back, or prints the plan of a dry run; returns the exit code.
///
/// # Errors
/// If Kafka does not answer, a topic or a right is missing, or another redrive fences this one.
pub(super) async fn redrive(
    topic: &DeadLetterTopic<'_>,
    cluster: &Cluster,
    kafka: &KafkaOptions,
    selection: Selection,
    how: How,
) -> anyhow::Result<u8> {
    let by_place = matches!(selection, Selection::Positions(_));
    let mut letters = block_in_place(|| Letters::read(topic, selection))?;
    let mut code = letters.report_missing(topic);

    let targets: BTreeSet<Arc<str>> = letters
        .found
        .values()
        .filter_map(|letter| Some(letter.source.as_ref()?.topic.clone()))
        .collect();
    let mut limits = BTreeMap::new();
    for target in targets {
        let make = NewTopic::with(topics::REPORTS_SETTINGS);
        cluster.require_topic(&target, "Write", Some(make)).await?;
        limits.insert(target.clone(), cluster.max_record_bytes(&target).await?);
    }

    block_in_place(|| {
        // Fence before reading the notes: see the module `redriver`.
        let (redriver, end) = match how.dry_run || letters.found.is_empty() {
            true => (None, End::Stable),
            false => {
                let redriver = Redriver::start(kafka, &topic.name, &limits)?;
                letters.read_notes(topic)?;
                (Some(redriver), End::High)
            }
        };
        let others = letters.read_others(topic, end)?;
        let mut before = 0;
        if !how.force {
            letters.found.retain(|position, letter| {
                let Some(redriven) = &letter.redriven else {
                    return true;
                };
                before += 1;
                if by_place {
                    code = USAGE;
                    output::note(format_args!(
                        "{position}: left, it was redriven at {}; --force sends it again",
                        shown(&redriven.at)
                    ));
                }
                false
            });
        }
        letters.join(&others);
        how.print(&plan(&topic.name, &letters, how.dry_run)?)?;

        let mut done = Done::default();
        let sending = Sending {
            topic,
            limits: &limits,
            max_records: how.max_records,
            redriver: redriver.as_ref(),
        };
        let sent = sending.send(&letters, &mut done);
        for why in &done.left {
            code = USAGE;
            output::note(format_args!("{}; left", shown(why)));
        }
        let would = if how.dry_run { "would be " } else { "" };
        let mut text = format!(
            "{} {would}redriven in {}",
            counted(done.redriven, "letter"),
            counted(done.transactions, "transaction")
        );
        if done.duplicates > 0 {
            write!(
                text,
                ", {} more about the same records {would}noted",
                done.duplicates
            )?;
        }
        if !done.left.is_empty() {
            write!(text, ", {} left", done.left.len())?;
        }
        if before > 0 {
            write!(text, ", {before} were redriven before")?;
        }
        how.print(&format!("{text}\n"))?;
        sent.map(|()| code)
    })
}

/// The plan.
fn plan(topic: &str, letters: &Letters, dry_run: bool) -> anyhow::Result<String> {
    let mut text = String::new();
    if dry_run && !letters.found.is_empty() {
        let first: Vec<&Letter> = letters.found.values().take(PLANNED_LETTERS).collect();
        text.push_str(&table(&first));
        if letters.found.len() > first.len() {
            writeln!(text, "… and {} more", letters.found.len() - first.len())?;
        }
    }
    let routes = letters.found.values().map(|letter| {
        let target = letter.source.as_ref().map(|source| source.topic.clone());
        (target, letter.kind.clone())
    });
    for ((target, kind), count) in counts(routes) {
        writeln!(
            text,
            "{count:>8} {} of {} to {}",
            shown(&kind),
            topic,
            target.map_or("nowhere: source unknown".to_owned(), |target| shown(
                &target
            ))
        )?;
    }
    Ok(text)
}

/// Number of occurrences of each key.
fn counts<K: Ord>(each: impl Iterator<Item = K>) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for key in each {
        *counts.entry(key).or_default() += 1;
    }
    counts
}
