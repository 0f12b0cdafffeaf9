//! Recent changes, for clients that reconnect.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::query::{Change, Watermark};

/// Maximum number of tasks in the ring, about 1 KiB each.
pub(super) const TASKS: usize = 20_000;

/// The newest change of each recently changed task. Older changes of the same task are dropped, so the ring reaches
/// back until [`TASKS`] different tasks have changed.
#[derive(Debug)]
pub(super) struct Ring {
    limit: usize,
    entries: BTreeMap<u64, Entry>,
    by_task: HashMap<i64, u64>,
    next: u64,
    /// A client with a watermark below this may have missed a change that was dropped.
    floor: Watermark,
    /// The same for [late](Change::is_late) changes: a client whose watermark this covers may have missed one.
    late_floor: Option<Watermark>,
    upto: Watermark,
}

#[derive(Debug)]
struct Entry {
    change: Arc<Change>,
    /// The watermark of its poll.
    upto: Arc<Watermark>,
}

/// What a client receives after a watermark.
#[derive(Debug)]
pub(super) enum Resume {
    /// These changes, oldest first; then it is at the end of the ring.
    Changes(Vec<Arc<Change>>),
    /// Nothing: its watermark is beyond the ring's end.
    Ahead,
    /// A reset: a change that it missed may have been dropped.
    Lost,
}

impl Ring {
    /// An empty ring at this watermark.
    pub(super) fn new(limit: usize, begin: Watermark) -> Self {
        Self {
            limit,
            entries: BTreeMap::new(),
            by_task: HashMap::new(),
            next: 0,
            floor: begin.clone(),
            late_floor: None,
            upto: begin,
        }
    }

    /// All changes up to this watermark were pushed.
    pub(super) fn upto(&self) -> &Watermark {
        &self.upto
    }

    /// Adds all changes up to this watermark.
    pub(super) fn push(&mut self, changes: &[Arc<Change>], upto: &Watermark) {
        self.upto = upto.clone();
        let upto = Arc::new(upto.clone());
        for change in changes {
            if let Some(older) = self.by_task.insert(change.task_id, self.next) {
                self.entries.remove(&older);
            }
            let entry = Entry {
                change: change.clone(),
                upto: upto.clone(),
            };
            self.entries.insert(self.next, entry);
            self.next += 1;
        }
        while self.entries.len() > self.limit
            && let Some((_, gone)) = self.entries.pop_first()
        {
            self.by_task.remove(&gone.change.task_id);
            if gone.change.is_late {
                self.late_floor = Some((*gone.upto).clone());
            } else {
                self.floor = (*gone.upto).clone();
            }
        }
    }

    /// The changes after this watermark.
    pub(super) fn after(&self, seen: &Watermark) -> Resume {
        if !seen.covers(&self.floor) {
            return Resume::Lost;
        }
        if let Some(late) = &self.late_floor
            && late.covers(seen)
        {
            return Resume::Lost;
        }
        if !self.upto.covers(seen) {
            return Resume::Ahead;
        }
        let mut missed = Vec::new();
        for Entry { change, upto } in self.entries.values().rev() {
            // A late change has no place among the offsets: it goes to every client that may have left before it was
            // found.
            let is_behind = seen.covers(upto);
            if is_behind && **upto != *seen {
                break;
            }
            let item = &change.item;
            if change.is_late || item.event_offset >= seen.next_offset(item.event_partition) {
                missed.push(change.clone());
            }
        }
        missed.reverse();
        Resume::Changes(missed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{change, late};
    use super::*;

    fn watermark(text: &str) -> Watermark {
        text.parse().unwrap()
    }

    fn offsets(resume: Resume) -> Vec<i64> {
        match resume {
            Resume::Changes(changes) => changes.iter().map(|c| c.item.event_offset).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn who_comes_back_gets_the_newest_change_of_each_task_that_it_missed() {
        let mut ring = Ring::new(10, watermark("0:5,1:7"));
        ring.push(
            &[change(1, 0, 5), change(2, 0, 6), change(3, 1, 7)],
            &watermark("0:7,1:8"),
        );
        ring.push(&[change(1, 0, 9)], &watermark("0:10,1:8"));
        assert_eq!(offsets(ring.after(&watermark("0:5,1:7"))), [6, 7, 9]);
        assert_eq!(offsets(ring.after(&watermark("0:7,1:7"))), [7, 9]);
        assert_eq!(offsets(ring.after(&watermark("0:7,1:8"))), [9]);
        assert_eq!(offsets(ring.after(&watermark("0:10,1:8"))), [0; 0]);
        assert!(matches!(ring.after(&watermark("0:4,1:8")), Resume::Lost));
        assert!(matches!(ring.after(&watermark("0:10")), Resume::Lost));
        assert!(matches!(ring.after(&watermark("0:11,1:8")), Resume::Ahead));
        assert!(matches!(
            ring.after(&watermark("0:9,1:8,2:1")),
            Resume::Ahead
        ));
    }

    #[test]
    fn a_partition_that_is_new_is_missed_by_nobody() {
        let mut ring = Ring::new(10, watermark("0:5"));
        ring.push(&[change(1, 1, 0)], &watermark("0:5,1:1"));
        assert_eq!(offsets(ring.after(&watermark("0:5"))), [0]);
        assert_eq!(offsets(ring.after(&watermark("0:5,1:1"))), [0; 0]);
    }

    #[test]
    fn what_is_forgotten_is_lost_to_whoever_had_not_seen_it() {
        let mut ring = Ring::new(2, watermark("0:0"));
        ring.push(&[change(1, 0, 0)], &watermark("0:1"));
        ring.push(&[change(2, 0, 1)], &watermark("0:2"));
        // A task that changes again does not evict others.
        ring.push(&[change(2, 0, 2)], &watermark("0:3"));
        assert_eq!(offsets(ring.after(&watermark("0:0"))), [0, 2]);
        ring.push(&[change(3, 0, 3)], &watermark("0:4"));
        assert!(matches!(ring.after(&watermark("0:0")), Resume::Lost));
        assert_eq!(offsets(ring.after(&watermark("0:1"))), [2, 3]);
    }

    #[test]
    fn a_late_change_goes_to_all_who_may_have_left_before_it_came() {
        let mut ring = Ring::new(2, watermark("0:0"));
        ring.push(&[change(1, 0, 0)], &watermark("0:5"));
        ring.push(&[late(2, 0, 3)], &watermark("0:5"));
        assert_eq!(offsets(ring.after(&watermark("0:0"))), [0, 3]);
        assert_eq!(offsets(ring.after(&watermark("0:5"))), [3]);
        ring.push(&[change(3, 0, 5)], &watermark("0:6"));
        assert_eq!(offsets(ring.after(&watermark("0:5"))), [3, 5]);
        assert_eq!(offsets(ring.after(&watermark("0:6"))), [0; 0]);
        ring.push(&[change(4, 0, 6)], &watermark("0:7"));
        assert!(matches!(ring.after(&watermark("0:5")), Resume::Lost));
        assert_eq!(offsets(ring.after(&watermark("0:6"))), [6]);
    }
}
