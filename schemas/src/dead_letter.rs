//! Dead letters: a record that was set aside, with headers that name its source and the reason.
//!
//! The names are those of Kafka Connect's dead letter queues
//! (`org.apache.kafka.connect.runtime.errors.DeadLetterQueueReporter`), so that tools for those work with
//! these letters. A letter has the original key and value.

use crate::{DecodeError, Problem};

/// Topic of the record that was set aside.
pub const TOPIC: &str = "__connect.errors.topic";
/// Its partition, in decimal digits.
pub const PARTITION: &str = "__connect.errors.partition";
/// Its offset, in decimal digits.
pub const OFFSET: &str = "__connect.errors.offset";
/// The service that set it aside: `router`, `consumer` or `producer`.
pub const CONNECTOR_NAME: &str = "__connect.errors.connector.name";
/// The instance of that service: its instance id, or else its host name.
pub const TASK_ID: &str = "__connect.errors.task.id";
/// Where it failed: `VALUE_CONVERTER` (unreadable) or `TRANSFORMATION` (unusable).
pub const STAGE: &str = "__connect.errors.stage";
/// The Rust path of the component that refused it.
pub const CLASS_NAME: &str = "__connect.errors.class.name";
/// The kind of fault, a fixed word for grouping and filtering.
pub const EXCEPTION_CLASS_NAME: &str = "__connect.errors.exception.class.name";
/// All kinds of fault of letters: of undecodable bytes, of unusable records, of events.
pub const KINDS: [&str; 16] = [
    "NoValue",
    "Empty",
    "UnknownFraming",
    "UnknownSchema",
    "NoSchemaRegistry",
    "UnknownSchemaId",
    "OtherSchema",
    "Malformed",
    "TrailingBytes",
    "BlankIdentifier",
    "OverlongIdentifier",
    "TimeOutOfRange",
    "EventTooLarge",
    "EncodeError",
    "NotRouted",
    "DatabaseRefused",
];
/// The error message, with the value and its place.
pub const EXCEPTION_MESSAGE: &str = "__connect.errors.exception.message";
/// The original record's timestamp, milliseconds since 1970 in decimal digits; absent if it had none. The
/// letter's own timestamp is the time it was written. (Not in Connect.)
pub const TIMESTAMP_MS: &str = "taskrunning.original.timestamp.ms";
/// The topic's id as Kafka prints it, which changes when the topic is deleted and created again; absent if it
/// was unavailable. (Not in Connect.)
pub const TOPIC_ID: &str = "taskrunning.original.topic.id";
/// Size of the original value in bytes, if the letter omits it because it would exceed its topic's limit: the
/// letter then only points to topic, partition and offset. (Not in Connect.)
pub const OMITTED_VALUE_BYTES: &str = "taskrunning.original.value.omitted.bytes";

/// Topic of the record before its first redrive; absent if it was never redriven. This and the next three
/// keep their values in all later redrives, while [`TOPIC`] and the others give the latest position. (Not in
/// Connect, as the next three.)
pub const FIRST_TOPIC: &str = "taskrunning.first.topic";
/// The partition there, in decimal digits.
pub const FIRST_PARTITION: &str = "taskrunning.first.partition";
/// The offset there, in decimal digits.
pub const FIRST_OFFSET: &str = "taskrunning.first.offset";
/// The record's timestamp there, milliseconds since 1970 in decimal digits; absent if it had none.
pub const FIRST_TIMESTAMP_MS: &str = "taskrunning.first.timestamp.ms";

/// Dead letter topic of the redriven letter; see [`Redriven`]. (Not in Connect, as the next three.)
pub const REDRIVEN_TOPIC: &str = "taskrunning.redriven.topic";
/// The letter's partition, in decimal digits.
pub const REDRIVEN_PARTITION: &str = "taskrunning.redriven.partition";
/// The letter's offset, in decimal digits.
pub const REDRIVEN_OFFSET: &str = "taskrunning.redriven.offset";
/// When it was redriven: RFC 3339, UTC.
pub const REDRIVEN_AT: &str = "taskrunning.redriven.at";

/// Why a record was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// See [`STAGE`].
    pub stage: &'static str,
    /// See [`CLASS_NAME`].
    pub refused_by: &'static str,
    /// See [`EXCEPTION_CLASS_NAME`].
    pub kind: &'static str,
    /// See [`EXCEPTION_MESSAGE`].
    pub message: String,
}

impl From<DecodeError> for Reject {
    fn from(error: DecodeError) -> Self {
        Self {
            stage: "VALUE_CONVERTER",
            refused_by: "schemas::DecodeError",
            kind: error.kind(),
            message: error.to_string(),
        }
    }
}

