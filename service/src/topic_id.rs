//! Topic ids (KIP-516). They distinguish a topic from one that was later created under the same name.
#![expect(
    unsafe_code,
    reason = "rust-rdkafka 0.39 has no DescribeTopics, the only call of librdkafka that gives the id"
)]

use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rdkafka::bindings::{
    rd_kafka_AdminOptions_destroy, rd_kafka_AdminOptions_new,
    rd_kafka_AdminOptions_set_request_timeout, rd_kafka_AdminOptions_t, rd_kafka_DescribeTopics,
    rd_kafka_DescribeTopics_result_topics, rd_kafka_TopicCollection_destroy,
    rd_kafka_TopicCollection_of_topic_names, rd_kafka_TopicCollection_t,
    rd_kafka_TopicDescription_error, rd_kafka_TopicDescription_t,
    rd_kafka_TopicDescription_topic_id, rd_kafka_Uuid_least_significant_bits,
    rd_kafka_Uuid_most_significant_bits, rd_kafka_admin_op_t, rd_kafka_error_code,
    rd_kafka_event_DescribeTopics_result, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_event_t, rd_kafka_queue_destroy, rd_kafka_queue_new, rd_kafka_queue_poll,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::{RDKafkaQueue, RDKafkaRespErr};
use tokio::time::{Instant, sleep};

/// Polling intervals for the answer, which usually arrives within 1 or 2 ms.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(20);
/// librdkafka answers at the latest after the timeout; after this much more, the request is abandoned.
const GRACE: Duration = Duration::from_secs(1);

/// A topic's id. Its text form is Kafka's, as `kafka-topics.sh --describe` prints it: 22 characters of
/// URL-safe base64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// The id with these bytes, as in Kafka's protocol; `None` for all zeroes, which mean "no id".
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a topic's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a topic id: expected 22 characters of URL-safe base64")]
pub struct NotATopicId(String);

impl FromStr for TopicId {
    type Err = NotATopicId;

    fn from_str(text: &str) -> Result<Self, NotATopicId> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes
            .and_then(Self::from_bytes)
            .ok_or_else(|| NotATopicId(text.to_owned()))
    }
}

/// The cluster's answer about a topic's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicIdAnswer {
    /// The id.
    Id(TopicId),
    /// There is no topic of this name.
    NoSuchTopic,
    /// The id is permanently unavailable: the brokers are older than topic ids (Kafka 2.8), or this user may
    /// not describe the topic.
    Unavailable {
        /// The reason.
        reason: &'static str,
    },
}

/// Requests a topic's id over the connections of `client`, without polling it or blocking this thread. Cancel
/// safe.
///
/// # Errors
/// If there is no answer in time, or the broker has a temporary error.
pub async fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    within: Duration,
) -> KafkaResult<TopicIdAnswer> {
    let mut answers = topic_ids(client, &[topic], within).await?;
    answers
        .pop()
        .ok_or(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage))
}

/// [`topic_id`] of several distinct topics by one request, in the same order.
///
/// # Errors
/// As [`topic_id`], for any of the topics.
pub async fn topic_ids<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    within: Duration,
) -> KafkaResult<Vec<TopicIdAnswer>> {
    let question = Question::ask(client, topics, within)?;
    let deadline = Instant::now() + within + GRACE;
    let mut look = FIRST_LOOK;
    loop {
        match question.answer() {
            Some(Err(KafkaError::AdminOp(
                RDKafkaErrorCode::UnsupportedFeature | RDKafkaErrorCode::UnsupportedVersion,
            ))) => return Ok(vec![OLDER; topics.len()]),
            Some(answer) => return answer,
            None => {}
        }
        if Instant::now() >= deadline {
            return Err(KafkaError::AdminOp(RDKafkaErrorCode::OperationTimedOut));
        }
        sleep(look).await;
        look = (look * 2).min(LONGEST_LOOK);
    }
}

/// A request in flight. It borrows the client.
struct Question<'c> {
    queue: NonNull<RDKafkaQueue>,
    client: PhantomData<&'c ()>,
}

// SAFETY: librdkafka's queues are locked; any thread may poll and destroy one.
unsafe impl Send for Question<'_> {}
// SAFETY: as above.
unsafe impl Sync for Question<'_> {}

impl<'c> Question<'c> {
    fn ask<C: ClientContext>(
        client: &'c Client<C>,
        topics: &[&str],
        within: Duration,
    ) -> KafkaResult<Self> {
        let client = client.native_ptr();
        let refused = || KafkaError::AdminOp(RDKafkaErrorCode::InvalidArgument);
        // librdkafka rejects an empty or repeated name with an event; a name with a NUL has no C string.
        let texts = topics.iter().map(|topic| CString::new(*topic));
        let texts: Vec<CString> = texts.collect::<Result<_, _>>().map_err(|_| refused())?;
        let mut names: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let limit_ms = c_int::try_from(within.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the client is alive, borrowed for `'c`. librdkafka copies the names, the collection and the
        // options during the call that they are given to; each is destroyed once, after it.
        unsafe {
            let queue = NonNull::new(rd_kafka_queue_new(client)).ok_or_else(refused)?;
            let question = Self {
                queue,
                client: PhantomData,
            };
            let topics = Topics(rd_kafka_TopicCollection_of_topic_names(
                names.as_mut_ptr(),
                names.len(),
            ));
            let options = Options(rd_kafka_AdminOptions_new(
                client,
                rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            ));
            let mut why: [c_char; 256] = [0; 256];
            let set = rd_kafka_AdminOptions_set_request_timeout(
                options.0,
                limit_ms,
                why.as_mut_ptr(),
                why.len(),
            );
            if set != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(KafkaError::AdminOp(set.into()));
            }
            rd_kafka_DescribeTopics(client, topics.0, options.0, queue.as_ptr());
            Ok(question)
        }
    }

