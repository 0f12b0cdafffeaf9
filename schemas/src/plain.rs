//! Reading in place: the short way of records that nothing is to be done to.
//!
//! A record is plain when a released version's writer wrote it, its bytes are whole, and it has none
//! of the problems of [reports](crate::TaskRunningInfo::problems) or
//! [events](crate::TaskRunningInfoEvent::problems), nor a progress of negative zero. Nearly all are. It is checked in one
//! pass over its bytes and stays where it is: texts are slices of it, lists are walked again by whoever wants
//! them. Of any other record this module says only that it is none: [`crate::Decoder`] then reads it
//! the long way, by apache-avro, and tells what is the matter; that is also what tests hold this
//! module against.

use serde::ser::{Serialize, Serializer};

use crate::check::{IDENTIFIER_MAX_BYTES, REPORTED_AT_MICROS, Rules};
use crate::codec::{
    EVENT_HEADER, EVENT_V1_HEADER, EVENT_V2_HEADER, EVENT_VERSIONS, HEADER_BYTES, INFO_HEADER,
};
use crate::{Adjustment, TaskStatus};

/// A plain `TaskRunningInfo`, in its bytes.
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
    /// Who the engine runs for; may be empty.
    pub engine_user: &'a str,
    /// The ticket the engine was started with; may be empty.
    pub ticket_id: &'a str,
    /// Tasks that the engine holds now.
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

/// A plain `TaskRunningInfoEvent`, in its bytes.
#[derive(Clone, Copy, Debug)]
pub struct PlainEvent<'a> {
    pub(crate) version: EventVersion,
    pub(crate) datum: &'a [u8],
    /// The record this event was made of.
    pub source: PlainSource<'a>,
    /// The router's clock, microseconds since 1970-01-01T00:00:00Z.
    pub routed_at: i64,
    /// Each kind of repair made to `info`.
    pub adjustments: List<'a, Adjustment>,
    /// Fields of `info` that were NaN or infinite.
    pub not_finite: List<'a, NotFinite<'a>>,
    /// What the engine said, repaired where `adjustments` says so.
    pub info: PlainInfo<'a>,
}

/// Where in Kafka a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PlainSource<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// The record's Kafka timestamp, milliseconds since 1970; -1 when none.
    pub timestamp: i64,
    /// The topic's id as Kafka prints it; `None` where the cluster did not tell it, and in events of version 1.
    pub topic_id: Option<&'a str>,
}

/// The released versions of `TaskRunningInfoEvent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventVersion {
    V1,
    /// The source has its topic's id.
    V2,
    /// It has `notFinite`.
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

/// A field that was NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotFinite<'a> {
    /// Its path in `info`.
    pub field: &'a str,
    /// `NaN`, `Infinity` or `-Infinity`.
    pub value: &'a str,
}

/// One job inside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job<'a> {
    /// The engine's name for the job.
    pub id: &'a str,
    /// All of its tasks.
    pub total_tasks: i32,
    /// Running now.
    pub running_tasks: i32,
    /// Ended with an error.
    pub failed_tasks: i32,
    /// Ended well.
    pub succeed_tasks: i32,
}

/// What one application holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Application<'a> {
    /// Its id.
    pub id: &'a str,
    /// Bytes.
    pub memory_bytes: i64,
    /// Cores.
    pub cores: i32,
    /// Containers, executors, … beside the driver.
    pub instances: i32,
    /// Its status in the engine's own words.
    pub status: &'a str,
    /// The queue it was submitted to; may be empty.
    pub queue: &'a str,
}

/// A metric's name and value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NamedMetric<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: PlainMetric<'a>,
}

/// A metric's value; in JSON as [`MetricValue`](crate::MetricValue) writes it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum PlainMetric<'a> {
    /// Known by name, value unknown.
    Null,
    /// A truth value.
    Boolean(bool),
    /// A whole number.
    Long(i64),
    /// A number.
    Double(f64),
    /// A text.
    String(&'a str),
}

/// The value of a `TaskRunningInfo` record in single-object encoding, header and all, where it is plain;
/// [`crate::Decoder::plain_info`] reads both framings.
pub fn plain_info(value: &[u8]) -> Option<PlainInfo<'_>> {
    plain_info_datum(value.strip_prefix(&INFO_HEADER)?)
}

/// The same of what follows the header, of whichever framing.
pub(crate) fn plain_info_datum(datum: &[u8]) -> Option<PlainInfo<'_>> {
    let mut bytes = Bytes(datum, Rules::Current);
    info(&mut bytes).filter(|_| bytes.0.is_empty())
}

