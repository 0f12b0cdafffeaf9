//! `--linkis`: the paths, envelope and names of Apache Linkis' REST API for running tasks, so that its clients can read
//! these tables.
//!
//! ```text
//! /api/rest_j/v1/entrance/{id}/…  ──▶ entrance   ──┐
//! /api/rest_j/v1/jobhistory/…     ──▶ jobhistory ──┴▶ query, as for /api/v1 ──▶ Message {method, status, message, data}
//! ```
//!
//! It corrects some behaviour of Linkis: an ended task keeps its sub-jobs and resources, only a task that succeeded has
//! progress 1.0, `progress` is always a number, and sums do not overflow.

mod entrance;
mod find;
mod jobhistory;
mod message;
mod parameters;
mod task;
mod yarn;

use axum::Extension;

pub(super) use self::message::in_envelope;
use self::yarn::QueueLimits;
use super::options::ServeOptions;
use super::routes::Routes;

/// Prefix of all these paths.
const BASE: &str = "/api/rest_j/v1/";

/// All served routes of Linkis.
pub(super) fn routes(options: &ServeOptions) -> Routes {
    let mut routes = entrance::routes().merge(jobhistory::routes());
    let limits = QueueLimits {
        cores: options.linkis_queue_cores,
        memory_gib: options.linkis_queue_memory_gib,
    };
    routes.router = routes.router.layer(Extension(limits));
    routes
}
