//! Zero-copy reading of records that need no repair.
//!
//! A record is plain when a released version's writer wrote it, its bytes are complete, and it has none of the problems
//! of [reports](crate::TaskRunningInfo::problems) or [events](crate::TaskRunningInfoEvent::problems), nor a progress of
//! negative zero. Nearly all records are plain. One pass checks the bytes and copies nothing: texts are slices of the
//! record, and whoever needs a list walks its bytes again. For any other record this module returns `None`, and
//! [`crate::Decoder`] reads it with apache-avro and reports what is wrong. Tests compare the two.

mod bytes;
mod items;
mod list;

use crate::check::{REPORTED_AT_MICROS, Rules};
use crate::framing::{EVENT_HEADER, EVENT_V1_HEADER, EVENT_V2_HEADER, HEADER_BYTES, INFO_HEADER};
use crate::versions::EVENT_VERSIONS;
use crate::{Adjustment, TaskStatus};
use bytes::Bytes;

pub use items::{Application, Job, NamedMetric, NotFinite, PlainMetric};
pub use list::{Items, List, Sorted};

/// A plain `TaskRunningInfo`, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PlainInfo<'a> {
    pub(crate) datum: &'a [u8],
    /// The exec task; also the Kafka key.
    pub exec_id: &'a str,
    /// The entrance's job that the exec task belongs to.
    pub job_id: &'a str,
    /// The engine's `host:port`.
    pub engine_instance: &'a str,
    /// `spark`, `flink`, `trino`, …
    pub engine_type: &'a str,
    /// The user that the engine runs for; may be empty.
    pub engine_user: &'a str,
    /// The ticket the engine was started with; may be empty.
    pub ticket_id: &'a str,
    /// Number of tasks that the engine runs now.
    pub engine_running_tasks: i32,
    /// The task's status.
    pub status: TaskStatus,
    /// The engine's clock, microseconds since 1970-01-01T00:00:00Z.
    pub reported_at: i64,
    /// 0, 1, 2, … within one exec task.
    pub sequence: i64,
    /// The progress part: 0 to 1, and the jobs inside the engine.
    pub progress: Option<(f64, List<'a, Job<'a>>)>,
    /// The resource part: applications by their ids, each id once, in the writer's order.
    pub resource: Option<List<'a, Application<'a>>>,
    /// The metrics part: values by name, each name once, in the writer's order.
    pub metrics: Option<List<'a, NamedMetric<'a>>>,
}

/// A plain `TaskRunningInfoEvent`, borrowed from its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PlainEvent<'a> {
    pub(crate) version: EventVersion,
    pub(crate) datum: &'a [u8],
    /// The position of the source record.
    pub source: PlainSource<'a>,
    /// The router's clock, microseconds since 1970-01-01T00:00:00Z.
    pub routed_at: i64,
    /// Kinds of repair made to `info`.
    pub adjustments: List<'a, Adjustment>,
    /// Fields of `info` that were NaN or infinite.
    pub not_finite: List<'a, NotFinite<'a>>,
    /// The report, repaired as listed in `adjustments`.
    pub info: PlainInfo<'a>,
}

/// Position of a record in Kafka.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlainSource<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// The record's Kafka timestamp, milliseconds since 1970; -1 if it has none.
    pub timestamp: i64,
    /// The topic's id as Kafka prints it; `None` if it was unavailable, and in events of version 1.
    pub topic_id: Option<&'a str>,
}

/// The released versions of `TaskRunningInfoEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventVersion {
    V1,
    /// Adds the topic's id to the source.
    V2,
    /// Adds `notFinite`.
    V3,
}

impl EventVersion {
    pub(crate) fn header(self) -> &'static [u8; HEADER_BYTES] {
        match self {
            Self::V1 => &EVENT_V1_HEADER,
            Self::V2 => &EVENT_V2_HEADER,
            Self::V3 => &EVENT_HEADER,
        }
    }

    /// The version of a schema with this fingerprint.
    pub(crate) fn of(fingerprint: u64) -> Option<Self> {
        let at = EVENT_VERSIONS
            .iter()
            .position(|version| version.fingerprint == fingerprint);
        [Self::V1, Self::V2, Self::V3].get(at?).copied()
    }
}

