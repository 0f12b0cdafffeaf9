//! What librdkafka says in its debug log and by no call: lines whose wording belongs to a version.

use rdkafka::util::get_rdkafka_version;

use crate::topic_id::TopicId;

/// The version whose wording is read here. With another one nothing may rest on a line that is not seen.
const VERSION: &str = "2.12.1";

/// The settings that these lines depend on: into a queue that nobody reads they would be lost.
pub(crate) const FIXED: (&str, &str) = ("log.queue", "false");

/// Whether librdkafka is of the version whose wording is known.
pub(crate) fn is_known() -> bool {
    get_rdkafka_version().1 == VERSION
}

/// Whether records of an aborted transaction were skipped (`rd_kafka_msgset_reader_msgs_v2`; debug context `msg`).
pub(crate) fn skips_aborted(line: &str) -> bool {
    line.contains(" message(s) in aborted transaction at offset ")
}

/// The new id of a topic, before librdkafka fetches from it under that id (`rd_kafka_topic_metadata_update`; debug context
/// `metadata`). Lines are handed out before the records that are fetched after writing them.
pub(crate) fn changed_id(line: &str, topic: &str) -> Option<TopicId> {
    let (_, change) = line.split_once("Topic ")?;
    let change = change.strip_prefix(topic)?;
    let (_, id) = change
        .strip_prefix(" changed id from ")?
        .split_once(" to ")?;
    // Standard base64, where Kafka has the URL-safe one.
    let id = id.trim().replace('+', "-").replace('/', "_");
    id.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wording_is_that_of_the_librdkafka_in_cargo_lock() {
        assert!(
            is_known(),
            "librdkafka is {} now. Compare the log lines of the functions named above with its source, run \
             service/tests/it/client_log.rs and service/tests/it/topic_id.rs, then set VERSION",
            get_rdkafka_version().1
        );
    }

    #[test]
    fn a_line_says_what_librdkafka_means_by_it_and_no_other_does() {
        let skipped = "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: events [0]: Skipping 3 message(s) in aborted transaction \
                       at offset 17 for PID 4001";
        assert!(skips_aborted(skipped));
        assert!(!skips_aborted(
            "events [0]: transaction: aborted transaction was possibly empty"
        ));
        let changed = "[thrd:main]: Topic events changed id from AAAAAAAAAAAAAAAAAAAAAQ to +/AAAAAAAAAAAAAAAAAAAg";
        let id = changed_id(changed, "events").unwrap();
        assert_eq!(id.to_string(), "-_AAAAAAAAAAAAAAAAAAAg");
        assert_eq!(changed_id(changed, "event"), None);
    }
}
