//! The paths that are served, and what each takes.

use axum::http::StatusCode;

use super::items::{Format, items};
use super::problem::Problem;

/// A path that takes POST requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Endpoint {
    /// TaskRunningInfo in JSON: one, an array, or lines.
    Reports,
    /// One OpenLineage event.
    Lineage,
    /// An array of OpenLineage events, or lines.
    LineageBatch,
}

impl Endpoint {
    pub(super) const ALL: [Self; 3] = [Self::Reports, Self::Lineage, Self::LineageBatch];

    /// For events, the paths that OpenLineage's clients use.
    pub(super) fn route(self) -> &'static str {
        match self {
            Self::Reports => "/api/v1/reports",
            Self::Lineage => "/api/v1/lineage",
            Self::LineageBatch => "/api/v1/lineage/batch",
        }
    }

    /// Largest body, compressed and decompressed. A Spark query's event has its plans, and can be of 23 MB.
    pub(super) fn body_max_bytes(self) -> usize {
        match self {
            Self::Reports => 16 << 20,
            Self::Lineage | Self::LineageBatch => 32 << 20,
        }
    }

    /// The JSON texts of a body.
    ///
    /// # Errors
    /// As [`items()`]; 400 if there are several where one is expected.
    pub(super) fn items(self, format: Format, body: &[u8]) -> Result<Vec<&[u8]>, Problem> {
        let items = items(format, body)?;
        let is_one = items.len() == 1 && !body.trim_ascii_start().starts_with(b"[");
        match self {
            Self::Lineage if !is_one => Err(Problem::new(
                StatusCode::BAD_REQUEST,
                format!(
                    "expected one event; send several to {}",
                    Self::LineageBatch.route()
                ),
            )),
            _ => Ok(items),
        }
    }
}
