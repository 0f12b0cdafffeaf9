//! A task's values over time, thinned for a plot, and its status changes.
//!
//! The database concatenates the rows of a history into one text: passing rows one by one takes longer than finding
//! them.

mod line;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use line::{Line, line};

use super::filter::check_text;
use super::reader::{QueryError, Reader, is_no_text};
use super::thinning::{Sample, thin};
use super::time::{optional_rfc3339, rfc3339};
use super::watermark::Watermark;
use crate::store::{Dialect, Session, StoreError, Value};
use crate::tables::{Kind, Table};

/// Default number of points of a series.
pub(crate) const DEFAULT_POINTS: u32 = 500;
/// Maximum number of points of a series.
pub(crate) const MAX_POINTS: u32 = 10_000;
/// Enough for the first, last, least and greatest value.
const MIN_POINTS: u32 = 4;
/// Maximum number of metrics per query.
const MAX_METRICS: usize = 20;
/// Maximum number of status changes listed.
const MAX_MARKS: usize = 1_000;
/// Approximate number of values of a history read at once, about 60 bytes each.
const SLICE_VALUES: i64 = 250_000;

/// Selects series of a task.
#[derive(Clone, Debug)]
pub(crate) struct SeriesQuery {
    pub(crate) exec_id: String,
    /// Only if the task belongs to this user.
    pub(crate) user: Option<String>,
    /// Only reports at this time or later.
    pub(crate) from: Option<Timestamp>,
    /// Only reports at this time or earlier.
    pub(crate) to: Option<Timestamp>,
    /// Maximum number of points of each series, from 4 to 10,000.
    pub(crate) points: u32,
    /// Names of metrics, in addition to progress, memory, cores and instances; at most 20.
    pub(crate) metrics: Vec<String>,
}

/// The series of a task.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TaskSeries {
    pub(crate) exec_id: String,
    #[serde(serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) from: Option<Timestamp>,
    #[serde(serialize_with = "optional_rfc3339")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) to: Option<Timestamp>,
    /// `progress` (0 to 1), `memory_bytes`, `cores`, `instances` (sums over the applications of a report), and
    /// `metrics.NAME` for each requested metric, in this order.
    pub(crate) series: Vec<Series>,
    /// The first status, and each status that differs from the one before.
    pub(crate) marks: Vec<Mark>,
    /// Number of changes omitted before the last mark.
    pub(crate) marks_left_out: u64,
    pub(crate) watermark: Watermark,
    /// `consumer expire` removed the reports before this time.
    #[serde(
        serialize_with = "optional_rfc3339",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// One value over time.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Number of reports that have the value. A metric's true and false are 1 and 0; text is omitted.
    pub(crate) reports: u64,
    /// Sorted by time: all values, or the first, the last, and the least and greatest of each of equal time intervals.
    pub(crate) points: Vec<Point>,
}

/// A value of a report.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub(crate) struct Point {
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) reported_at: Timestamp,
    /// Finite.
    pub(crate) value: f64,
}

/// A change of the task's status.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, ToSchema)]
pub(crate) struct Mark {
    #[serde(serialize_with = "rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub(crate) reported_at: Timestamp,
    pub(crate) status: String,
}

impl SeriesQuery {
    fn check(&self) -> Result<(), QueryError> {
        let refused = |name, why: String| Err(QueryError::Parameter { name, why });
        if !(MIN_POINTS..=MAX_POINTS).contains(&self.points) {
            return refused(
                "points",
                format!(
                    "{} is out of range; expected {MIN_POINTS} to {MAX_POINTS}, {DEFAULT_POINTS} by default",
                    self.points
                ),
            );
        }
        if self.metrics.len() > MAX_METRICS {
            return refused(
                "metric",
                format!(
                    "{} metrics requested; ask for at most {MAX_METRICS} at once",
                    self.metrics.len()
                ),
            );
        }
        for name in &self.metrics {
            check_text("metric", Some(name))?;
        }
        match (self.from, self.to) {
            (Some(from), Some(to)) if to < from => {
                refused("to", format!("{to} is before from, {from}"))
            }
            _ => Ok(()),
        }
    }
}