impl Reject {
    /// The reject of a record with these problems, if any of them makes it unusable. Its kind is that of the
    /// first such problem; its message lists as many problems as fit into a header.
    pub fn of_problems(problems: &[Problem]) -> Option<Self> {
        let unusable = problems
            .iter()
            .find(|problem| problem.fault.adjustment().is_none())?;
        let mut message = String::new();
        for (i, problem) in problems.iter().enumerate() {
            // The header has no more room: see `DeadLetter::headers`.
            if message.len() > MESSAGE_MAX_BYTES {
                break;
            }
            let separator = if i > 0 { "; " } else { "" };
            message.push_str(&format!("{separator}{problem}"));
        }
        Some(Self {
            stage: "TRANSFORMATION",
            refused_by: "schemas::Problem",
            kind: unusable.fault.as_str(),
            message,
        })
    }
}

/// Envelope of a letter: the record's position, the service that set it aside, and the reason.
#[derive(Clone, Debug)]
pub struct DeadLetter<'a> {
    /// The record's topic.
    pub topic: &'a str,
    /// The topic's id, if it is known.
    pub topic_id: Option<&'a str>,
    /// The record's partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// Its Kafka timestamp, milliseconds since 1970, if it had one.
    pub timestamp_ms: Option<i64>,
    /// Its position before the first redrive, if it was redriven.
    pub first: Option<First<'a>>,
    /// `router`, `consumer` or `producer`.
    pub service: &'a str,
    /// The service's instance.
    pub instance: &'a str,
    /// The reason.
    pub reject: &'a Reject,
}

/// Headers of a redrive. The record sent back has them, and so has a note on the dead letter topic, in the
/// letter's partition, without key and value, written in the same transaction. A note is not a letter: it has
/// no [`TOPIC`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redriven<'a> {
    /// The dead letter topic.
    pub topic: &'a str,
    /// The letter's partition.
    pub partition: i32,
    /// The letter's offset.
    pub offset: i64,
    /// See [`REDRIVEN_AT`].
    pub at: &'a str,
}

impl Redriven<'_> {
    /// The headers, in a fixed order.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            (REDRIVEN_TOPIC, self.topic.to_owned()),
            (REDRIVEN_PARTITION, self.partition.to_string()),
            (REDRIVEN_OFFSET, self.offset.to_string()),
            (REDRIVEN_AT, self.at.to_owned()),
        ]
    }
}

/// Position of a record before its first redrive. A record that is sent back has these headers, and a later
/// letter about it copies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First<'a> {
    /// See [`FIRST_TOPIC`].
    pub topic: &'a str,
    /// See [`FIRST_PARTITION`].
    pub partition: i32,
    /// See [`FIRST_OFFSET`].
    pub offset: i64,
    /// See [`FIRST_TIMESTAMP_MS`].
    pub timestamp_ms: Option<i64>,
}

impl<'a> First<'a> {
    /// Parses a record's headers, given a look-up of a header's text. Anybody can write headers, so an
    /// invalid position counts as absent.
    pub fn of(header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        let number = |name| header(name)?.parse().ok();
        Some(Self {
            topic: header(FIRST_TOPIC).filter(|topic| topic.len() <= TOPIC_MAX_BYTES)?,
            partition: header(FIRST_PARTITION)?.parse().ok()?,
            offset: number(FIRST_OFFSET)?,
            timestamp_ms: number(FIRST_TIMESTAMP_MS),
        })
    }

    /// The headers, in a fixed order.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (FIRST_TOPIC, self.topic.to_owned()),
            (FIRST_PARTITION, self.partition.to_string()),
            (FIRST_OFFSET, self.offset.to_string()),
        ];
        headers.extend(
            self.timestamp_ms
                .map(|ms| (FIRST_TIMESTAMP_MS, ms.to_string())),
        );
        headers
    }
}

/// Maximum length of a topic name in Kafka.
const TOPIC_MAX_BYTES: usize = 249;
/// Maximum length of the message, in bytes: a record can have more problems than a header should contain.
const MESSAGE_MAX_BYTES: usize = 4_096;
/// Overhead of a header besides name and value, in bytes, rounded up.
const HEADER_OVERHEAD_BYTES: usize = 16;

/// Size of these headers in a record, in bytes, rounded up.
pub fn header_bytes(headers: &[(&str, String)]) -> usize {
    let bytes = |(name, value): &(&str, String)| name.len() + value.len() + HEADER_OVERHEAD_BYTES;
    headers.iter().map(bytes).sum()
}

/// A letter to send: the envelope as headers, and as much of the record as its topic's limit allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Letter<'a> {
    /// The headers, in a fixed order.
    pub headers: Vec<(&'static str, String)>,
    /// The record's key.
    pub key: Option<&'a [u8]>,
    /// The record's value.
    pub value: Option<&'a [u8]>,
}

impl Letter<'_> {
    /// The letter, its size as a record in bytes (rounded up), and whether it has the whole record.
    pub fn measured(self) -> (Self, usize, bool) {
        let size = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let bytes = header_bytes(&self.headers) + size(self.key) + size(self.value);
        let omits = |(name, _): &(&str, String)| *name == OMITTED_VALUE_BYTES;
        let whole = !self.headers.iter().any(omits);
        (self, bytes, whole)
    }
}