    /// The answers, if they have arrived, in the order of the topics.
    fn answer(&self) -> Option<KafkaResult<Vec<TopicIdAnswer>>> {
        // SAFETY: the queue is ours until drop; the event is destroyed by `Event`.
        let event = unsafe { rd_kafka_queue_poll(self.queue.as_ptr(), 0) };
        NonNull::new(event).map(|event| Event(event).read())
    }
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is not used afterwards. An answer that comes later finds it disabled: librdkafka
        // counts its own references.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}

struct Topics(*mut rd_kafka_TopicCollection_t);

impl Drop for Topics {
    fn drop(&mut self) {
        // SAFETY: created by librdkafka, destroyed once.
        unsafe { rd_kafka_TopicCollection_destroy(self.0) };
    }
}

struct Options(*mut rd_kafka_AdminOptions_t);

impl Drop for Options {
    fn drop(&mut self) {
        // SAFETY: made by librdkafka, destroyed once.
        unsafe { rd_kafka_AdminOptions_destroy(self.0) };
    }
}

/// librdkafka's answer.
struct Event(NonNull<rd_kafka_event_t>);

impl Event {
    fn read(&self) -> KafkaResult<Vec<TopicIdAnswer>> {
        let event = self.0.as_ptr();
        // SAFETY: the event is alive until drop, and owns the descriptions. An event that is not an answer to
        // DescribeTopics gives a null result; the array has as many descriptions as `count` says.
        unsafe {
            let code = rd_kafka_event_error(event);
            if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Err(KafkaError::AdminOp(code.into()));
            }
            let result = rd_kafka_event_DescribeTopics_result(event);
            if result.is_null() {
                return Err(KafkaError::AdminOp(RDKafkaErrorCode::BadMessage));
            }
            let mut count = 0;
            let topics = rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if topics.is_null() {
                return Ok(Vec::new());
            }
            let topics = std::slice::from_raw_parts(topics, count);
            topics.iter().map(|topic| described(*topic)).collect()
        }
    }
}

/// The answer in a topic's description.
///
/// # Safety
/// It is null, or alive.
unsafe fn described(topic: *const rd_kafka_TopicDescription_t) -> KafkaResult<TopicIdAnswer> {
    let no_answer = || KafkaError::AdminOp(RDKafkaErrorCode::BadMessage);
    if topic.is_null() {
        return Err(no_answer());
    }
    // SAFETY: the description is alive, and owns its error and its id.
    let id = unsafe {
        let error = rd_kafka_TopicDescription_error(topic);
        if !error.is_null() {
            return judged(rd_kafka_error_code(error).into());
        }
        let id = rd_kafka_TopicDescription_topic_id(topic);
        if id.is_null() {
            return Err(no_answer());
        }
        let most = rd_kafka_Uuid_most_significant_bits(id) as u64;
        let least = rd_kafka_Uuid_least_significant_bits(id) as u64;
        u128::from(most) << 64 | u128::from(least)
    };
    Ok(match TopicId::from_bytes(id.to_be_bytes()) {
        Some(id) => TopicIdAnswer::Id(id),
        None => OLDER,
    })
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is not used afterwards.
        unsafe { rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

const OLDER: TopicIdAnswer = TopicIdAnswer::Unavailable {
    reason: "its brokers are older than topic ids (Kafka 2.8)",
};

/// The meaning of an error about a topic.
fn judged(code: RDKafkaErrorCode) -> KafkaResult<TopicIdAnswer> {
    match code {
        RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopicId => {
            Ok(TopicIdAnswer::NoSuchTopic)
        }
        RDKafkaErrorCode::TopicAuthorizationFailed => Ok(TopicIdAnswer::Unavailable {
            reason: "this user may not describe it",
        }),
        code => Err(KafkaError::AdminOp(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the format of `org.apache.kafka.common.Uuid`.
    const KNOWN: &[(u128, &str)] = &[
        (1, "AAAAAAAAAAAAAAAAAAAAAQ"),
        (u128::MAX, "_____________________w"),
        (
            0x0123_4567_89ab_cdef_0011_2233_4455_6677,
            "ASNFZ4mrze8AESIzRFVmdw",
        ),
    ];

    #[test]
    fn an_id_is_shown_and_read_as_kafka_has_it() {
        for (bits, text) in KNOWN {
            let id = TopicId::from_bytes(bits.to_be_bytes()).unwrap();
            assert_eq!(id.to_string(), *text);
            assert_eq!(text.parse(), Ok(id));
        }
        assert_eq!(TopicId::from_bytes([0; 16]), None);
    }

    #[test]
    fn texts_that_kafka_would_not_print_are_not_ids() {
        for text in [
            "",
            "AAAAAAAAAAAAAAAAAAAAAA",
            "AAAAAAAAAAAAAAAAAAAAAR",
            "AAAAAAAAAAAAAAAAAAAAAQ==",
            "AAAAAAAAAAAAAAAAAAAA+Q",
            "ÄAAAAAAAAAAAAAAAAAAAQ",
        ] {
            let read: Result<TopicId, _> = text.parse();
            assert_eq!(read, Err(NotATopicId(text.to_owned())));
        }
    }
}
