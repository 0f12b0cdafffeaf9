//! Derives the rows of an event: pure, and total on any bytes.

use std::borrow::Cow;

use schemas::{
    Adjustment, Application, Decoder, Job, List, NotFinite, PlainEvent, PlainInfo, Reject,
    plain_event,
};

/// A part of an event, stored in a table of its own and with offsets of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, clap::ValueEnum)]
pub enum Part {
    /// `task_progress`.
    Progress,
    /// `task_resource`.
    Resource,
    /// `task_metrics`.
    Metrics,
}

impl Part {
    /// All parts.
    pub const ALL: [Self; 3] = [Self::Progress, Self::Resource, Self::Metrics];

    /// The part's name in `consumed_offset.part`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Resource => "resource",
            Self::Metrics => "metrics",
        }
    }
}

/// The rows of one event, borrowed from its bytes. `task_progress` and `task_metrics` have one row per event,
/// `task_resource` one per application, and `task` one while the event is its task's newest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    /// The event's partition.
    pub(crate) partition: i32,
    /// The event's offset.
    pub(crate) offset: i64,
    /// The engine's report.
    pub(crate) info: PlainInfo<'a>,
    /// When the task was first reported: the earliest time of the reports [folded](Self::fold) into these rows.
    pub(crate) first_reported_at: i64,
    /// When the task ended: the earliest time of those that are final.
    pub(crate) ended_at: Option<i64>,
    /// What the router repaired.
    kinds: List<'a, Adjustment>,
    /// The fields that were not finite.
    not_finite: List<'a, NotFinite<'a>>,
}

impl<'a> Rows<'a> {
    pub(crate) fn of(event: PlainEvent<'a>, partition: i32, offset: i64) -> Self {
        let reported_at = event.info.reported_at;
        Self {
            partition,
            offset,
            first_reported_at: reported_at,
            ended_at: event.info.status.is_final().then_some(reported_at),
            info: event.info,
            kinds: event.adjustments,
            not_finite: event.not_finite,
        }
    }

    /// Merges another report of the same task: the rows become those of the newer one, with the earliest times of both.
    pub(crate) fn fold(&mut self, other: &Self) {
        let first_reported_at = self.first_reported_at.min(other.first_reported_at);
        let ended_at = self.ended_at.into_iter().chain(other.ended_at).min();
        if other.rank() > self.rank() {
            *self = *other;
        }
        self.first_reported_at = first_reported_at;
        self.ended_at = ended_at;
    }

    /// Progress from 0 to 1; `None` if the engine did not report it.
    pub(crate) fn progress(&self) -> Option<f64> {
        self.info.progress.map(|(progress, _)| progress)
    }

    /// The column `adjustments`: each kind of repair, then each non-finite field with its value, as in
    /// `metrics.busy=NaN`. Empty: none.
    pub(crate) fn adjustments(&self) -> Vec<Cow<'a, str>> {
        let kinds = self.kinds.iter().map(|kind| Cow::Borrowed(kind.as_str()));
        let fields = self.not_finite.sorted();
        let fields = fields.map(|one| Cow::Owned(format!("{}={}", one.field, one.value)));
        kinds.chain(fields).collect()
    }

    /// The jobs inside the engine; `None` if it did not report them.
    pub(crate) fn jobs(&self) -> Option<Vec<Job<'a>>> {
        let jobs = self.info.progress.map(|(_, jobs)| jobs);
        jobs.map(|jobs| jobs.iter().collect())
    }

    /// The applications, ordered by the bytes of their ids.
    pub(crate) fn applications(&self) -> impl Iterator<Item = Application<'a>> {
        self.info
            .resource
            .into_iter()
            .flat_map(|list| list.sorted())
    }

    pub(crate) fn application_count(&self) -> usize {
        self.info.resource.map_or(0, |list| list.len())
    }

    /// The rank of a report: the greatest is the task's newest state. The last two values only order reports that are
    /// equal in the first three.
    pub(crate) fn rank(&self) -> (bool, i64, i64, i32, i64) {
        (
            self.info.status.is_final(),
            self.info.reported_at,
            self.info.sequence,
            self.partition,
            self.offset,
        )
    }
}

/// The rows of the event in these bytes, of any version that `decoder` knows. If it is not [plain](plain_event), the
/// equivalent plain event is written to `buffer` and the rows borrow from it.
///
/// # Errors
/// If the bytes are not an event, or an event that the router would not have written.
pub(crate) fn rows<'a>(
    decoder: &Decoder,
    value: Option<&'a [u8]>,
    partition: i32,
    offset: i64,
    buffer: &'a mut Vec<u8>,
) -> Result<Rows<'a>, Reject> {
    if let Some(event) = value.and_then(|value| decoder.plain_event(value)) {
        return Ok(Rows::of(event, partition, offset));
    }
    *buffer = reencoded(decoder, value)?;
    match plain_event(buffer) {
        Some(event) => Ok(Rows::of(event, partition, offset)),
        None => Err(refusal("EncodeError", "it cannot be re-encoded")),
    }
}

/// The bytes of the plain event, in single-object encoding, that is equivalent to this value; the value itself if it is
/// one.
///
/// # Errors
/// As for [`rows`].
pub(crate) fn plain<'a>(
    decoder: &Decoder,
    value: Option<&'a [u8]>,
) -> Result<Cow<'a, [u8]>, Reject> {
    let event = value.and_then(|value| Some((value, decoder.plain_event(value)?)));
    match event {
        Some(([0, ..], event)) => Ok(Cow::Owned(event.single_object())), // registry framing
        Some((value, _)) => Ok(Cow::Borrowed(value)),
        None => reencoded(decoder, value).map(Cow::Owned),
    }
}

/// Decodes an event by its writer's schema, checks it, and encodes it in this version.
fn reencoded(decoder: &Decoder, value: Option<&[u8]>) -> Result<Vec<u8>, Reject> {
    let event = decoder.event(value)?;
    let problems = event.problems();
    if let Some(reject) = Reject::of_problems(&problems) {
        return Err(reject);
    }
    // The databases would store unrepaired values differently, so they are rejected.
    if let Some(problem) = problems.first() {
        return Err(refusal(
            "NotRouted",
            format!(
                "the router would have repaired this: {problem}; write to its source topic instead"
            ),
        ));
    }
    schemas::encode_event(&event).map_err(|error| refusal("EncodeError", error.to_string()))
}

fn refusal(kind: &'static str, message: impl Into<String>) -> Reject {
    Reject {
        stage: "TRANSFORMATION",
        refused_by: "consumer::rows",
        kind,
        message: message.into(),
    }
}
