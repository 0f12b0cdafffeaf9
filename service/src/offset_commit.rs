//! An asynchronous OffsetCommit.
#![expect(
    unsafe_code,
    reason = "rust-rdkafka 0.39 has no commit that answers on a queue: its asynchronous commit gives no answer at all"
)]

use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use rdkafka::bindings::{
    rd_kafka_commit_queue, rd_kafka_event_destroy, rd_kafka_event_error,
    rd_kafka_event_topic_partition_list, rd_kafka_queue_destroy, rd_kafka_queue_new,
    rd_kafka_queue_poll,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::{RDKafkaQueue, RDKafkaRespErr};

/// An OffsetCommit in flight. Dropping it discards the answer, but does not cancel the request.
pub struct OffsetCommit<'c> {
    queue: NonNull<RDKafkaQueue>,
    // The client outlives the queue.
    client: PhantomData<&'c ()>,
}

// SAFETY: librdkafka's queues are locked; any thread may poll and destroy one.
unsafe impl Send for OffsetCommit<'_> {}
// SAFETY: as above.
unsafe impl Sync for OffsetCommit<'_> {}

impl<'c> OffsetCommit<'c> {
    /// Sends these offsets to the coordinator of the client's group; does not wait for the answer.
    ///
    /// # Errors
    /// If the client has no group.
    pub(crate) fn send<C: ClientContext>(
        client: &'c Client<C>,
        offsets: &TopicPartitionList,
    ) -> KafkaResult<Self> {
        let client = client.native_ptr();
        // SAFETY: the client is alive, borrowed for `'c`. librdkafka copies the list during the call and
        // keeps a reference of its own to the queue. Without a callback, the answer arrives in the queue as
        // an event.
        unsafe {
            let queue = NonNull::new(rd_kafka_queue_new(client))
                .ok_or_else(|| KafkaError::ClientCreation("no queue".to_owned()))?;
            let commit = Self {
                queue,
                client: PhantomData,
            };
            let code =
                rd_kafka_commit_queue(client, offsets.ptr(), queue.as_ptr(), None, ptr::null_mut());
            match code {
                RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(commit),
                code => Err(KafkaError::ConsumerCommit(code.into())),
            }
        }
    }

    /// The answer, if it has arrived: an error if any of the offsets was refused. Returned once.
    pub fn answer(&self) -> Option<KafkaResult<()>> {
        // SAFETY: the queue is ours until drop. The event is alive until it is destroyed, and owns the list, which has
        // as many elements as `cnt` says.
        unsafe {
            let event = NonNull::new(rd_kafka_queue_poll(self.queue.as_ptr(), 0))?.as_ptr();
            let mut codes = vec![rd_kafka_event_error(event)];
            let list = rd_kafka_event_topic_partition_list(event);
            if let Some(list) = list.as_ref()
                && !list.elems.is_null()
            {
                let elements = std::slice::from_raw_parts(list.elems, list.cnt as usize);
                codes.extend(elements.iter().map(|element| element.err));
            }
            rd_kafka_event_destroy(event);
            let refused = codes
                .into_iter()
                .find(|code| *code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
            Some(match refused {
                Some(code) => Err(KafkaError::ConsumerCommit(code.into())),
                None => Ok(()),
            })
        }
    }
}

impl Drop for OffsetCommit<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is not used afterwards. An answer that comes later finds it disabled: librdkafka counts its
        // own references.
        unsafe { rd_kafka_queue_destroy(self.queue.as_ptr()) };
    }
}
