//! What became of the reports of a request.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use service::text::shown;
use service::words::counted;

use super::problem::Problem;
use crate::awaited::Unsent;
use crate::json::Faulty;

/// Faults that are named in an answer. Reports beyond them have only a detail.
const FAULTS_MAX: usize = 1_000;
/// Longest text of a fault, in bytes: it may quote the report.
const TEXT_MAX_BYTES: usize = 500;

/// The answer to a request whose reports were judged.
#[derive(Debug, Default, Serialize)]
pub(super) struct Results {
    /// Reports in the request.
    received: usize,
    /// Those that all in-sync replicas have.
    acknowledged: usize,
    /// Events that give no report.
    #[serde(skip)]
    no_reports: usize,
    /// The others, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<Failure>,
    #[serde(skip)]
    faults: usize,
    #[serde(skip)]
    is_too_large: bool,
    #[serde(skip)]
    is_full: bool,
}

/// The answer to a batch in OpenLineage's specification.
#[derive(Serialize)]
struct Batch<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    summary: Summary,
    failed_events: Vec<FailedEvent<'a>>,
}

#[derive(Serialize)]
struct Summary {
    received: usize,
    successful: usize,
    failed: usize,
    retriable: usize,
    non_retriable: usize,
}

#[derive(Serialize)]
struct FailedEvent<'a> {
    index: usize,
    reason: &'a str,
    retriable: bool,
}

/// A report that was not acknowledged.
#[derive(Debug, Serialize)]
struct Failure {
    /// Its place in the request, from 0 on.
    index: usize,
    /// Whether it may be accepted when it is sent again as it is.
    retriable: bool,
    detail: String,
    /// What is wrong with it, field by field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
}

#[derive(Debug, Serialize)]
struct FieldError {
    /// The field's path; empty: the whole report.
    field: String,
    detail: String,
}

impl Results {
    pub(super) fn of(received: usize) -> Self {
        Self {
            received,
            ..Self::default()
        }
    }

    pub(super) fn acknowledged(&mut self) {
        self.acknowledged += 1;
    }

    pub(super) fn acknowledged_count(&self) -> usize {
        self.acknowledged
    }

    pub(super) fn no_report(&mut self) {
        self.no_reports += 1;
    }

    pub(super) fn no_reports(&self) -> usize {
        self.no_reports
    }

    pub(super) fn bad(&mut self, index: usize, Faulty { faults, more }: &Faulty) {
        let room = FAULTS_MAX.saturating_sub(self.faults);
        let named = faults.iter().take(room);
        let errors = Vec::from_iter(named.map(|fault| FieldError {
            field: short(&fault.field),
            detail: short(&fault.reason),
        }));
        self.faults += errors.len();
        let first = faults.first().map(ToString::to_string);
        let first = short(&first.unwrap_or_default());
        let detail = match faults.len() + more {
            0 | 1 => first,
            count => format!("{first}; and {} more", counted(count - 1, "fault")),
        };
        self.failed.push(Failure {
            index,
            retriable: false,
            detail,
            errors,
        });
    }

    pub(super) fn unsent(&mut self, index: usize, unsent: Unsent) {
        self.is_too_large |= matches!(unsent, Unsent::TooLarge(_));
        self.is_full |= unsent == Unsent::QueueFull;
        let retriable = unsent.is_retriable();
        let detail = match unsent {
            Unsent::TooLarge(why) | Unsent::Refused(why) => why,
            Unsent::QueueFull => "the queue to Kafka is full".to_owned(),
            Unsent::Unavailable(why) => format!("Kafka did not acknowledge it: {why}"),
        };
        self.failed.push(Failure {
            index,
            retriable,
            detail,
            errors: Vec::new(),
        });
    }

    pub(super) fn failed(&self) -> usize {
        self.failed.len()
    }

    pub(super) fn retriable(&self) -> usize {
        self.failed.iter().filter(|failed| failed.retriable).count()
    }

    /// The field of the first fault of a report that will never be accepted, without indexes and keys, and the fault.
    pub(super) fn first_bad(&self) -> Option<(String, &str)> {
        let bad = self.failed.iter().find(|failed| !failed.retriable)?;
        let field = bad.errors.first().map_or("", |error| error.field.as_str());
        let of_field = |part: &str| part.split('[').next().unwrap_or_default().to_owned();
        let field = Vec::from_iter(field.split('.').map(of_field)).join(".");
        let field = match field.is_empty() {
            true => "the whole report".to_owned(),
            false => field,
        };
        Some((field, bad.detail.as_str()))
    }

    /// 200 if a report was acknowledged and none has to be sent again; 429 or 503 if one has; else the request was wrong.
    /// `is_lineage_batch`: as OpenLineage's specification has the answer to a batch.
    pub(super) fn answer(mut self, is_lineage_batch: bool) -> Response {
        self.failed.sort_by_key(|failed| failed.index);
        let retriable = self.retriable();
        if retriable > 0 {
            let detail = format!(
                "{} of {} not acknowledged; send again what `failed` calls retriable",
                retriable,
                counted(self.received, "report")
            );
            let problem = match self.is_full {
                true => Problem::full(),
                false => Problem::unavailable(detail),
            };
            return self.add_to(problem, is_lineage_batch).into_response();
        }
        if self.failed.is_empty() || self.acknowledged + self.no_reports > 0 {
            let body = match is_lineage_batch {
                true => serde_json::to_vec(&self.of_batch(true)),
                false => serde_json::to_vec(&self),
            };
            // It has only text and numbers.
            let body = body.unwrap_or_default();
            let content_type = [(header::CONTENT_TYPE, "application/json")];
            return (content_type, body).into_response();
        }
        let (status, detail) = match (self.received, self.first_bad()) {
            (1, Some((_, why))) if self.is_too_large => {
                (StatusCode::PAYLOAD_TOO_LARGE, why.to_owned())
            }
            (1, Some((_, why))) => (StatusCode::BAD_REQUEST, why.to_owned()),
            (_, first) => (
                StatusCode::BAD_REQUEST,
                format!(
                    "none of {} is acceptable; the first: {}",
                    counted(self.received, "report"),
                    first.map_or("", |(_, why)| why)
                ),
            ),
        };
        let problem = Problem::new(status, detail);
        self.add_to(problem, is_lineage_batch).into_response()
    }

    fn add_to(&self, problem: Problem, is_lineage_batch: bool) -> Problem {
        match is_lineage_batch {
            // The member `status` is the problem's.
            true => problem.with_results(&self.of_batch(false)),
            false => problem.with_results(self),
        }
    }

    fn of_batch(&self, has_status: bool) -> Batch<'_> {
        let retriable = self.retriable();
        let failed = self.failed.len();
        Batch {
            status: has_status.then_some(match failed {
                0 => "success",
                _ => "partial_success",
            }),
            summary: Summary {
                received: self.received,
                successful: self.acknowledged + self.no_reports,
                failed,
                retriable,
                non_retriable: failed - retriable,
            },
            failed_events: Vec::from_iter(self.failed.iter().map(|failed| FailedEvent {
                index: failed.index,
                reason: &failed.detail,
                retriable: failed.retriable,
            })),
        }
    }
}

/// The beginning of a text that may quote a report, on one line.
fn short(text: &str) -> String {
    match text.len() <= TEXT_MAX_BYTES {
        true => shown(text),
        false => {
            let cut = text.floor_char_boundary(TEXT_MAX_BYTES);
            shown(&text[..cut]) + "…"
        }
    }
}
