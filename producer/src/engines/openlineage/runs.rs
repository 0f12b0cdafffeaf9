//! The state of runs, and the report of each event.
//!
//! OpenLineage's events of a run accumulate, arrive in any order, and more than one may be terminal. The first terminal
//! event that arrives ends the run. In the tables, a final status is never followed by another one, so a late START or
//! RUNNING needs no care; a second terminal event is reported as `Unknown`.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use schemas::{EngineInstance, MetricValue, Reject, TaskRunningInfo, TaskStatus};

use super::event::{DatasetId, Event, EventType, Facts, Refused, RunEvent, Statistics};
use crate::polling::limits::identifier;

/// Datasets of a run whose statistics are added up; of more, the sums are not known.
const DATASETS_MAX: usize = 1_000;
/// Datasets of all runs together, some 100 bytes each.
const ALL_DATASETS_MAX: usize = 200_000;

/// The states of runs, at most as many as chosen, and of [`ALL_DATASETS_MAX`] datasets; the one that had no event for the
/// longest time is forgotten first.
pub(crate) struct Runs {
    capacity: usize,
    /// By execId.
    runs: HashMap<String, Run>,
    /// The execIds by [`Run::used`].
    in_order: BTreeMap<u64, String>,
    used: u64,
    /// Whether an end counts only once [`delivered`](Self::delivered) was called.
    awaits: bool,
    /// The sum of [`Run::datasets`].
    datasets: usize,
    /// What the runs changed since [`begin`](Self::begin) were before; `None`: they were not there.
    changed: Option<HashMap<String, Option<Run>>>,
}

/// What an event gives.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    Report(Box<TaskRunningInfo>),
    /// A job event or a dataset event: there is nothing to report.
    NoRun,
}

#[derive(Clone, Debug, Default)]
struct Run {
    /// A hash of the job's namespace and name.
    job: u64,
    next_sequence: i64,
    /// The number after the highest that was delivered.
    first_undelivered: i64,
    /// Reports that were given, and of which it is not known yet whether they are delivered.
    under_way: usize,
    has_started: bool,
    end: Option<End>,
    facts: Facts,
    inputs: Sums,
    outputs: Sums,
    used: u64,
}

/// The end of a run, as it was reported.
#[derive(Clone, Debug)]
struct End {
    sequence: i64,
    status: TaskStatus,
    is_delivered: bool,
}

/// The last statistics of each dataset; `None` if there are too many.
#[derive(Clone, Debug)]
struct Sums(Option<BTreeMap<DatasetId, Statistics>>);

impl Default for Sums {
    fn default() -> Self {
        Self(Some(BTreeMap::new()))
    }
}