/// The value of a `TaskRunningInfoEvent` record in single-object encoding, header and all, where it is
/// plain; [`crate::Decoder::plain_event`] reads both framings.
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
const ADJUSTMENTS: [Adjustment; 7] = [
    Adjustment::Unknown,
    Adjustment::ProgressNotANumber,
    Adjustment::ProgressBelowZero,
    Adjustment::ProgressAboveOne,
    Adjustment::NegativeCount,
    Adjustment::NulInText,
    Adjustment::MetricNotFinite,
];

/// An Avro array or map that was checked; its items are read again each time it is walked.
#[derive(Clone, Copy, Debug)]
pub struct List<'a, T> {
    /// From the first block's count on.
    bytes: &'a [u8],
    count: usize,
    /// Whether a map's keys ascend.
    ascending: bool,
    items: std::marker::PhantomData<T>,
}

#[expect(
    private_bounds,
    reason = "which types are items is this module's affair"
)]
impl<'a, T: Item<'a>> List<'a, T> {
    const EMPTY: Self = Self {
        bytes: &[],
        count: 0,
        ascending: true,
        items: std::marker::PhantomData,
    };

    /// How many items.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items in the writer's order.
    pub fn iter(&self) -> Items<'a, T> {
        Items {
            // They were checked before, by rules that are at least as strict.
            bytes: Bytes(self.bytes, Rules::EveryVersion),
            in_block: 0,
            left: self.count,
            items: std::marker::PhantomData,
        }
    }
}

#[expect(
    private_bounds,
    reason = "which types are items is this module's affair"
)]
impl<'a, T: Entry<'a>> List<'a, T> {
    /// The items in the order of their keys' bytes.
    pub fn sorted(&self) -> Sorted<'a, T> {
        if self.ascending {
            return Sorted::InPlace(self.iter());
        }
        let mut items = Vec::from_iter(self.iter());
        items.sort_unstable_by_key(|item| item.key());
        Sorted::Apart(items.into_iter())
    }
}

/// The items of a map, sorted.
#[derive(Clone, Debug)]
pub enum Sorted<'a, T> {
    /// As they stand.
    InPlace(Items<'a, T>),
    /// Put in order.
    Apart(std::vec::IntoIter<T>),
}

impl<'a, T: Item<'a>> Iterator for Sorted<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match self {
            Self::InPlace(items) => items.next(),
            Self::Apart(items) => items.next(),
        }
    }
}

/// As a JSON object with its names sorted.
impl Serialize for List<'_, NamedMetric<'_>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.sorted().map(|metric| (metric.name, metric.value)))
    }
}

/// The items of a [`List`].
#[derive(Clone, Debug)]
pub struct Items<'a, T> {
    bytes: Bytes<'a>,
    /// Items left in the block.
    in_block: usize,
    /// Items left in all.
    left: usize,
    items: std::marker::PhantomData<T>,
}

impl<'a, T: Item<'a>> Iterator for Items<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        if self.left == 0 {
            return None;
        }
        if self.in_block == 0 {
            self.in_block = self.bytes.index()?;
        }
        self.in_block = self.in_block.checked_sub(1)?;
        self.left -= 1;
        T::read(&mut self.bytes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'a, T: Item<'a>> ExactSizeIterator for Items<'a, T> {}

/// What stands in an array or map.
trait Item<'a>: Sized {
    /// `None`: not whole, or not plain.
    fn read(bytes: &mut Bytes<'a>) -> Option<Self>;
}

/// What stands in a map.
trait Entry<'a>: Item<'a> {
    fn key(&self) -> &'a str;
}

impl<'a> Item<'a> for Job<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            id: bytes.text()?,
            total_tasks: bytes.count()?,
            running_tasks: bytes.count()?,
            failed_tasks: bytes.count()?,
            succeed_tasks: bytes.count()?,
        })
    }
}

impl<'a> Item<'a> for Application<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            id: bytes.text()?,
            memory_bytes: bytes.long().filter(|memory| *memory >= 0)?,
            cores: bytes.count()?,
            instances: bytes.count()?,
            status: bytes.text()?,
            queue: bytes.text()?,
        })
    }
}

impl<'a> Entry<'a> for Application<'a> {
    fn key(&self) -> &'a str {
        self.id
    }
}

impl<'a> Item<'a> for NamedMetric<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            name: bytes.text()?,
            value: match bytes.index()? {
                0 => PlainMetric::Null,
                1 => PlainMetric::Boolean(match bytes.take(1)? {
                    [0] => false,
                    [1] => true,
                    _ => return None,
                }),
                2 => PlainMetric::Long(bytes.long()?),
                3 => PlainMetric::Double(bytes.double().filter(|value| value.is_finite())?),
                4 => {
                    let text = bytes.text()?;
                    if bytes.1.is_not_finite(text) {
                        return None;
                    }
                    PlainMetric::String(text)
                }
                _ => return None,
            },
        })
    }
}

