//! Field-by-field comparison of a source record with its event.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use schemas::{
    Adjustment, EngineInstance, MetricValue, TaskProgressInfo, TaskResourceInfo, TaskRunningInfo,
};

use crate::route::{clean, clean_keys};

/// Maximum number of differing fields that are named; more are only counted.
pub(super) const FIELDS_NAMED: usize = 20;

/// State of a comparison.
pub(super) struct Walk<'a> {
    /// The repairs that the event names.
    kinds: &'a [Adjustment],
    pub(super) used: BTreeSet<Adjustment>,
    fields: Vec<String>,
    pub(super) differing: usize,
}

/// Whether newer versions may repair a field in ways that are unknown here.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    /// Identifies the report; repaired only in known ways.
    Identity,
    /// A measurement.
    Value,
}
use Role::{Identity, Value};

impl<'a> Walk<'a> {
    pub(super) fn new(kinds: &'a [Adjustment]) -> Self {
        Self {
            kinds,
            used: BTreeSet::new(),
            fields: Vec::new(),
            differing: 0,
        }
    }

    pub(super) fn named(mut self) -> Vec<String> {
        let more = self.differing - self.fields.len();
        if more > 0 {
            self.fields.push(format!("{more} more"));
        }
        self.fields
    }

    pub(super) fn same(&mut self, path: impl Display, same: bool) {
        if !same {
            self.differing += 1;
            if self.fields.len() < FIELDS_NAMED {
                self.fields.push(path.to_string());
            }
        }
    }

    /// Compares a field that must be unchanged or repaired by one of these kinds.
    fn field(
        &mut self,
        path: impl Display,
        role: Role,
        same: bool,
        repaired: impl IntoIterator<Item = (Adjustment, bool)>,
    ) {
        if same {
            return;
        }
        let unknown = (Adjustment::Unknown, role == Value);
        let mut kinds = repaired.into_iter().chain([unknown]);
        match kinds.find(|(kind, so)| *so && self.kinds.contains(kind)) {
            Some((kind, _)) => {
                self.used.insert(kind);
            }
            None => self.same(path, false),
        }
    }

    pub(super) fn info(&mut self, source: &TaskRunningInfo, event: &TaskRunningInfo) {
        self.text("info.execId", Identity, &source.exec_id, &event.exec_id);
        self.text("info.jobId", Identity, &source.job_id, &event.job_id);
        self.engine(&source.engine, &event.engine);
        self.same("info.status", source.status == event.status);
        self.same("info.reportedAt", source.reported_at == event.reported_at);
        self.count("info.sequence", source.sequence, event.sequence);
        match (&source.progress, &event.progress) {
            (Some(source), Some(event)) => self.progress(source, event),
            (source, event) => self.same("info.progress", source.is_none() == event.is_none()),
        }
        match (&source.resource, &event.resource) {
            (Some(source), Some(event)) => self.resource(source, event),
            (source, event) => self.same("info.resource", source.is_none() == event.is_none()),
        }
        match (&source.metrics, &event.metrics) {
            (Some(source), Some(event)) => self.metrics(source, event),
            (source, event) => self.same("info.metrics", source.is_none() == event.is_none()),
        }
    }

    fn engine(&mut self, source: &EngineInstance, event: &EngineInstance) {
        let of = |field: &str| format!("info.engine.{field}");
        let (instance, engine_type) = (&event.instance, &event.engine_type);
        self.text(of("instance"), Identity, &source.instance, instance);
        self.text(of("engineType"), Identity, &source.engine_type, engine_type);
        self.text(of("user"), Identity, &source.user, &event.user);
        self.text(
            of("ticketId"),
            Identity,
            &source.ticket_id,
            &event.ticket_id,
        );
        self.count(
            of("runningTasks"),
            source.running_tasks,
            event.running_tasks,
        );
    }

