//! Repairs what an audit found.

use std::collections::BTreeMap;

use anyhow::Context;
use service::output;
use service::words::counted;

use super::corrections::{self, Repair};
use super::finding::{Correction, Findings};
use super::report::Report;
use crate::store::Database;

/// Prints the plan of a repair. Returns whether it is allowed: only with `--yes` may it remove more rows than it keeps.
pub(super) fn may_repair(
    topic: &str,
    database: &Database,
    report: &Report,
    is_confirmed: bool,
) -> bool {
    output::note(report.plan());
    let (removed, kept) = report.removed_and_kept();
    if removed <= kept || is_confirmed {
        return true;
    }
    tracing::error!(
        "nothing was repaired: the repair would remove {} and keep {kept}. Is {} the database of {}? If so, \
         add --yes",
        counted(removed, "row"),
        database.place(),
        topic
    );
    false
}

/// Applies the corrections of the findings, one transaction per partition. Returns how many rows it wrote and removed.
///
/// # Errors
/// If the database fails; partitions before that one are repaired.
pub(super) async fn repair(
    topic: &str,
    database: &Database,
    findings: &Findings,
) -> anyhow::Result<u64> {
    // A task's row is inserted together with the first of its rows.
    let mut first: BTreeMap<&str, i32> = BTreeMap::new();
    for finding in &findings.found {
        if let Some(exec_id) = &finding.exec_id {
            let partition = first.entry(exec_id).or_insert(finding.partition);
            *partition = finding.partition.min(*partition);
        }
    }
    let mut corrections: BTreeMap<i32, Vec<&Correction>> = BTreeMap::new();
    for finding in findings
        .found
        .iter()
        .filter(|finding| finding.correction.is_some())
    {
        let partition = match (&finding.correction, &finding.exec_id) {
            (Correction::NewTask { .. }, Some(exec_id)) => first[exec_id.as_str()],
            _ => finding.partition,
        };
        corrections
            .entry(partition)
            .or_default()
            .push(&finding.correction);
    }
    let mut repaired = 0;
    for (partition, corrections) in corrections {
        let place = database.place();
        let Repair {
            written,
            removed,
            left,
            without_task,
        } = corrections::apply(database, topic, &corrections)
            .await
            .with_context(|| {
                format!(
                    "repairing partition {partition} in {place}; either all of it was written or nothing: audit again to \
                     see which"
                )
            })?;
        repaired += written + removed;
        let mut but = String::new();
        if left > 0 {
            but.push_str(&format!("; {left} skipped because they changed meanwhile"));
        }
        if without_task > 0 {
            but.push_str(&format!(
                "; {without_task} skipped because their task has no row yet"
            ));
        }
        output::note(format_args!(
            "repaired partition {partition}: {}, {} written, {removed} removed{but}",
            counted(corrections.len(), "finding"),
            counted(written, "row")
        ));
    }
    if findings.is_cut() && repaired > 0 {
        output::note("more to repair than fits in memory; continuing with the next round");
    }
    Ok(repaired)
}
