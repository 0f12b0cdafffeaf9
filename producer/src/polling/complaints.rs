//! Faults of polls, logged once until they change.

use std::collections::BTreeMap;

use super::rest::Fault;

/// `jobs, stages: it answers 503; executors: …`
pub(crate) fn by_fault(faults: &[(&'static str, Fault)]) -> String {
    let mut by_fault: Vec<(String, Vec<&str>)> = Vec::new();
    for (part, fault) in faults {
        let fault = fault.to_string();
        match by_fault.iter_mut().find(|(known, _)| *known == fault) {
            Some((_, parts)) => parts.push(part),
            None => by_fault.push((fault, vec![part])),
        }
    }
    let each = by_fault
        .iter()
        .map(|(fault, parts)| format!("{}: {fault}", parts.join(", ")));
    each.collect::<Vec<_>>().join("; ")
}

/// The fault of something that is polled. Logged once, and again when it changes.
#[derive(Default)]
pub(crate) struct Complaint(String);

impl Complaint {
    /// Notes how a poll went: its fault, or `None` if it went well.
    pub(crate) fn change(&mut self, whose: &str, fault: Option<String>) {
        match fault {
            Some(fault) if self.0 != fault => {
                tracing::warn!("{whose}: {fault}; asking again");
                self.0 = fault;
            }
            None if !self.0.is_empty() => {
                tracing::info!("{whose} answers again");
                self.0.clear();
            }
            _ => {}
        }
    }
}

/// The faults that several polls find in one server. Each fault is logged when the first poll has it; when no poll has
/// any, that is logged too.
#[derive(Default)]
pub(crate) struct Complaints(BTreeMap<String, usize>);

impl Complaints {
    /// A poll that had the fault `before` has `now`.
    pub(crate) fn change(&mut self, whose: &str, before: &mut Option<String>, now: Option<String>) {
        if *before == now {
            return;
        }
        if let Some(now) = &now {
            let polls = self.0.entry(now.clone()).or_default();
            *polls += 1;
            if *polls == 1 {
                tracing::warn!("{whose}: {now}; asking again");
            }
        }
        self.end(before);
        if now.is_none() && self.0.is_empty() {
            tracing::info!("{whose} answers again");
        }
        *before = now;
    }

    /// There are no more polls of the one that had this fault.
    pub(crate) fn end(&mut self, fault: &mut Option<String>) {
        let Some(fault) = fault.take() else {
            return;
        };
        if let Some(polls) = self.0.get_mut(&fault) {
            *polls -= 1;
            if *polls == 0 {
                self.0.remove(&fault);
            }
        }
    }
}
