//! What the clusters of a run share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::options::Options;
use crate::polling::complaints::Complaints;
use crate::polling::server::Server;
use crate::session::LiveReports;

/// What all clusters of a run share.
pub(super) struct Run {
    pub(super) options: Options,
    pub(super) history: Option<Server>,
    pub(super) history_complaints: Mutex<Complaints>,
    pub(super) reports: LiveReports,
}

impl Run {
    pub(super) fn history_complaints(&self) -> MutexGuard<'_, Complaints> {
        self.history_complaints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
