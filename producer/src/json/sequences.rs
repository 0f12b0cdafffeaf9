//! The numbers of reports that leave `sequence` out.

use std::collections::HashMap;

use schemas::TaskRunningInfo;

/// Tasks whose reports are counted at a time.
pub(super) const COUNTED_TASKS_MAX: usize = 100_000;

/// Counts each task's reports, for those without `sequence`.
#[derive(Default)]
pub(crate) struct Sequences(pub(super) HashMap<String, Counted>);

/// A task that has not ended.
pub(crate) struct Counted {
    next: i64,
    /// Whether its last report had no number of its own.
    left_out: bool,
}

impl Sequences {
    pub(super) fn next(&self, exec_id: &str) -> Option<i64> {
        let full = self.0.len() >= COUNTED_TASKS_MAX;
        match self.0.get(exec_id) {
            None if full => None,
            counted => Some(counted.map_or(0, |counted| counted.next)),
        }
    }

    pub(super) fn note(&mut self, info: &TaskRunningInfo, left_out: bool) {
        let room = self.0.len() < COUNTED_TASKS_MAX;
        if info.status.is_final() {
            self.0.remove(&info.exec_id);
        } else if room || self.0.contains_key(&info.exec_id) {
            let next = info.sequence.saturating_add(1);
            self.0
                .insert(info.exec_id.clone(), Counted { next, left_out });
        }
    }

    /// Of the tasks that were numbered here and have not ended: how many, and one of them.
    pub(crate) fn unfinished(&self) -> Option<(usize, &str)> {
        let mut tasks = self.0.iter().filter(|(_, counted)| counted.left_out);
        let (first, _) = tasks.next()?;
        Some((tasks.count() + 1, first))
    }
}
