//! Facts that librdkafka reports only in its debug log. The wording of the lines depends on the version.

use rdkafka::util::get_rdkafka_version;

use crate::topic_id::TopicId;

/// The version whose wording this module knows. With another version, the absence of a line proves nothing.
const VERSION: &str = "2.12.1";

/// A setting that these lines depend on: a log queue that nobody reads would lose them.
pub(crate) const FIXED: (&str, &str) = ("log.queue", "false");

/// Whether librdkafka has the known version.
pub(crate) fn is_known() -> bool {
    get_rdkafka_version().1 == VERSION
}

/// Whether records of an aborted transaction were skipped (`rd_kafka_msgset_reader_msgs_v2`; debug context `msg`).
pub(crate) fn skips_aborted(line: &str) -> bool {
    line.contains(" message(s) in aborted transaction at offset ")
}

/// The new id of a topic, before librdkafka fetches from it under that id (`rd_kafka_topic_metadata_update`;
/// debug context `metadata`). A line is delivered before the records that are fetched after it.
pub(crate) fn changed_id(line: &str, topic: &str) -> Option<TopicId> {
    let (_, change) = line.split_once("Topic ")?;
    let change = change.strip_prefix(topic)?;
    let (_, id) = change
        .strip_prefix(" changed id from ")?
        .split_once(" to ")?;
    // Standard base64; Kafka itself uses the URL-safe one.
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
    fn each_known_line_of_librdkafka_is_recognised_and_no_other() {
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
