//! Gauges of the tasks that have not ended.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use metrics::{Gauge, gauge};
use schemas::TaskStatus;

use crate::query::{Level, status_named};

/// Gauge: tasks that have not ended. Labels `engine_type`, `status`.
pub(crate) const TASKS: &str = "taskrunning_tasks";
/// Gauge: silent ones of [`TASKS`], with the same labels.
pub(crate) const SILENT: &str = "taskrunning_tasks_silent";
/// Gauge: stalled ones of [`TASKS`], with the same labels.
pub(crate) const STALLED: &str = "taskrunning_tasks_stalled";
/// Gauge, seconds: age of the newest report of the task that has been without a report the longest, status `Unknown`
/// excepted. Label `engine_type`.
pub(crate) const OLDEST: &str = "taskrunning_oldest_report_age_seconds";

/// `HELP` texts for `/metrics`.
pub(crate) const HELP: [service::telemetry::Help; 4] = [
    (TASKS, "Tasks that have not ended."),
    (
        SILENT,
        "Tasks that have not ended and are silent: no report for longer than usual.",
    ),
    (
        STALLED,
        "Tasks that have not ended and are stalled: they report, but nothing changes.",
    ),
    (
        OLDEST,
        "Age of the newest report of the task that has been without a report the longest, in seconds.",
    ),
];

/// Maximum number of engine types with series of their own: reports choose the names, and each series costs memory in
/// Prometheus.
const ENGINE_TYPES: usize = 20;
/// Label value for all other engine types.
const OTHER: &str = "other";

/// The gauges, and all labels ever set.
#[derive(Default)]
pub(super) struct Gauges {
    engine_types: BTreeSet<String>,
    /// By engine type and status.
    tasks: Series,
    silent: Series,
    stalled: Series,
    /// By engine type.
    ages: Series,
}

/// The series of a metric, by labels: engine type, and status except for [`OLDEST`].
type Series = HashMap<(String, Option<&'static str>), Gauge>;
/// New values of the series.
type Values = BTreeMap<(String, Option<&'static str>), f64>;

impl Gauges {
    pub(super) fn set(&mut self, levels: &[Level]) {
        self.admit(levels);
        let (mut tasks, mut silent, mut ages) = (Values::new(), Values::new(), Values::new());
        for level in levels {
            let labels = self.labels(&level.engine_type, &level.status);
            *tasks.entry(labels.clone()).or_default() += level.tasks as f64;
            *silent.entry(labels.clone()).or_default() += level.silent as f64;
            let oldest = ages.entry((labels.0, None)).or_default();
            *oldest = level.oldest_report_seconds.unwrap_or_default().max(*oldest);
        }
        set(&mut self.tasks, TASKS, tasks);
        set(&mut self.silent, SILENT, silent);
        set(&mut self.ages, OLDEST, ages);
    }

    /// Sets the numbers of stalled tasks, 0 for every series of [`TASKS`] that is not named.
    pub(super) fn set_stalled(&mut self, stalled: Vec<(String, String, i64)>) {
        if self.engine_types.is_empty() {
            return; // no engine type is admitted yet: all would become permanent `other` series
        }
        let mut values: Values = self
            .tasks
            .keys()
            .map(|labels| (labels.clone(), 0.0))
            .collect();
        for (engine_type, status, count) in stalled {
            *values
                .entry(self.labels(&engine_type, &status))
                .or_default() += count as f64;
        }
        set(&mut self.stalled, STALLED, values);
    }

    /// Sets all gauges to NaN while the database is unavailable: stale values would look current.
    pub(super) fn forget(&self) {
        for series in [&self.tasks, &self.silent, &self.ages] {
            series.values().for_each(|gauge| gauge.set(f64::NAN));
        }
        self.forget_stalled();
    }

    pub(super) fn forget_stalled(&self) {
        self.stalled.values().for_each(|gauge| gauge.set(f64::NAN));
    }

    /// Gives engine types series of their own while there is room, those with the most tasks first.
    fn admit(&mut self, levels: &[Level]) {
        let mut tasks: BTreeMap<&str, i64> = BTreeMap::new();
        for level in levels {
            *tasks.entry(&level.engine_type).or_default() += level.tasks;
        }
        let mut by_size: Vec<(&str, i64)> = tasks.into_iter().collect();
        by_size.sort_by_key(|(_, tasks)| -tasks);
        for (engine_type, _) in by_size {
            if self.engine_types.len() < ENGINE_TYPES {
                self.engine_types.insert(engine_type.to_owned());
            }
        }
    }

    fn labels(&self, engine_type: &str, status: &str) -> (String, Option<&'static str>) {
        let known = self.engine_types.contains(engine_type);
        let engine_type = if known { engine_type } else { OTHER };
        // The table has only known statuses, unless it was edited by hand.
        let status = status_named(status).unwrap_or(TaskStatus::Unknown).as_str();
        (engine_type.to_owned(), Some(status))
    }
}

/// Sets every existing series: 0 if it is not named.
fn set(series: &mut Series, name: &'static str, values: Values) {
    for (labels, gauge) in series.iter() {
        if !values.contains_key(labels) {
            gauge.set(0.0);
        }
    }
    for (labels, value) in values {
        let gauge = series
            .entry(labels)
            .or_insert_with_key(|(engine_type, status)| {
                let engine_type = ("engine_type", engine_type.clone());
                match status {
                    Some(status) => gauge!(name, &[engine_type, ("status", (*status).to_owned())]),
                    None => gauge!(name, &[engine_type]),
                }
            });
        gauge.set(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(engine_type: &str, status: &str, tasks: i64) -> Level {
        Level {
            engine_type: engine_type.to_owned(),
            status: status.to_owned(),
            tasks,
            silent: 0,
            oldest_report_seconds: None,
        }
    }

    #[test]
    fn whatever_engines_call_themselves_the_series_are_bounded() {
        let mut gauges = Gauges::default();
        let mut levels: Vec<Level> = (0..500)
            .map(|i| level(&format!("made up {i}"), "Running", 1))
            .collect();
        levels.push(level("spark", "Running", 2));
        levels.push(level("spark", "no status", 2));
        gauges.set(&levels);
        assert!(
            gauges
                .tasks
                .contains_key(&("spark".to_owned(), Some("Running")))
        );
        assert!(
            gauges
                .tasks
                .contains_key(&("spark".to_owned(), Some("Unknown")))
        );
        assert!(
            gauges
                .tasks
                .contains_key(&(OTHER.to_owned(), Some("Running")))
        );
        assert_eq!(gauges.tasks.len(), ENGINE_TYPES + 2);
        assert_eq!(gauges.ages.len(), ENGINE_TYPES + 1);
        gauges.set(&[level("later", "Running", 1_000)]);
        gauges.set_stalled(vec![("later".to_owned(), "Running".to_owned(), 1)]);
        assert_eq!(gauges.tasks.len(), ENGINE_TYPES + 2);
        assert_eq!(gauges.stalled.len(), gauges.tasks.len());
    }
}