impl Runs {
    /// For reports that are delivered in transactions.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            runs: HashMap::new(),
            in_order: BTreeMap::new(),
            used: 0,
            awaits: false,
            datasets: 0,
            changed: None,
        }
    }

    /// For reports that are delivered one by one: [`delivered`](Self::delivered) or [`undelivered`](Self::undelivered) is to
    /// be called for each.
    pub(crate) fn with_acknowledgements(capacity: usize) -> Self {
        Self {
            awaits: true,
            ..Self::new(capacity)
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    /// The report of an event that was received at this time, which counts if the event has none. If the report cannot be
    /// delivered, call [`undelivered`](Self::undelivered), or [`roll_back`](Self::roll_back).
    ///
    /// # Errors
    /// If the report would not be valid. The state is as before then.
    pub(crate) fn take(&mut self, event: Event, received: Timestamp) -> Result<Taken, Refused> {
        let event = match event {
            Event::Run(event) => *event,
            Event::NotOfRun => return Ok(Taken::NoRun),
        };
        let job = {
            let mut hasher = DefaultHasher::new();
            (&event.namespace, &event.name).hash(&mut hasher);
            hasher.finish()
        };
        let exec_id = self.exec_id(&event, job);
        let before = self.runs.get(&exec_id);
        let mut run = before.cloned().unwrap_or_else(|| Run {
            job,
            ..Run::default()
        });
        let info = run.report(exec_id, event, received);
        if let Some(Reject { kind, message, .. }) = Reject::of_problems(&info.problems()) {
            let reason = message;
            return Err(Refused { kind, reason });
        }
        if self.awaits {
            run.under_way += 1;
        } else if let Some(end) = &mut run.end {
            end.is_delivered = true;
        }
        self.put(&info.exec_id, run);
        Ok(Taken::Report(Box::new(info)))
    }

    /// The report that [`take`](Self::take) gave was delivered: if it is of the run's end, another end does not count.
    pub(crate) fn delivered(&mut self, report: &TaskRunningInfo) {
        let Some(run) = self.runs.get_mut(&report.exec_id) else {
            return;
        };
        if let Some(end) = &mut run.end {
            end.is_delivered |= end.status == report.status;
        }
        run.first_undelivered = run.first_undelivered.max(report.sequence + 1);
        run.settle();
    }

    /// The report that [`take`](Self::take) gave was not delivered: the run has not ended by it, and its sequence is free
    /// again, unless a later report of the run was delivered. While one is under way, that is not known: the number is free
    /// once none is.
    pub(crate) fn undelivered(&mut self, report: &TaskRunningInfo) {
        let Some(run) = self.runs.get_mut(&report.exec_id) else {
            return;
        };
        let is_lost = |end: &mut End| end.sequence == report.sequence && !end.is_delivered;
        run.end.take_if(is_lost);
        if run.next_sequence == report.sequence + 1 {
            run.next_sequence = report.sequence;
        }
        run.settle();
    }

    /// From here on, changes can be rolled back.
    pub(crate) fn begin(&mut self) {
        self.changed.get_or_insert_default();
    }

    pub(crate) fn commit(&mut self) {
        self.changed = None;
    }

    /// Makes the state what it was at [`begin`](Self::begin).
    pub(crate) fn roll_back(&mut self) {
        for (exec_id, before) in self.changed.take().into_iter().flatten() {
            if let Some(run) = self.runs.remove(&exec_id) {
                self.in_order.remove(&run.used);
                self.datasets -= run.datasets();
            }
            if let Some(run) = before {
                self.datasets += run.datasets();
                self.in_order.insert(run.used, exec_id.clone());
                self.runs.insert(exec_id, run);
            }
        }
    }

    /// The run's id; where another job has it already, qualified by the job. (Airflow gave tasks of two DAGs one id.)
    fn exec_id(&self, event: &RunEvent, job: u64) -> String {
        let plain = identifier(&event.run_id);
        let qualified = || {
            // The last slash is the one before the name.
            let name = event.name.replace('%', "%25").replace('/', "%2F");
            identifier(&format!("{}/{}/{name}", event.run_id, event.namespace))
        };
        match self.runs.get(&plain) {
            Some(run) if run.job == job => plain,
            Some(_) => qualified(),
            // The other job's run may have been forgotten; this one keeps its id.
            None => Some(qualified())
                .filter(|qualified| self.runs.contains_key(qualified))
                .unwrap_or(plain),
        }
    }

    fn put(&mut self, exec_id: &str, mut run: Run) {
        self.used += 1;
        run.used = self.used;
        self.in_order.insert(self.used, exec_id.to_owned());
        self.datasets += run.datasets();
        let before = self.runs.insert(exec_id.to_owned(), run);
        if let Some(before) = &before {
            self.in_order.remove(&before.used);
            self.datasets -= before.datasets();
        }
        self.note(exec_id.to_owned(), before);
        while (self.runs.len() > self.capacity || self.datasets > ALL_DATASETS_MAX)
            && let Some((_, oldest)) = self.in_order.pop_first()
        {
            let run = self.runs.remove(&oldest);
            self.datasets -= run.as_ref().map_or(0, Run::datasets);
            self.note(oldest, run);
        }
    }

    fn note(&mut self, exec_id: String, before: Option<Run>) {
        if let Some(changed) = &mut self.changed {
            changed.entry(exec_id).or_insert(before);
        }
    }
}

impl Run {
    /// Adds an event to the state, and reports it.
    fn report(&mut self, exec_id: String, event: RunEvent, received: Timestamp) -> TaskRunningInfo {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let status = self.status(event.event_type, sequence);
        self.facts.add(event.facts);
        self.inputs.add(event.inputs);
        self.outputs.add(event.outputs);

        let facts = &self.facts;
        let job = match event.namespace.is_empty() {
            true => event.name.clone(),
            false => format!("{}/{}", event.namespace, event.name),
        };
        let job_id = facts
            .root_run
            .as_ref()
            .or(facts.parent_run.as_ref())
            .cloned();
        // A namespace can be an address of the engine, as in `trino://host:port`.
        let namespace = match event.namespace.split_once("://") {
            Some((_, address)) if !address.trim().is_empty() => address,
            _ => &event.namespace,
        };
        let engine_type = facts.engine_type.as_str().to_owned();
        let instance = match namespace.trim().is_empty() {
            true => engine_type.clone(),
            false => identifier(namespace),
        };
        let mut metrics = Metrics(BTreeMap::new());
        metrics.text("jobName", Some(&event.name));
        metrics.text("eventType", event.event_type.map(EventType::as_str));
        metrics.text("parentRunId", facts.parent_run.as_deref());
        metrics.text("jobType", facts.job_type.as_deref());
        metrics.text("processingType", facts.processing_type.as_deref());
        metrics.sums(&self.inputs, ["recordsIn", "bytesIn", "filesIn"]);
        metrics.sums(&self.outputs, ["recordsOut", "bytesOut", "filesOut"]);
        if let Some(checkpoints) = facts.checkpoints {
            metrics.long("checkpointsCompleted", checkpoints.completed);
            metrics.long("checkpointsFailed", checkpoints.failed);
            metrics.long("checkpointsInProgress", checkpoints.in_progress);
        }
        TaskRunningInfo {
            exec_id,
            job_id: job_id.unwrap_or_else(|| identifier(&job)),
            engine: EngineInstance {
                instance,
                engine_type,
                user: facts.user.clone().unwrap_or_default(),
                ticket_id: facts.ticket_id.clone().unwrap_or_default(),
                running_tasks: 0,
            },
            status,
            reported_at: event.time.unwrap_or(received.as_microsecond()),
            sequence,
            progress: None,
            resource: None,
            metrics: Some(metrics.0),
        }
    }

    /// It is known of one report more whether it was delivered.
    fn settle(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
        if self.under_way == 0 {
            self.next_sequence = self.next_sequence.min(self.first_undelivered);
        }
    }

    /// Datasets whose statistics are kept.
    fn datasets(&self) -> usize {
        let sums = [&self.inputs, &self.outputs].into_iter();
        sums.flat_map(|sums| &sums.0).map(BTreeMap::len).sum()
    }

    fn status(&mut self, event_type: Option<EventType>, sequence: i64) -> TaskStatus {
        let end = match event_type {
            Some(EventType::Start | EventType::Running) => {
                self.has_started = true;
                return TaskStatus::Running;
            }
            Some(EventType::Other) | None if self.has_started && self.end.is_none() => {
                return TaskStatus::Running;
            }
            // Before the run starts; after its end, nothing is known of it.
            Some(EventType::Other) if self.end.is_none() => return TaskStatus::Scheduled,
            Some(EventType::Other) | None => return TaskStatus::Unknown,
            Some(EventType::Complete) => TaskStatus::Succeed,
            Some(EventType::Fail) => TaskStatus::Failed,
            Some(EventType::Abort) => TaskStatus::Cancelled,
        };
        match &self.end {
            // A client that gets no answer in time sends the event again, and the first may still be lost.
            Some(known) if known.status == end && !known.is_delivered => {}
            Some(_) => return TaskStatus::Unknown,
            None => {}
        }
        self.end = Some(End {
            sequence,
            status: end,
            is_delivered: false,
        });
        end
    }
}

impl Sums {
    fn add(&mut self, datasets: Vec<(DatasetId, Statistics)>) {
        let Some(known) = &mut self.0 else { return };
        known.extend(datasets);
        if known.len() > DATASETS_MAX {
            self.0 = None;
        }
    }

    /// The sum over the datasets that have this count; `None` if none has, or it is too large.
    fn of(&self, count: fn(&Statistics) -> Option<i64>) -> Option<i64> {
        let mut counts = self.0.iter().flat_map(BTreeMap::values).filter_map(count);
        let first = counts.next()?;
        counts.try_fold(first, i64::checked_add)
    }
}

/// Metrics by name; what is not known is left out.
struct Metrics(BTreeMap<String, MetricValue>);

impl Metrics {
    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            let value = MetricValue::String(identifier(value));
            self.0.insert(name.to_owned(), value);
        }
    }

    fn long(&mut self, name: &str, value: Option<i64>) {
        if let Some(value) = value.filter(|value| *value >= 0) {
            self.0.insert(name.to_owned(), MetricValue::Long(value));
        }
    }

    fn sums(&mut self, sums: &Sums, [rows, bytes, files]: [&str; 3]) {
        self.long(rows, sums.of(|statistics| statistics.rows));
        self.long(bytes, sums.of(|statistics| statistics.bytes));
        self.long(files, sums.of(|statistics| statistics.files));
    }
}
