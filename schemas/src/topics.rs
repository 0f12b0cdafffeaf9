//! Names of topics, and the settings to create them with (those of `deploy/kafka/topics`).

/// Reports: one `TaskRunningInfo` per record, key `execId`.
pub const TASK_RUNNING_INFO: &str = "task-running-info";
/// Events of the router: one `TaskRunningInfoEvent` per record, same key.
pub const TASK_RUNNING_INFO_EVENTS: &str = "task-running-info-events";
/// Dead letters: original key and value, and the headers of [`DeadLetter`](crate::DeadLetter).
pub const TASK_RUNNING_INFO_DEAD_LETTERS: &str = "task-running-info-dead-letters";

/// Settings of a topic of reports: 7 days of retention, Kafka's default size limit.
pub const REPORTS_SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("max.message.bytes", "1048588"),
    ("retention.ms", "604800000"),
];
/// Settings of a topic of events. An event is less than 64 KiB larger than its report; `notFinite` is left
/// empty if it would exceed the limit.
pub const EVENTS_SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("max.message.bytes", "1114124"),
    ("retention.ms", "604800000"),
];
/// Settings of a topic of dead letters: a letter is a whole record with additional headers. 30 days of
/// retention.
pub const DEAD_LETTERS_SETTINGS: &[(&str, &str)] = &[
    ("cleanup.policy", "delete"),
    ("max.message.bytes", "2097152"),
    ("retention.ms", "2592000000"),
];
/// Settings of a topic of checkpoints: the newest of each key counts.
pub const CHECKPOINTS_SETTINGS: &[(&str, &str)] = &[("cleanup.policy", "compact")];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_those_that_the_deployment_makes_topics_with() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kafka/topics");
        let listed = std::fs::read_to_string(path).unwrap();
        for (topic, settings) in [
            (TASK_RUNNING_INFO, REPORTS_SETTINGS),
            (TASK_RUNNING_INFO_EVENTS, EVENTS_SETTINGS),
            (TASK_RUNNING_INFO_DEAD_LETTERS, DEAD_LETTERS_SETTINGS),
        ] {
            let line = listed
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>())
                .find(|words| words.first() == Some(&topic));
            assert_eq!(
                line.unwrap()[1..],
                [settings[1].1, settings[2].1],
                "{topic}"
            );
        }
    }
}
