//! Paged lists of tasks.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::cursor::{position, time};
use super::filter::{LARGEST_LIMIT, TaskQuery, check_limit};
use super::item::{TaskItem, item, items_of_page};
use super::list::{Failed, List, Matching, Position};
use super::marks::Judge;
use super::reader::{QueryError, Reader, is_no_text};
use super::sql::{self, Statement};
use super::watermark::Watermark;

/// A page of a list of tasks.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub(crate) struct TaskPage {
    pub(crate) items: Vec<TaskItem>,
    /// The cursor of the next page; null on the last page.
    pub(crate) next: Option<String>,
    /// The offsets up to which events were stored.
    pub(crate) watermark: Watermark,
    /// `consumer expire` removed the reports before this time. A list as of an earlier moment lacks tasks whose last
    /// report by then was removed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) expired_before: Option<Timestamp>,
}

/// The last whole microsecond until a time: that is what a cursor has, and later pages have to judge by the same moment.
/// [`Timestamp::as_microsecond`] would round up before 1970.
fn whole_microsecond(time: Timestamp) -> Timestamp {
    let micros = time.as_nanosecond().div_euclid(1_000);
    Timestamp::from_nanosecond(micros * 1_000).unwrap_or(time)
}

impl Reader {
    /// One page of the matching tasks. Pages of one snapshot neither overlap nor skip a task.
    ///
    /// # Errors
    /// If a parameter or the cursor is invalid, the requested time is before [`expired_before`](Self::expired_before),
    /// or the database fails.
    pub(crate) async fn page(&mut self, query: &TaskQuery) -> Result<TaskPage, QueryError> {
        check_limit(query.limit, LARGEST_LIMIT)?;
        self.list(query, Some(query.limit)).await
    }

    /// As [`page`](Self::page), with a limit beyond [`LARGEST_LIMIT`]; `None`: all tasks.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn list(
        &mut self,
        query: &TaskQuery,
        limit: Option<u32>,
    ) -> Result<TaskPage, QueryError> {
        self.read(query, limit, 0).await
    }

    /// As [`page`](Self::page), but skips the first `skip` tasks, for callers with numbered pages. The database reads
    /// the skipped tasks too.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn numbered_page(
        &mut self,
        query: &TaskQuery,
        skip: u32,
    ) -> Result<TaskPage, QueryError> {
        check_limit(query.limit, LARGEST_LIMIT)?;
        self.read(query, Some(query.limit), skip).await
    }

    async fn read(
        &mut self,
        query: &TaskQuery,
        limit: Option<u32>,
        skip: u32,
    ) -> Result<TaskPage, QueryError> {
        let position: Option<Position> = position(query.cursor.as_deref(), query)?;
        let moment = self.moment(query, position.as_ref())?;
        let list = List {
            query,
            moment,
            dialect: self.session.dialect(),
        };
        let read = list.read(&mut *self.session, position, limit, skip).await;
        let read = match read {
            Ok(read) => Ok(read),
            Err(Failed::Query(error)) => return Err(error),
            Err(Failed::Store(source)) => Err(source),
        };
        let (items, next) = self.answered(read, "the tasks").await?;
        Ok(TaskPage {
            items,
            next,
            watermark: self.watermark().await?,
            expired_before: self.expired_before(),
        })
    }

    /// Number of matching tasks, on all pages.
    ///
    /// # Errors
    /// As [`page`](Self::page).
    pub(crate) async fn count(&mut self, query: &TaskQuery) -> Result<u64, QueryError> {
        let position: Option<Position> = position(query.cursor.as_deref(), query)?;
        let moment = self.moment(query, position.as_ref())?;
        let dialect = self.session.dialect();
        let mut statement = Statement::default();
        let matching = Matching::of(query, moment, dialect, &mut statement);
        let count = format!(
            "SELECT count(*) AS total FROM {} {}",
            matching.tasks,
            sql::clause("WHERE", &matching.conditions)
        );
        let total = self.session.select_one(&count, &statement.values).await;
        let total = total.and_then(|row| row.map_or(Ok(0), |mut row| row.take("total")));
        let total: i64 = self.answered(total, "the tasks").await?;
        Ok(total.unsigned_abs())
    }

    /// One task, as in a list; `None` if there is no such task or it had not reported by then.
    ///
    /// # Errors
    /// If the requested time is before [`expired_before`](Self::expired_before), or the database fails.
    pub(crate) async fn item(
        &mut self,
        exec_id: &str,
        at: Option<Timestamp>,
    ) -> Result<Option<TaskItem>, QueryError> {
        let query = TaskQuery {
            at,
            ..TaskQuery::default()
        };
        let judge = Judge::of(&query, self.moment(&query, None)?);
        if is_no_text(exec_id) {
            return Ok(None);
        }
        let dialect = self.session.dialect();
        let mut statement = Statement::default();
        let chosen = format!(
            "SELECT {} FROM {} WHERE task.exec_id = {}",
            sql::task_names(),
            sql::tasks(dialect, at),
            statement.bind(exec_id),
        );
        let select = items_of_page(&chosen, &judge, dialect, "");
        let row = self.session.select_one(&select, &statement.values).await;
        let item = row.and_then(|row| row.map(|mut row| item(&mut row, &judge)).transpose());
        self.answered(item, &format!("the task {exec_id}")).await
    }

    /// The time as of which silence, stalling and running times are judged.
    fn moment(
        &self,
        query: &TaskQuery,
        position: Option<&Position>,
    ) -> Result<Timestamp, QueryError> {
        query.filter.check()?;
        self.require_history(query.at)?;
        match position {
            Some(position) => time(position.moment),
            None => Ok(whole_microsecond(query.at.unwrap_or_else(Timestamp::now))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_judged_as_of_one_microsecond() {
        for (text, micros) in [
            ("2026-11-25T14:05:00.000000999Z", 1_795_615_500_000_000),
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59.999999001Z", -1),
            ("1960-01-01T00:00:00.0000005Z", -315_619_200_000_000),
            ("-009999-01-02T01:59:59Z", -377_705_023_201_000_000),
        ] {
            let first: Timestamp = text.parse().unwrap();
            let first = whole_microsecond(first);
            assert_eq!(first.as_microsecond(), micros, "{text}");
            // As a cursor has it.
            assert_eq!(time(micros).unwrap(), first, "{text}");
        }
    }
}
