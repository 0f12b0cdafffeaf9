//! A producer with a thread that takes its acknowledgements.
#![expect(
    unsafe_code,
    reason = "rust-rdkafka has no flush that waits and no partitioner to call, and keeps a producer's queue of events to itself"
)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use rdkafka::bindings::{
    rd_kafka_flush, rd_kafka_msg_partitioner_murmur2, rd_kafka_queue_cb_event_enable,
    rd_kafka_queue_destroy, rd_kafka_queue_get_main, rd_kafka_queue_length,
};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{ClientConfig, FromClientConfig, FromClientConfigAndContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, DefaultProducerContext, Producer, ProducerContext};
use rdkafka::types::{RDKafka, RDKafkaQueue};

/// The greatest `message.max.bytes` of librdkafka. A client's setting is fixed when it is created while a
/// topic's may grow, so clients take any record and programs judge its size. librdkafka allocates nothing by it.
pub const CLIENT_MESSAGE_MAX_BYTES: &str = "1000000000";
/// The thread is woken when there is something to take; should that ever fail, it looks after this.
const LOOK: Duration = Duration::from_secs(1);

/// The partition of a key in a topic of so many partitions, as the producers of this workspace choose it
/// (`partitioner=murmur2_random`).
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    let none = std::ptr::null_mut();
    // SAFETY: it reads the key's bytes and nothing else.
    unsafe {
        rd_kafka_msg_partitioner_murmur2(
            std::ptr::null(),
            key.as_ptr().cast(),
            key.len(),
            partitions,
            none,
            none,
        )
    }
}

/// As rust-rdkafka's `ThreadedProducer`, but its thread sleeps while there is nothing to take. That of
/// rust-rdkafka 0.39 waits up to 100 ms in whole milliseconds, and asks without a pause through what is left
/// of the last one: 1 % of a core for ever.
pub struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    polling: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Sends at once what waits for its batch to fill, and waits until all is answered, at most `within`: of
    /// a transaction that has failed, librdkafka sends no more, and what waits is in flight until it is
    /// aborted.
    ///
    /// rust-rdkafka 0.39's own flush, which its commit_transaction makes too, asks librdkafka for one of no
    /// duration, so that nothing is sent any sooner, and then takes 100 ms unless nothing is in flight.
    pub fn flush_now(&self, within: Duration) {
        let limit = within.as_millis() as i32;
        // SAFETY: the client lives as long as `self`; the call may be made on any thread, and what became
        // of the records is taken by the polling thread meanwhile.
        let _ = unsafe { rd_kafka_flush(self.producer.client().native_ptr(), limit) };
    }
}

impl<C: ProducerContext + 'static> Deref for PolledProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl FromClientConfig for PolledProducer<DefaultProducerContext> {
    fn from_config(config: &ClientConfig) -> KafkaResult<Self> {
        Self::from_config_and_context(config, DefaultProducerContext)
    }
}

impl<C: ProducerContext + 'static> FromClientConfigAndContext<C> for PolledProducer<C> {
    fn from_config_and_context(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer = Arc::new(BaseProducer::from_config_and_context(config, context)?);
        let ends = Arc::new(AtomicBool::new(false));
        let (polled, told) = (producer.clone(), ends.clone());
        let polling = std::thread::Builder::new()
            .name("acknowledgements".to_owned())
            .spawn(move || {
                let here = std::thread::current();
                let events = Events::that_wake(&here, polled.client());
                while !told.load(Ordering::Acquire) {
                    while !events.is_empty() {
                        polled.poll(Duration::ZERO);
                    }
                    std::thread::park_timeout(LOOK);
                }
            })
            .map_err(|error| KafkaError::ClientCreation(error.to_string()))?;
        Ok(Self {
            producer,
            ends,
            polling: Some(polling),
        })
    }
}

impl<C: ProducerContext + 'static> Drop for PolledProducer<C> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Release);
        if let Some(polling) = self.polling.take() {
            polling.thread().unpark();
            // It can only have panicked, which has been told.
            let _ = polling.join();
        }
    }
}

/// What a client has to tell, acknowledgements among it, until it is polled. While this lives, the first event
/// that comes wakes a thread.
struct Events<'t>(*mut RDKafkaQueue, PhantomData<&'t Thread>);

impl<'t> Events<'t> {
    fn that_wake<C: ClientContext>(thread: &'t Thread, client: &Client<C>) -> Self {
        unsafe extern "C" fn unpark(_: *mut RDKafka, thread: *mut c_void) {
            // SAFETY: see below.
            unsafe { &*thread.cast::<Thread>() }.unpark();
        }
        let woken = std::ptr::from_ref(thread).cast_mut().cast();
        // SAFETY: the client is alive, and its queue counts who holds it. The thread's handle outlives this,
        // whose drop takes the callback away: both lock the queue, as librdkafka does while it calls it.
        let queue = unsafe {
            let queue = rd_kafka_queue_get_main(client.native_ptr());
            rd_kafka_queue_cb_event_enable(queue, Some(unpark), woken);
            queue
        };
        Self(queue, PhantomData)
    }

    fn is_empty(&self) -> bool {
        // SAFETY: the queue is held; the call may be made on any thread.
        let waiting = unsafe { rd_kafka_queue_length(self.0) };
        waiting == 0
    }
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        // SAFETY: the queue is held, and not used afterwards.
        unsafe {
            rd_kafka_queue_cb_event_enable(self.0, None, std::ptr::null_mut());
            rd_kafka_queue_destroy(self.0);
        }
    }
}