impl<'a> Entry<'a> for NamedMetric<'a> {
    fn key(&self) -> &'a str {
        self.name
    }
}

impl<'a> Item<'a> for NotFinite<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            field: bytes.text()?,
            value: bytes.text()?,
        })
    }
}

impl<'a> Entry<'a> for NotFinite<'a> {
    fn key(&self) -> &'a str {
        self.field
    }
}

impl Item<'_> for Adjustment {
    fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        ADJUSTMENTS.get(bytes.index()?).copied()
    }
}

/// Bytes not read yet. Each method takes what it gives off their beginning; `None`: they are
/// something else, or too few.
#[derive(Clone, Debug)]
struct Bytes<'a>(&'a [u8], Rules);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    #[inline(always)]
    fn long(&mut self) -> Option<i64> {
        let (first, left) = self.0.split_first()?;
        if *first < 0x80 {
            self.0 = left;
            return Some(unzigzag(u64::from(*first)));
        }
        self.long_of_many_bytes()
    }

    fn long_of_many_bytes(&mut self) -> Option<i64> {
        let mut zigzag = 0_u64;
        for (i, byte) in self.0.iter().enumerate().take(10) {
            if i == 9 && *byte > 1 {
                return None;
            }
            zigzag |= u64::from(byte & 0x7F) << (7 * i);
            if *byte < 0x80 {
                self.0 = &self.0[i + 1..];
                return Some(unzigzag(zigzag));
            }
        }
        None
    }

    fn int(&mut self) -> Option<i32> {
        i32::try_from(self.long()?).ok()
    }

    fn count(&mut self) -> Option<i32> {
        self.int().filter(|count| *count >= 0)
    }

    /// The place of a symbol or branch, or a size.
    fn index(&mut self) -> Option<usize> {
        usize::try_from(self.long()?).ok()
    }

    fn double(&mut self) -> Option<f64> {
        let (bytes, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(f64::from_le_bytes(*bytes))
    }

    fn sized(&mut self) -> Option<&'a [u8]> {
        let length = self.index()?;
        self.take(length)
    }

    fn any_text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.sized()?).ok()
    }

    /// One without NUL, which PostgreSQL cannot hold.
    fn text(&mut self) -> Option<&'a str> {
        let bytes = self.sized()?;
        // Texts are short, and nearly all of them ASCII: a pass without branches is done before std has aligned itself.
        let is_ascii = bytes
            .iter()
            .fold(true, |so_far, byte| so_far & (1..0x80).contains(byte));
        match is_ascii {
            #[expect(unsafe_code, reason = "std would check the same again, and slower")]
            // SAFETY: ASCII is UTF-8.
            true => Some(unsafe { std::str::from_utf8_unchecked(bytes) }),
            false => std::str::from_utf8(bytes)
                .ok()
                .filter(|text| !text.contains('\0')),
        }
    }

    fn identifier(&mut self) -> Option<&'a str> {
        self.text()
            .filter(|text| text.len() <= IDENTIFIER_MAX_BYTES)
    }

    /// An array. (Blocks that tell their size in bytes, with a negative count, go the long way.)
    fn list<T: Item<'a>>(&mut self) -> Option<List<'a, T>> {
        self.items(|_: &T| {})
    }

    /// A map in which no key stands twice.
    fn map<T: Entry<'a>>(&mut self) -> Option<List<'a, T>> {
        let mut last: Option<&str> = None;
        let mut ascending = true;
        let mut list = self.items(|item: &T| {
            ascending &= last.is_none_or(|last| last < item.key());
            last = Some(item.key());
        })?;
        list.ascending = ascending;
        if !ascending {
            let mut keys = Vec::from_iter(list.iter().map(|item| item.key()));
            keys.sort_unstable();
            if keys.windows(2).any(|pair| pair[0] == pair[1]) {
                return None;
            }
        }
        Some(list)
    }

    fn items<T: Item<'a>>(&mut self, mut each: impl FnMut(&T)) -> Option<List<'a, T>> {
        let bytes = self.0;
        let mut count = 0;
        loop {
            let in_block = self.index()?;
            if in_block == 0 {
                break;
            }
            // Each item takes a byte at least, so no count in the bytes makes this long.
            for _ in 0..in_block {
                each(&T::read(self)?);
            }
            count += in_block;
        }
        Some(List {
            bytes,
            count,
            ascending: false,
            items: std::marker::PhantomData,
        })
    }
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}
