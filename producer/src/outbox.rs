//! A bounded queue of reports that wait for Kafka. Pure: `Delivery` moves them.
//!
//! What happens to a new report while Kafka is away:
//!
//! | In the queue | The new report | Counted |
//! | --- | --- | --- |
//! | an unsent report of the same task that is not final | takes its place | `replaced` |
//! | room | is appended | |
//! | no room, but a report that is not final | is appended; the oldest that is not final is dropped | `dropped` |
//! | no room, all final | not final: is refused | `dropped` |
//! | no room, all final | final: is refused | `lost` |
//!
//! So a final report is never replaced and never dropped for another. At most one report of a task is in flight: a report
//! in Kafka's client can no longer be replaced, and the task's reports stay in order whatever happens to them there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// An encoded report.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Report {
    pub(crate) exec_id: String,
    /// Whether its status is final.
    pub(crate) last: bool,
    /// In single-object encoding.
    pub(crate) value: Vec<u8>,
}

impl Report {
    pub(crate) fn bytes(&self) -> usize {
        self.exec_id.len() + self.value.len()
    }
}

/// A report's place in the queue.
pub(crate) type Ticket = u64;

/// Limits of the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) reports: usize,
    pub(crate) bytes: usize,
}

/// How many unsent reports a new one displaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Displaced {
    /// Replaced by a newer report of the same task.
    pub(crate) replaced: u64,
    /// Not final, dropped because the queue is full.
    pub(crate) dropped: u64,
    /// Final, refused because the queue is full.
    pub(crate) lost: u64,
}

/// The queue.
pub(crate) struct Outbox {
    room: Room,
    next_ticket: Ticket,
    line: BTreeMap<Ticket, Report>,
    /// Each task's queued report that is not final.
    replaceable: HashMap<String, Ticket>,
    /// The same tickets in order.
    replaceable_in_order: BTreeSet<Ticket>,
    /// Tasks with a report in flight.
    on_their_way: HashSet<String>,
    line_bytes: usize,
    on_their_way_bytes: usize,
}

impl Outbox {
    pub(crate) fn new(room: Room) -> Self {
        Self {
            room,
            next_ticket: 0,
            line: BTreeMap::new(),
            replaceable: HashMap::new(),
            replaceable_in_order: BTreeSet::new(),
            on_their_way: HashSet::new(),
            line_bytes: 0,
            on_their_way_bytes: 0,
        }
    }

    /// Reports in the line and on their way.
    pub(crate) fn len(&self) -> usize {
        self.line.len() + self.on_their_way.len()
    }

    /// Final reports in the line.
    pub(crate) fn final_reports(&self) -> usize {
        self.line.len() - self.replaceable.len()
    }

    /// Puts a report in; see the table above.
    pub(crate) fn put(&mut self, report: Report) -> Displaced {
        let mut displaced = Displaced::default();
        let mut ticket = self.next_ticket;
        if let Some(taken) = self.replaceable.get(&report.exec_id).copied() {
            self.remove(taken);
            ticket = taken;
            displaced.replaced = 1;
        }
        while !self.fits(&report) {
            match self.replaceable_in_order.first().copied() {
                Some(oldest) => {
                    self.remove(oldest);
                    displaced.dropped += 1;
                }
                None if report.last => {
                    displaced.lost = 1;
                    return displaced;
                }
                None => {
                    displaced.dropped += 1;
                    return displaced;
                }
            }
        }
        self.next_ticket = self.next_ticket.max(ticket + 1);
        self.insert(ticket, report);
        displaced
    }

    /// Whether a report of which nobody knows whether it can be sent may wait: it displaces no report of another task,
    /// and leaves half of the bytes to those that can.
    pub(crate) fn spares(&self, report: &Report) -> bool {
        let replaced = self.replaceable.get(&report.exec_id);
        let replaced = replaced.and_then(|ticket| self.line.get(ticket));
        let (reports, bytes) = replaced.map_or((0, 0), |replaced| (1, replaced.bytes()));
        let others = self.line_bytes + self.on_their_way_bytes - bytes;
        self.len() - reports < self.room.reports && others + report.bytes() <= self.room.bytes / 2
    }