impl Reader {
    /// A task's series between two times; `None` if there is no such task or it belongs to another user.
    ///
    /// # Errors
    /// [`QueryError::Parameter`], or if the database fails.
    pub(crate) async fn series(
        &mut self,
        query: &SeriesQuery,
    ) -> Result<Option<TaskSeries>, QueryError> {
        query.check()?;
        let expired_before = self.expired_before();
        let series = task_series(&mut *self.session, query, expired_before).await;
        self.answered(series, &format!("the task {}", query.exec_id))
            .await
    }
}

async fn task_series(
    session: &mut dyn Session,
    query: &SeriesQuery,
    expired_before: Option<Timestamp>,
) -> Result<Option<TaskSeries>, StoreError> {
    if is_no_text(&query.exec_id) {
        return Ok(None);
    }
    let select = "SELECT task_id, engine_user FROM task WHERE exec_id = $1";
    let exec_id = [query.exec_id.as_str().into()];
    let Some(mut task) = session.select_one(select, &exec_id).await? else {
        return Ok(None);
    };
    let (task_id, user): (i64, String) = (task.take("task_id")?, task.take("engine_user")?);
    if query.user.as_ref().is_some_and(|asked| *asked != user) {
        return Ok(None);
    }

    let mut marks = Marks::default();
    let mut history = History {
        session: &mut *session,
        task_id,
        query,
    };
    let mut series = history.progress(&mut marks).await?;
    series.extend(history.resource().await?);
    if !query.metrics.is_empty() {
        series.extend(history.metrics().await?);
    }
    Ok(Some(TaskSeries {
        exec_id: query.exec_id.clone(),
        from: query.from,
        to: query.to,
        series,
        marks: marks.marks,
        marks_left_out: marks.left_out,
        watermark: Watermark::read(session).await?,
        expired_before,
    }))
}

/// Collects status changes from reports in order.
#[derive(Default)]
struct Marks {
    marks: Vec<Mark>,
    left_out: u64,
}

impl Marks {
    fn add(&mut self, at: i64, status: &str) {
        if self.marks.last().is_some_and(|last| last.status == status) {
            return;
        }
        let Ok(reported_at) = Timestamp::from_microsecond(at) else {
            return;
        };
        if self.marks.len() == MAX_MARKS {
            self.marks.pop();
            self.left_out += 1;
        }
        let status = status.to_owned();
        self.marks.push(Mark {
            reported_at,
            status,
        });
    }
}

/// A series that is read slice by slice.
struct Thinned {
    name: String,
    reports: u64,
    samples: Vec<Sample>,
    slice: Vec<Sample>,
    points: usize,
}

impl Thinned {
    fn new(name: impl Into<String>, points: u32) -> Self {
        Self {
            name: name.into(),
            reports: 0,
            samples: Vec::new(),
            slice: Vec::new(),
            points: points as usize,
        }
    }

    fn add(&mut self, at: i64, order: (i64, i32, i64), value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.reports += 1;
            self.slice.push(Sample { at, order, value });
        }
    }

    fn end_slice(&mut self) {
        let slice = thin(std::mem::take(&mut self.slice), self.points);
        self.samples.extend(slice);
    }

    fn series(self) -> Series {
        let points = thin(self.samples, self.points).into_iter();
        Series {
            name: self.name,
            reports: self.reports,
            points: points
                .filter_map(|sample| {
                    let reported_at = Timestamp::from_microsecond(sample.at).ok()?;
                    let value = sample.value;
                    Some(Point { reported_at, value })
                })
                .collect(),
        }
    }
}

/// A time range of the history, inclusive.
#[derive(Clone, Copy, Default)]
struct Slice {
    from: Option<Timestamp>,
    to: Option<Timestamp>,
    /// Only events at these offsets, inclusive.
    offsets: Option<(i64, i64)>,
}

