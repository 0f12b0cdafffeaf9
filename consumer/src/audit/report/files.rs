//! The report as a file: HTML, JSON, or gauges for node_exporter.

use std::path::{Path, PathBuf};

use anyhow::bail;
use askama::Template;
use service::text::{shown, shown_lines, to_json_pretty};

use super::{Report, Totals};
use crate::audit::finding::Finding;
use crate::audit::report_file;
use crate::audit::verdict::Verdict;

/// A report's format.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Html,
    Json,
    Prometheus,
}

/// Checks that a report can be written to this file, as far as that can be checked in advance.
///
/// # Errors
/// If it cannot.
pub(in crate::audit) fn check(file: &Path) -> anyhow::Result<()> {
    format_of(file)?;
    let folder = report_file::folder_of(file);
    if !folder.is_dir() {
        bail!(
            "--report {}: {} is not a folder; create it or choose another",
            file.display(),
            folder.display()
        );
    }
    Ok(())
}

/// The format, by the file name's extension.
fn format_of(file: &Path) -> anyhow::Result<Format> {
    match file.extension().and_then(|end| end.to_str()) {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Json),
        Some("prom") => Ok(Format::Prometheus),
        _ => bail!(
            "--report {}: its name must end in .html, .json or .prom",
            file.display()
        ),
    }
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page<'a> {
    report: &'a Report,
    findings: &'a [Finding],
    more: u64,
    verdict: &'static str,
    made_at: String,
}

impl Report {
    /// Writes the report to each of these files. Returns whether all were written; failures are logged.
    pub(in crate::audit) fn write(&self, files: &[PathBuf], limit: usize) -> bool {
        let mut is_written = true;
        for file in files {
            if let Err(error) = self.write_file(file, limit) {
                is_written = false;
                tracing::error!(
                    "--report {}: {error:#}; this report was not written; the verdict is: {}",
                    file.display(),
                    self.verdict.as_str()
                );
            }
        }
        is_written
    }

    fn write_file(&self, file: &Path, limit: usize) -> anyhow::Result<()> {
        let text = match format_of(file)? {
            // The gauges keep the values of the last audit that reached a verdict.
            Format::Prometheus if self.verdict == Verdict::Unproven => return Ok(()),
            Format::Json => format!("{}\n", to_json_pretty(self)?),
            Format::Prometheus => self.metrics(),
            Format::Html => {
                let (findings, more) = self.first(limit);
                let page = Page {
                    report: self,
                    findings,
                    more,
                    verdict: self.verdict.as_str(),
                    made_at: format!("{:.0}", self.made_at),
                };
                shown_lines(&page.render()?)
            }
        };
        report_file::replace(file, text.as_bytes())?;
        Ok(())
    }

    /// Gauges in Prometheus' text format, for node_exporter's textfile collector.
    fn metrics(&self) -> String {
        let Totals {
            events,
            rows,
            missing,
            extra,
            differing,
            unprovable,
            deleted,
            expired,
            ..
        } = self.totals;
        let not_stored = self.not_stored;
        let quoted = |text: &str| shown(text).replace('\\', "\\\\").replace('"', "\\\"");
        let labels = format!(
            "topic=\"{}\",database=\"{}\"",
            quoted(&self.topic),
            quoted(&self.database)
        );
        let equal = u64::from(self.verdict == Verdict::Equal);
        let made_at = self.made_at.as_second();
        let mut text = String::new();
        let mut gauge = |name: &str, help: &str, values: &[(&str, i128)]| {
            text.push_str(&format!(
                "# HELP taskrunning_audit_{name} {help}\n# TYPE taskrunning_audit_{name} gauge\n"
            ));
            for (more, value) in values {
                text.push_str(&format!(
                    "taskrunning_audit_{name}{{{labels}{more}}} {value}\n"
                ));
            }
        };
        gauge(
            "equal",
            "1 if the tables equalled the topic, else 0.",
            &[("", equal.into())],
        );
        gauge(
            "made_at_timestamp_seconds",
            "When the last audit that reached a verdict ended.",
            &[("", made_at.into())],
        );
        gauge("events", "Events compared.", &[("", events.into())]);
        gauge(
            "rows",
            "Rows that these events produce.",
            &[("", rows.into())],
        );
        gauge(
            "not_stored_offsets",
            "Offsets of the topic that were not stored yet when the audit began.",
            &[("", not_stored.offsets.into())],
        );
        gauge(
            "findings",
            "Rows that differed from the topic.",
            &[
                (",fault=\"missing\"", missing.into()),
                (",fault=\"extra\"", extra.into()),
                (",fault=\"differing\"", differing.into()),
            ],
        );
        gauge(
            "unproven_rows",
            "Rows that could not be proven: retention deleted their events, their events are missing for another \
             reason, or consumer expire removes the rows.",
            &[
                (",cause=\"retention\"", deleted.into()),
                (",cause=\"no_record\"", (unprovable - deleted).into()),
                (",cause=\"expired\"", expired.into()),
            ],
        );
        text
    }
}