    fn progress(&mut self, source: &TaskProgressInfo, event: &TaskProgressInfo) {
        let (reported, stored) = (source.progress, event.progress);
        // Bit by bit: NaN is itself, and negative zero is not zero.
        let is = |value: f64| stored.to_bits() == value.to_bits();
        // Negative zero becomes zero; before event version 3, this counted as a repair.
        let is_zero =
            reported == 0.0 && is(0.0) && !self.kinds.contains(&Adjustment::ProgressBelowZero);
        self.field(
            "info.progress.progress",
            Value,
            is(reported) || is_zero,
            [
                (Adjustment::ProgressNotANumber, reported.is_nan() && is(0.0)),
                (
                    Adjustment::ProgressBelowZero,
                    !reported.is_nan() && reported.is_sign_negative() && is(0.0),
                ),
                (Adjustment::ProgressAboveOne, reported > 1.0 && is(1.0)),
            ],
        );
        let (source, event) = (&source.progress_info, &event.progress_info);
        self.same("info.progress.progressInfo", source.len() == event.len());
        for (i, (source, event)) in source.iter().zip(event).enumerate() {
            let of = |field: &str| format!("info.progress.progressInfo[{i}].{field}");
            self.text(of("id"), Value, &source.id, &event.id);
            self.count(of("totalTasks"), source.total_tasks, event.total_tasks);
            self.count(
                of("runningTasks"),
                source.running_tasks,
                event.running_tasks,
            );
            self.count(of("failedTasks"), source.failed_tasks, event.failed_tasks);
            self.count(
                of("succeedTasks"),
                source.succeed_tasks,
                event.succeed_tasks,
            );
        }
    }

    fn resource(&mut self, source: &TaskResourceInfo, event: &TaskResourceInfo) {
        let path = "info.resource.applications";
        let source = self.keys(path, &source.applications, &event.applications);
        for (id, event) in &event.applications {
            let Some(source) = source.get(id) else {
                continue;
            };
            let of = |field: &str| format!("{path}[{id}].{field}");
            self.count(of("queueMemory"), source.queue_memory, event.queue_memory);
            self.count(of("queueCores"), source.queue_cores, event.queue_cores);
            let (reported, stored) = (source.queue_instances, event.queue_instances);
            self.count(of("queueInstances"), reported, stored);
            self.text(
                of("jobStatus"),
                Value,
                &source.job_status,
                &event.job_status,
            );
            self.text(of("queue"), Value, &source.queue, &event.queue);
        }
    }

    fn metrics(
        &mut self,
        source: &BTreeMap<String, MetricValue>,
        event: &BTreeMap<String, MetricValue>,
    ) {
        let source = self.keys("info.metrics", source, event);
        for (name, event) in event {
            let Some(source) = source.get(name) else {
                continue;
            };
            let path = format!("info.metrics[{name}]");
            let same = match (source, event) {
                (MetricValue::Double(source), MetricValue::Double(event)) => {
                    source.to_bits() == event.to_bits()
                }
                _ => source == event,
            };
            let (is_null, is_clean) = (*event == MetricValue::Null, cleaned(source, event));
            self.field(
                path,
                Value,
                same,
                [
                    (
                        Adjustment::MetricNotFinite,
                        source.not_finite().is_some() && is_null,
                    ),
                    (Adjustment::NulInText, is_clean),
                ],
            );
        }
    }

    /// The first map with the repaired keys of the second.
    fn keys<'m, V: Clone>(
        &mut self,
        path: &str,
        source: &'m BTreeMap<String, V>,
        event: &BTreeMap<String, V>,
    ) -> Cow<'m, BTreeMap<String, V>> {
        if source.keys().eq(event.keys()) {
            return Cow::Borrowed(source);
        }
        if self.kinds.contains(&Adjustment::NulInText) {
            let mut cleaned = source.clone();
            clean_keys(&mut cleaned);
            if cleaned.keys().eq(event.keys()) {
                self.used.insert(Adjustment::NulInText);
                return Cow::Owned(cleaned);
            }
        }
        let gone = source.keys().filter(|key| !event.contains_key(*key));
        let new = event.keys().filter(|key| !source.contains_key(*key));
        for key in gone.chain(new) {
            self.same(format!("{path}[{key}]"), false);
        }
        Cow::Borrowed(source)
    }

    fn text(&mut self, path: impl Display, role: Role, source: &str, event: &str) {
        let repaired = source != event && is_cleaned(source, event);
        let kinds = [(Adjustment::NulInText, repaired)];
        self.field(path, role, source == event, kinds);
    }

    fn count(&mut self, path: impl Display, source: impl Into<i64>, event: impl Into<i64>) {
        let (source, event) = (source.into(), event.into());
        let kinds = [(Adjustment::NegativeCount, source < 0 && event == 0)];
        self.field(path, Value, source == event, kinds);
    }
}

fn is_cleaned(source: &str, event: &str) -> bool {
    let mut cleaned_source = source.to_owned();
    clean(&mut cleaned_source);
    cleaned_source == event
}

fn cleaned(source: &MetricValue, event: &MetricValue) -> bool {
    match (source, event) {
        (MetricValue::String(source), MetricValue::String(event)) => is_cleaned(source, event),
        _ => false,
    }
}
