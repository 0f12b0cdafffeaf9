//! Query parameters of Linkis' lists.

use jiff::{SignedDuration, Timestamp};

use crate::query::{LARGEST_LIMIT, TaskFilter, TaskOrder, TaskQuery};
use crate::serve::caller::Caller;
use crate::serve::parameters::Parameters;
use crate::serve::problem::Problem;

/// Default page size, in rows.
const PAGE_SIZE: u32 = 20;
/// Maximum number of rows before a page.
const SKIPPED_ROWS: u32 = 100_000;
const DAY: SignedDuration = SignedDuration::from_hours(24);
/// 9999-12-30T22:00:00Z: the last time that [`Timestamp`] supports.
const LAST_MILLIS: i64 = 253_402_207_200_000;
/// Filters on fields that reports do not have. Ignoring them would return other tasks than requested.
const NOT_IN_REPORTS: [&str; 4] = ["creator", "instance", "runType", "startTaskID"];

/// A query and the page's position.
pub(super) struct ListRequest {
    pub(super) query: TaskQuery,
    /// Number of tasks before the page.
    pub(super) skip: u32,
}

/// Parameters of `/jobhistory/list`.
///
/// # Errors
/// 400 if a parameter is invalid, 403 if another user's tasks are requested.
pub(super) fn listed(parameters: Parameters, caller: &Caller) -> Result<ListRequest, Problem> {
    let mut parameters = parameters.lenient();
    let end = parameters.read("endDate", millis);
    // Linkis treats 0 as no lower bound.
    let start = parameters.read("startDate", millis);
    let filter = TaskFilter {
        status: statuses(&mut parameters, &[]),
        user: parameters.text("proxyUser"),
        engine_type: parameters.text("executeApplicationName"),
        engine_instance: parameters.text("engineInstance"),
        job_id: parameters.text("taskID"),
        ..created(start, end)
    };
    asked(parameters, filter, caller)
}

/// Parameters of `/jobhistory/listundonetasks`; by default tasks of the last day.
///
/// # Errors
/// As [`listed`].
pub(super) fn undone(parameters: Parameters, caller: &Caller) -> Result<ListRequest, Problem> {
    let mut parameters = parameters.lenient();
    let end = parameters.read("endDate", millis);
    let end = end.unwrap_or_else(Timestamp::now);
    let start = parameters.read("startDate", millis);
    let start = start.filter(|start| *start != Timestamp::UNIX_EPOCH);
    let start = start.or_else(|| end.checked_sub(DAY).ok());
    let filter = TaskFilter {
        status: statuses(&mut parameters, &["Running", "Inited", "Scheduled"]),
        engine_type: parameters.text("engineType"),
        ..created(start, Some(end))
    };
    asked(parameters, filter, caller)
}

/// Newest first.
fn asked(
    mut parameters: Parameters,
    mut filter: TaskFilter,
    caller: &Caller,
) -> Result<ListRequest, Problem> {
    for name in NOT_IN_REPORTS {
        if parameters.text(name).is_some() {
            let why =
                "reports do not contain this, so tasks cannot be filtered by it; leave it out";
            parameters.refuse(name, why);
        }
    }
    let size = parameters.number("pageSize", 1, LARGEST_LIMIT);
    let size = size.unwrap_or(PAGE_SIZE);
    let now = parameters.number("pageNow", 1, 1 + SKIPPED_ROWS / size);
    parameters.end()?;
    filter.user = caller.narrow(filter.user)?;
    Ok(ListRequest {
        skip: (now.unwrap_or(1) - 1) * size,
        query: TaskQuery {
            filter,
            order: TaskOrder::Started,
            limit: size,
            ..TaskQuery::default()
        },
    })
}

/// Between two times, inclusive; if they are equal, a day from that time on.
fn created(start: Option<Timestamp>, end: Option<Timestamp>) -> TaskFilter {
    let end = match end {
        Some(end) if start == Some(end) => end.checked_add(DAY).ok(),
        end => end,
    };
    // Linkis' times are in milliseconds; all of the last one is included.
    let behind = end.and_then(|end| end.checked_add(SignedDuration::from_millis(1)).ok());
    TaskFilter {
        started_after: start,
        started_before: behind,
        ..TaskFilter::default()
    }
}

/// Statuses, separated by commas.
fn statuses(parameters: &mut Parameters, otherwise: &[&str]) -> Vec<String> {
    let given = parameters.text("status");
    let given: Vec<&str> = match &given {
        Some(given) => given.split(',').map(str::trim).collect(),
        None => otherwise.to_vec(),
    };
    let named = given.into_iter().filter(|status| !status.is_empty());
    named.map(str::to_owned).collect()
}

fn millis(text: &str) -> Result<Timestamp, &'static str> {
    let millis = text.parse().ok();
    let millis = millis.filter(|millis| (0..=LAST_MILLIS).contains(millis));
    let time = millis.and_then(|millis| Timestamp::from_millisecond(millis).ok());
    time.ok_or("expected milliseconds since 1970, up to the year 9999, as in 1764079500000")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    #[test]
    fn a_span_includes_its_ends_and_one_moment_is_a_day() {
        let span = created(Some(at(5)), Some(at(7)));
        assert_eq!(span.started_after, Some(at(5)));
        assert_eq!(span.started_before, Some(at(8)));
        let day = created(Some(at(5)), Some(at(5)));
        assert_eq!(day.started_before, Some(at(86_400_006)));
        assert!(created(None, None).is_empty());
    }

    #[test]
    fn times_are_milliseconds_since_1970() {
        assert_eq!(millis("1764079500000"), Ok(at(1_764_079_500_000)));
        for text in [
            "",
            "noon",
            "1.5",
            "-1",
            "253402207200001",
            "9223372036854775807",
        ] {
            assert!(millis(text).is_err(), "{text}");
        }
    }
}
