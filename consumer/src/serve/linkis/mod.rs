//! `--linkis`: the paths, envelope and names by which Apache Linkis tells of running tasks, so that its clients can read
//! these tables.
//!
//! ```text
//! /api/rest_j/v1/entrance/{id}/…  ──▶ entrance   ──┐
//! /api/rest_j/v1/jobhistory/…     ──▶ jobhistory ──┴▶ query, as for /api/v1 ──▶ Message {method, status, message, data}
//! ```
//!
//! It differs from Linkis where that is at fault: a task that has ended keeps its sub-jobs and what it held, only a task
//! that succeeded is at 1.0, `progress` is a number always, and sums do not overflow.

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

/// All of these paths begin so.
const BASE: &str = "/api/rest_j/v1/";

/// All routes of Linkis that are served.
pub(super) fn routes(options: &ServeOptions) -> Routes {
    let mut routes = entrance::routes().merge(jobhistory::routes());
    let limits = QueueLimits {
        cores: options.linkis_queue_cores,
        memory_gib: options.linkis_queue_memory_gib,
    };
    routes.router = routes.router.layer(Extension(limits));
    routes
}