/// Reads a plain `TaskRunningInfo` in single-object encoding, including the header;
/// [`crate::Decoder::plain_info`] reads both framings.
pub fn plain_info(value: &[u8]) -> Option<PlainInfo<'_>> {
    plain_info_datum(value.strip_prefix(&INFO_HEADER)?)
}

/// The same of what follows the header, of whichever framing.
pub(crate) fn plain_info_datum(datum: &[u8]) -> Option<PlainInfo<'_>> {
    let mut bytes = Bytes(datum, Rules::Current);
    info(&mut bytes).filter(|_| bytes.0.is_empty())
}

/// Reads a plain `TaskRunningInfoEvent` in single-object encoding, including the header;
/// [`crate::Decoder::plain_event`] reads both framings.
pub fn plain_event(value: &[u8]) -> Option<PlainEvent<'_>> {
    let (header, datum) = value.split_first_chunk()?;
    let version = match *header {
        EVENT_HEADER => EventVersion::V3,
        EVENT_V2_HEADER => EventVersion::V2,
        EVENT_V1_HEADER => EventVersion::V1,
        _ => return None,
    };
    plain_event_datum(datum, version)
}

/// The same of what follows the header, of whichever framing.
pub(crate) fn plain_event_datum(datum: &[u8], version: EventVersion) -> Option<PlainEvent<'_>> {
    let mut bytes = Bytes(datum, Rules::EveryVersion);
    let source = PlainSource {
        topic: bytes.any_text()?,
        partition: bytes.int()?,
        offset: bytes.long()?,
        timestamp: bytes.long()?,
        topic_id: match version {
            EventVersion::V1 => None,
            EventVersion::V2 | EventVersion::V3 => match bytes.index()? {
                0 => None,
                1 => Some(bytes.any_text()?),
                _ => return None,
            },
        },
    };
    let event = PlainEvent {
        version,
        datum,
        source,
        routed_at: bytes.long()?,
        adjustments: bytes.list()?,
        not_finite: match version {
            EventVersion::V1 | EventVersion::V2 => List::EMPTY,
            EventVersion::V3 => bytes.map()?,
        },
        info: info(&mut bytes)?,
    };
    bytes.0.is_empty().then_some(event)
}

fn info<'a>(bytes: &mut Bytes<'a>) -> Option<PlainInfo<'a>> {
    let Bytes(begun, rules) = *bytes;
    let mut info = PlainInfo {
        datum: begun,
        exec_id: bytes.identifier().filter(|text| !rules.is_blank(text))?,
        job_id: bytes.identifier().filter(|text| !rules.is_blank(text))?,
        engine_instance: bytes.identifier().filter(|text| !rules.is_blank(text))?,
        engine_type: bytes.identifier().filter(|text| !rules.is_blank(text))?,
        engine_user: bytes.identifier()?,
        ticket_id: bytes.identifier()?,
        engine_running_tasks: bytes.count()?,
        status: STATUSES.get(bytes.index()?).copied()?,
        reported_at: bytes
            .long()
            .filter(|micros| REPORTED_AT_MICROS.contains(micros))?,
        sequence: bytes.long().filter(|sequence| *sequence >= 0)?,
        progress: match bytes.index()? {
            0 => None,
            1 => Some((
                bytes
                    .double()
                    .filter(|progress| progress.is_sign_positive() && *progress <= 1.0)?,
                bytes.list()?,
            )),
            _ => return None,
        },
        resource: match bytes.index()? {
            0 => None,
            1 => Some(bytes.map()?),
            _ => return None,
        },
        metrics: match bytes.index()? {
            0 => None,
            1 => Some(bytes.map()?),
            _ => return None,
        },
    };
    info.datum = &begun[..begun.len() - bytes.0.len()];
    Some(info)
}

/// In the schema's order.
const STATUSES: [TaskStatus; 9] = [
    TaskStatus::Unknown,
    TaskStatus::Inited,
    TaskStatus::WaitForRetry,
    TaskStatus::Scheduled,
    TaskStatus::Running,
    TaskStatus::Succeed,
    TaskStatus::Failed,
    TaskStatus::Cancelled,
    TaskStatus::Timeout,
];
