//! A database belongs to one events topic of one Kafka cluster: its rows have partitions and offsets but no topic, so
//! rows of two topics could not be told apart. `consumed_offset` records the topic. Every command that reads or writes
//! for a topic checks it first; [`Writer::write`](crate::store::Writer::write) also refuses the first offset of another
//! topic in the same transaction, so two consumers that start together cannot both succeed.

use std::collections::BTreeSet;

use service::exit::NeedsAttention;

/// A topic and the id of its Kafka cluster.
pub(crate) type Owner = (String, String);

/// The topic that a database must belong to.
pub(crate) struct ExpectedOwner<'a> {
    pub(crate) topic: &'a str,
    /// `None`: not checked.
    pub(crate) cluster_id: Option<&'a str>,
    /// The database, for messages.
    pub(crate) place: &'a str,
    /// The option that names the database.
    pub(crate) option: &'a str,
}

impl ExpectedOwner<'_> {
    /// Checks that the database belongs to the topic, or is empty.
    ///
    /// # Errors
    /// If it holds events of another topic, of several topics, or of another cluster. The error names both and says
    /// what to do.
    pub(crate) fn check(&self, owners: &BTreeSet<Owner>) -> Result<(), NeedsAttention> {
        let Self {
            topic,
            cluster_id,
            place,
            option,
        } = *self;
        let topics: BTreeSet<&str> = owners.iter().map(|(topic, _)| topic.as_str()).collect();
        if topics.len() > 1 {
            let names = Vec::from_iter(topics.iter().copied());
            return Err(NeedsAttention(format!(
                "{place} holds events of {} topics, {}, and its rows cannot be told apart: a database belongs to one \
                 topic. Nothing was changed. Rebuild the tables of each in an empty database: consumer replay \
                 --events-topic {} --into URL",
                names.len(),
                names.join(" and "),
                names[0]
            )));
        }
        if let Some(other) = topics.first().filter(|other| **other != topic) {
            return Err(NeedsAttention(format!(
                "{place} belongs to the topic {other}, and --events-topic is {topic}: a database belongs to one topic. \
                 Nothing was changed. Give --events-topic {other} (also by EVENTS_TOPIC), or by {option} the database \
                 of {topic} or an empty one"
            )));
        }
        let other = owners
            .iter()
            .map(|(_, other)| other.as_str())
            .find(|other| cluster_id.is_some_and(|ours| ours != *other));
        match (other, cluster_id) {
            (Some(other), Some(ours)) => Err(NeedsAttention(format!(
                "{place} holds events of the Kafka cluster {other}, but this one is {ours}; give another {option} or \
                 --bootstrap-servers"
            ))),
            _ => Ok(()),
        }
    }
}