impl DeadLetter<'_> {
    /// The letter about a record with this key and value. If it would exceed `max_bytes`, it omits the value
    /// and, if necessary, the key: it still points to topic, partition and offset.
    pub fn letter<'a>(
        &self,
        key: Option<&'a [u8]>,
        value: Option<&'a [u8]>,
        max_bytes: usize,
    ) -> Letter<'a> {
        let omitted_header = OMITTED_VALUE_BYTES.len() + HEADER_OVERHEAD_BYTES + 20;
        let max_header_bytes = max_bytes.saturating_sub(omitted_header);
        let mut headers = self.headers(max_header_bytes);
        let room = max_header_bytes.saturating_sub(header_bytes(&headers));
        let size = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let whole = size(key) + size(value) <= room;
        if !whole {
            headers.push((OMITTED_VALUE_BYTES, size(value).to_string()));
        }
        Letter {
            headers,
            key: key.filter(|key| key.len() <= room),
            value: value.filter(|_| whole),
        }
    }

    /// The headers, with the message cut to fit into `max_bytes`.
    fn headers(&self, max_bytes: usize) -> Vec<(&'static str, String)> {
        debug_assert!(KINDS.contains(&self.reject.kind), "{}", self.reject.kind);
        let mut headers = vec![
            (TOPIC, self.topic.to_owned()),
            (PARTITION, self.partition.to_string()),
            (OFFSET, self.offset.to_string()),
            (CONNECTOR_NAME, self.service.to_owned()),
            (TASK_ID, self.instance.to_owned()),
            (STAGE, self.reject.stage.to_owned()),
            (CLASS_NAME, self.reject.refused_by.to_owned()),
            (EXCEPTION_CLASS_NAME, self.reject.kind.to_owned()),
            (EXCEPTION_MESSAGE, String::new()),
        ];
        let message_place = headers.len() - 1;
        headers.extend(self.timestamp_ms.map(|ms| (TIMESTAMP_MS, ms.to_string())));
        headers.extend(self.topic_id.map(|id| (TOPIC_ID, id.to_owned())));
        headers.extend(self.first.iter().flat_map(First::headers));
        let room = max_bytes.saturating_sub(header_bytes(&headers) + '…'.len_utf8());
        headers[message_place].1 = cut(&self.reject.message, room.min(MESSAGE_MAX_BYTES));
        headers
    }
}

/// A text, cut after `max_bytes`.
fn cut(text: &str, max_bytes: usize) -> String {
    match text.len() > max_bytes {
        true => format!("{}…", &text[..text.floor_char_boundary(max_bytes)]),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter<'a>(message: &str, key: &'a [u8], value: &'a [u8], max_bytes: usize) -> Letter<'a> {
        let reject = Reject {
            stage: "TRANSFORMATION",
            refused_by: "here",
            kind: "Malformed",
            message: message.to_owned(),
        };
        let dead = DeadLetter {
            topic: "t",
            topic_id: None,
            partition: 1,
            offset: 2,
            timestamp_ms: Some(3),
            first: None,
            service: "router",
            instance: "r",
            reject: &reject,
        };
        let letter = dead.letter(Some(key), Some(value), max_bytes);
        let headers: usize = letter
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let size = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        assert!(headers + size(letter.key) + size(letter.value) <= max_bytes);
        letter
    }

    #[test]
    fn a_letter_that_exceeds_its_topics_limit_omits_the_body_and_gives_its_size() {
        let value = vec![7; 2_000];
        let whole = letter("why", b"key", &value, 4_000);
        assert_eq!(
            (whole.key, whole.value),
            (Some(&b"key"[..]), Some(&value[..]))
        );
        assert!(
            whole
                .headers
                .iter()
                .all(|(name, _)| *name != OMITTED_VALUE_BYTES)
        );
        let headers_only = letter("why", b"key", &value, 2_000);
        assert_eq!(
            (headers_only.key, headers_only.value),
            (Some(&b"key"[..]), None)
        );
        assert_eq!(
            headers_only.headers.last(),
            Some(&(OMITTED_VALUE_BYTES, "2000".to_owned()))
        );
        // A topic whose limit is below the whole message.
        let little = letter(&"ü".repeat(100_000), b"key", &value, 1_000);
        assert_eq!(little.value, None);
        let message = little
            .headers
            .iter()
            .find(|(name, _)| *name == EXCEPTION_MESSAGE);
        assert!(message.is_some_and(|(_, message)| message.ends_with("ü…")));
        let large_key = vec![b'k'; 3_000];
        assert_eq!(letter("why", &large_key, b"value", 2_000).key, None);
    }

    #[test]
    fn a_message_of_many_problems_is_cut_between_characters() {
        let long = letter(&"ü".repeat(100_000), b"", b"", 1_000_000);
        let (_, message) = long
            .headers
            .iter()
            .find(|(name, _)| *name == EXCEPTION_MESSAGE)
            .unwrap();
        assert!(
            message.len() <= MESSAGE_MAX_BYTES + 4 && message.ends_with("ü…"),
            "{}",
            message.len()
        );
    }
}