impl Slice {
    fn condition(self, dialect: &dyn Dialect) -> String {
        let bound = |comparison: &str, time: Option<Timestamp>| {
            time.map_or_else(String::new, |time| {
                format!(" AND reported_at {comparison} {}", dialect.time(time))
            })
        };
        let offsets = self.offsets.map_or_else(String::new, |(from, to)| {
            format!(" AND event_offset BETWEEN {from} AND {to}")
        });
        format!(
            "task_id = $1{}{}{offsets}",
            bound(">=", self.from),
            bound("<=", self.to)
        )
    }
}

/// The histories of a task.
struct History<'a> {
    session: &'a mut dyn Session,
    task_id: i64,
    query: &'a SeriesQuery,
}

impl History<'_> {
    async fn progress(&mut self, marks: &mut Marks) -> Result<Vec<Series>, StoreError> {
        let dialect = self.session.dialect();
        let line = line(
            dialect,
            "sequence",
            &["progress".to_owned()],
            Some("status"),
        );
        let mut progress = Thinned::new("progress", self.query.points);
        for slice in self.slices(Table::Progress, 1).await? {
            let rows = format!(
                "SELECT {} AS joined FROM task_progress WHERE {}",
                dialect.lines(&line),
                slice.condition(dialect)
            );
            let mut reports = Vec::new();
            let text = self.lines(&rows, &[]).await?;
            for line in text.lines() {
                let line = Line::read(line)?;
                progress.add(line.at, line.order, line.values().next().flatten());
                reports.push((line.at, line.order, line.last()));
            }
            reports.sort_unstable();
            for (at, _, status) in reports {
                marks.add(at, status);
            }
            progress.end_slice();
        }
        Ok(vec![progress.series()])
    }

    async fn resource(&mut self) -> Result<Vec<Series>, StoreError> {
        let dialect = self.session.dialect();
        let columns = ["memory_bytes", "cores", "instances"];
        // One event has a row per application. Sums are floating-point, because two valid values may overflow an
        // integer.
        let sums = columns.map(|column| format!("sum({})", dialect.cast(column, Kind::F64)));
        let line = line(dialect, "0", &sums, None);
        let of_slice = |slice: Slice| {
            format!(
                "SELECT {} AS joined FROM (SELECT {line} AS line FROM task_resource WHERE {} \
                 GROUP BY reported_at, event_partition, event_offset) AS reports",
                dialect.lines("line"),
                slice.condition(dialect)
            )
        };
        let series = columns.map(|column| Thinned::new(column, self.query.points));
        self.values(Table::Resource, series.into(), of_slice, &[])
            .await
    }

    async fn metrics(&mut self) -> Result<Vec<Series>, StoreError> {
        let dialect = self.session.dialect();
        let names = &self.query.metrics;
        let metrics: Vec<String> = (2..names.len() + 2)
            .map(|place| dialect.metric(&format!("${place}")))
            .collect();
        let line = line(dialect, "0", &metrics, None);
        let of_slice = |slice: Slice| {
            format!(
                "SELECT {} AS joined FROM task_metrics WHERE {}",
                dialect.lines(&line),
                slice.condition(dialect)
            )
        };
        let series = names.iter();
        let series = series
            .map(|name| Thinned::new(format!("metrics.{name}"), self.query.points))
            .collect();
        let names: Vec<Value> = names.iter().map(|name| name.as_str().into()).collect();
        self.values(Table::Metrics, series, of_slice, &names).await
    }

    /// Reads one value of each series per row, slice by slice.
    async fn values(
        &mut self,
        table: Table,
        mut series: Vec<Thinned>,
        of_slice: impl Fn(Slice) -> String + Send,
        parameters: &[Value],
    ) -> Result<Vec<Series>, StoreError> {
        for slice in self.slices(table, series.len()).await? {
            let text = self.lines(&of_slice(slice), parameters).await?;
            for line in text.lines() {
                let line = Line::read(line)?;
                for (one, value) in series.iter_mut().zip(line.values()) {
                    one.add(line.at, line.order, value);
                }
            }
            series.iter_mut().for_each(Thinned::end_slice);
        }
        Ok(series.into_iter().map(Thinned::series).collect())
    }

    async fn lines(&mut self, select: &str, parameters: &[Value]) -> Result<String, StoreError> {
        let parameters = [&[self.task_id.into()], parameters].concat();
        let row = self.session.select_one(select, &parameters).await?;
        let text: Option<Option<String>> = row.map(|mut row| row.take("joined")).transpose()?;
        Ok(text.flatten().unwrap_or_default())
    }

    /// Divides the query's time range into slices of rows with at most `values` each, earliest first. Rows of one microsecond
    /// are divided by their events' offsets: the application rows of an event stay together.
    async fn slices(&mut self, table: Table, values: usize) -> Result<Vec<Slice>, StoreError> {
        let dialect = self.session.dialect();
        let rows = SLICE_VALUES.min(dialect.lines_at_once()) / (values as i64).max(1);
        let whole = Slice {
            from: self.query.from,
            to: self.query.to,
            offsets: None,
        };
        // Counting needs only the index.
        if self.count(table, Slice::default()).await? <= rows {
            return Ok(vec![whole]);
        }
        let mut slices = Vec::new();
        let times = ["min(reported_at)", "max(reported_at)"].map(|it| dialect.epoch_micros(it));
        let Some(ends) = self.ends(table, whole, times).await? else {
            return Ok(slices);
        };
        let mut pending: Vec<(i64, i64)> = vec![ends];
        while let Some((from, to)) = pending.pop() {
            let slice = Slice {
                from: Timestamp::from_microsecond(from).ok(),
                to: Timestamp::from_microsecond(to).ok(),
                offsets: None,
            };
            if self.count(table, slice).await? <= rows {
                slices.push(slice);
            } else if from < to {
                let middle = from.midpoint(to);
                pending.extend([(middle + 1, to), (from, middle)]);
            } else {
                slices.extend(self.slices_of_moment(table, slice, rows).await?);
            }
        }
        Ok(slices)
    }

    async fn slices_of_moment(
        &mut self,
        table: Table,
        moment: Slice,
        rows: i64,
    ) -> Result<Vec<Slice>, StoreError> {
        let mut slices = Vec::new();
        let offsets = ["min(event_offset)", "max(event_offset)"].map(str::to_owned);
        let mut pending = Vec::from_iter(self.ends(table, moment, offsets).await?);
        while let Some((from, to)) = pending.pop() {
            let slice = Slice {
                offsets: Some((from, to)),
                ..moment
            };
            // Of one offset, each partition has one event.
            if from == to || self.count(table, slice).await? <= rows {
                slices.push(slice);
            } else {
                let middle = from.midpoint(to);
                pending.extend([(middle + 1, to), (from, middle)]);
            }
        }
        Ok(slices)
    }

    /// The least and the greatest of a number over the rows of a slice; `None` if there is none.
    async fn ends(
        &mut self,
        table: Table,
        slice: Slice,
        [least, greatest]: [String; 2],
    ) -> Result<Option<(i64, i64)>, StoreError> {
        let condition = slice.condition(self.session.dialect());
        let select = format!(
            "SELECT {least} AS least, {greatest} AS greatest FROM {table} WHERE {condition}"
        );
        let task_id = [self.task_id.into()];
        let Some(mut ends) = self.session.select_one(&select, &task_id).await? else {
            return Ok(None);
        };
        let (least, greatest): (Option<i64>, Option<i64>) =
            (ends.take("least")?, ends.take("greatest")?);
        Ok(least.zip(greatest))
    }

    async fn count(&mut self, table: Table, slice: Slice) -> Result<i64, StoreError> {
        let condition = slice.condition(self.session.dialect());
        let select = format!("SELECT count(*) AS held FROM {table} WHERE {condition}");
        let task_id = [self.task_id.into()];
        let row = self.session.select_one(&select, &task_id).await?;
        row.map_or(Ok(0), |mut row| row.take("held"))
    }
}