    /// Takes the first report whose task has none on its way, unless all on their way would then be several of
    /// more than `bytes_max`. It is on its way until [`arrived`](Self::arrived) or
    /// [`give_back`](Self::give_back).
    pub(crate) fn take(&mut self, bytes_max: usize) -> Option<(Ticket, Report)> {
        let (ticket, report) = self
            .line
            .iter()
            .find(|(_, report)| !self.on_their_way.contains(&report.exec_id))?;
        let together = self.on_their_way_bytes + report.bytes();
        if !self.on_their_way.is_empty() && together > bytes_max {
            return None;
        }
        let ticket = *ticket;
        let report = self.remove(ticket)?;
        self.on_their_way.insert(report.exec_id.clone());
        self.on_their_way_bytes += report.bytes();
        Some((ticket, report))
    }

    /// A taken report is no longer on its way.
    pub(crate) fn arrived(&mut self, report: &Report) {
        if self.on_their_way.remove(&report.exec_id) {
            self.on_their_way_bytes -= report.bytes();
        }
    }

    /// A taken report could not be sent: it stands in its old place again, unless a newer one of
    /// its task has come.
    pub(crate) fn give_back(&mut self, ticket: Ticket, report: Report) -> Displaced {
        self.arrived(&report);
        if !report.last && self.replaceable.contains_key(&report.exec_id) {
            return Displaced {
                replaced: 1,
                ..Displaced::default()
            };
        }
        self.insert(ticket, report);
        Displaced::default()
    }

    fn fits(&self, report: &Report) -> bool {
        self.len() < self.room.reports
            && self.line_bytes + self.on_their_way_bytes + report.bytes() <= self.room.bytes
    }

