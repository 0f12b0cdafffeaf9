//! Reads the tables, now or as of an earlier time, for the command line, the HTTP API, the page and the terminal view.
//!
//! ```text
//! Reader::open ──▶ one snapshot ──▶ page(query)               ──▶ TaskPage
//!                               ──▶ task(exec_id, at, limit) ──▶ TaskDetails
//!                               ──▶ series(query)             ──▶ TaskSeries
//!                               ──▶ usage(query)              ──▶ Usage
//!                               ──▶ jobs(query)               ──▶ JobPage
//!                               ──▶ engines(query)            ──▶ EnginePage
//!                               ──▶ changes(tracker)          ──▶ Changes
//!                               ──▶ levels(thresholds)        ──▶ Vec<Level>
//! ```
//!
//! A [`Reader`] returns values and typed errors. It prints and logs nothing, and keeps no state except its connection.

mod changes;
mod cursor;
mod engines;
mod filter;
mod item;
mod jobs;
mod last_progress;
mod levels;
mod list;
mod marks;
mod model;
mod page;
mod reader;
mod row;
mod series;
mod sql;
mod thinning;
mod time;
mod usage;
mod watermark;

pub(crate) use changes::{Change, ChangedTask, Changes, Ownership, PreviousStatus, Tracker};
pub(crate) use engines::{EngineItem, EnginePage, EnginesQuery};
#[cfg(test)]
pub(crate) use filter::STATUSES;
pub(crate) use filter::{
    DEFAULT_LIMIT, LARGEST_LIMIT, TaskFilter, TaskOrder, TaskQuery, Thresholds, status_named,
};
pub(crate) use item::TaskItem;
pub(crate) use jobs::{JobItem, JobPage, JobsQuery};
pub(crate) use last_progress::LastProgress;
pub(crate) use levels::Level;
#[cfg(test)]
pub(crate) use model::{Metrics, Task};
pub(crate) use model::{Report, Resource, Sequences, SubJobs, TaskDetails};
pub(crate) use page::TaskPage;
pub(crate) use reader::{QueryError, Reader};
pub(crate) use series::{DEFAULT_POINTS, MAX_POINTS, Series, SeriesQuery, TaskSeries};
#[cfg(test)]
pub(crate) use series::{Mark, Point};
pub(crate) use usage::{
    DEFAULT_GAP, DEFAULT_LIMIT as DEFAULT_USAGE_LIMIT, MAX_LIMIT as MAX_USAGE_LIMIT, Usage,
    UsageBy, UsageEvery, UsageItem, UsageQuery,
};
pub(crate) use watermark::Watermark;
