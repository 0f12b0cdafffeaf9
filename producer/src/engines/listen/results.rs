//! What became of the reports of a request.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use service::text::shown;
use service::words::counted;

use super::problem::Problem;
use crate::awaited::Unsent;
use crate::json::Fault;

/// Faults that are named in an answer. Reports beyond them have only a detail.
const FAULTS_MAX: usize = 1_000;
/// Faults of one report that are named.
const REPORT_FAULTS_MAX: usize = 100;
/// Longest text of a fault, in bytes: it may quote the report.
const TEXT_MAX_BYTES: usize = 500;

/// The answer to a request whose reports were judged.
#[derive(Debug, Default, Serialize)]
pub(super) struct Results {
    /// Reports in the request.
    received: usize,
    /// Those that all in-sync replicas have.
    pub(super) acknowledged: usize,
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

    pub(super) fn bad(&mut self, index: usize, faults: &[Fault]) {
        let room = FAULTS_MAX.saturating_sub(self.faults);
        let named = faults.iter().take(room.min(REPORT_FAULTS_MAX));
        let errors = Vec::from_iter(named.map(|fault| FieldError {
            field: short(&fault.field),
            detail: short(&fault.reason),
        }));
        self.faults += errors.len();
        let first = faults.first().map(ToString::to_string);
        let first = short(&first.unwrap_or_default());
        let detail = match faults.len() {
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

    /// The first fault of a report that will never be accepted.
    pub(super) fn first_bad(&self) -> Option<&str> {
        let bad = self.failed.iter().find(|failed| !failed.retriable);
        bad.map(|bad| bad.detail.as_str())
    }

    /// 200 if a report was acknowledged and none has to be sent again; 429 or 503 if one has; else the request was wrong.
    pub(super) fn answer(mut self) -> Response {
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
            return problem.with_results(&self).into_response();
        }
        if self.failed.is_empty() || self.acknowledged > 0 {
            // It has only text and numbers.
            let body = serde_json::to_vec(&self).unwrap_or_default();
            let content_type = [(header::CONTENT_TYPE, "application/json")];
            return (content_type, body).into_response();
        }
        let (status, detail) = match (self.received, self.first_bad()) {
            (1, Some(why)) if self.is_too_large => (StatusCode::PAYLOAD_TOO_LARGE, why.to_owned()),
            (1, Some(why)) => (StatusCode::BAD_REQUEST, why.to_owned()),
            (_, why) => (
                StatusCode::BAD_REQUEST,
                format!(
                    "none of {} is acceptable; the first: {}",
                    counted(self.received, "report"),
                    why.unwrap_or_default()
                ),
            ),
        };
        Problem::new(status, detail)
            .with_results(&self)
            .into_response()
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