    fn insert(&mut self, ticket: Ticket, report: Report) {
        if !report.last {
            self.replaceable.insert(report.exec_id.clone(), ticket);
            self.replaceable_in_order.insert(ticket);
        }
        self.line_bytes += report.bytes();
        self.line.insert(ticket, report);
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Report> {
        let report = self.line.remove(&ticket)?;
        self.line_bytes -= report.bytes();
        if self.replaceable_in_order.remove(&ticket) {
            self.replaceable.remove(&report.exec_id);
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(exec_id: &str, sequence: u8, last: bool) -> Report {
        Report {
            exec_id: exec_id.to_owned(),
            last,
            value: vec![sequence],
        }
    }

    fn outbox(reports: usize) -> Outbox {
        Outbox::new(Room {
            reports,
            bytes: 1_000,
        })
    }

    fn drain(outbox: &mut Outbox) -> Vec<(String, u8)> {
        let mut drained = Vec::new();
        while let Some((_, report)) = outbox.take(usize::MAX) {
            outbox.arrived(&report);
            drained.push((report.exec_id.clone(), report.value[0]));
        }
        drained
    }

    fn expected(reports: &[(&str, u8)]) -> Vec<(String, u8)> {
        reports
            .iter()
            .map(|(id, n)| ((*id).to_owned(), *n))
            .collect()
    }

    #[test]
    fn a_newer_report_takes_the_place_of_an_unsent_one_of_its_task() {
        let mut outbox = outbox(10);
        assert_eq!(outbox.put(report("a", 0, false)), Displaced::default());
        assert_eq!(outbox.put(report("b", 0, false)), Displaced::default());
        assert_eq!(outbox.put(report("a", 1, false)).replaced, 1);
        assert_eq!(outbox.put(report("a", 2, true)).replaced, 1);
        assert_eq!(drain(&mut outbox), expected(&[("a", 2), ("b", 0)]));
    }

    #[test]
    fn a_final_report_is_never_replaced() {
        let mut outbox = outbox(10);
        outbox.put(report("a", 0, true));
        assert_eq!(outbox.put(report("a", 1, false)), Displaced::default());
        assert_eq!(drain(&mut outbox), expected(&[("a", 0), ("a", 1)]));
    }

    #[test]
    fn without_room_the_oldest_that_is_not_final_goes_and_with_finals_only_the_new_one() {
        let mut outbox = outbox(2);
        outbox.put(report("a", 0, false));
        outbox.put(report("b", 0, false));
        assert_eq!(outbox.put(report("c", 0, true)).dropped, 1);
        assert_eq!(outbox.put(report("d", 0, true)).dropped, 1);
        assert_eq!(outbox.put(report("e", 0, false)).dropped, 1);
        assert_eq!(outbox.put(report("f", 0, true)).lost, 1);
        assert_eq!(outbox.final_reports(), 2);
        assert_eq!(drain(&mut outbox), expected(&[("c", 0), ("d", 0)]));
    }

    #[test]
    fn a_task_has_one_report_on_its_way_and_one_given_back_yields_to_a_newer() {
        let mut outbox = outbox(10);
        outbox.put(report("a", 0, false));
        let (ticket, first) = outbox.take(usize::MAX).unwrap();
        outbox.put(report("a", 1, false));
        assert_eq!(outbox.take(usize::MAX), None);
        assert_eq!(outbox.give_back(ticket, first).replaced, 1);
        assert_eq!(drain(&mut outbox), expected(&[("a", 1)]));

        outbox.put(report("b", 0, false));
        let (ticket, first) = outbox.take(usize::MAX).unwrap();
        outbox.put(report("c", 0, false));
        assert_eq!(outbox.give_back(ticket, first), Displaced::default());
        assert_eq!(drain(&mut outbox), expected(&[("b", 0), ("c", 0)]));
        assert_eq!(outbox.len(), 0);
        assert_eq!((outbox.line_bytes, outbox.on_their_way_bytes), (0, 0));
    }

    #[test]
    fn a_report_that_may_be_too_large_takes_half_of_the_room_and_displaces_none_but_its_tasks_own()
    {
        let sized = |exec_id: &str, bytes: usize| Report {
            exec_id: exec_id.to_owned(),
            last: false,
            value: vec![0; bytes - exec_id.len()],
        };
        let mut outbox = outbox(2);
        assert!(outbox.spares(&sized("a", 500)));
        assert!(!outbox.spares(&sized("a", 501)));
        outbox.put(sized("a", 400));
        assert!(outbox.spares(&sized("b", 100)));
        assert!(!outbox.spares(&sized("b", 101)));
        outbox.put(sized("b", 10));
        assert!(!outbox.spares(&sized("c", 1)), "there is no place");
        assert!(outbox.spares(&sized("a", 490)), "it takes its own place");
        assert!(!outbox.spares(&sized("a", 491)));
    }

    proptest! {
        #[test]
        fn nothing_goes_uncounted_and_the_room_is_kept(
            steps in proptest::collection::vec((0..4_u8, 0..6_u8, any::<bool>(), 0..40_usize), 0..200),
        ) {
            let room = Room { reports: 5, bytes: 120 };
            let mut outbox = Outbox::new(room);
            let mut taken = Vec::new();
            let (mut put, mut displaced_all, mut arrived) = (0, 0, 0);
            for (step, task, last, size) in steps {
                match step {
                    0 | 1 => {
                        put += 1;
                        let displaced = outbox.put(Report { exec_id: task.to_string(), last, value: vec![0; size] });
                        displaced_all += displaced.replaced + displaced.dropped + displaced.lost;
                        prop_assert!(displaced.lost == 0 || last);
                    }
                    2 => taken.extend(outbox.take(usize::MAX)),
                    _ => if let Some((ticket, report)) = taken.pop() {
                        if last {
                            outbox.arrived(&report);
                            arrived += 1;
                        } else {
                            displaced_all += outbox.give_back(ticket, report).replaced;
                        }
                    }
                }
                prop_assert!(outbox.len() <= room.reports);
                prop_assert!(outbox.line_bytes + outbox.on_their_way_bytes <= room.bytes);
                prop_assert_eq!(put, displaced_all + arrived + outbox.len() as u64);
            }
        }
    }
}
