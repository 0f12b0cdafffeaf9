//! A producer with a thread that polls for acknowledgements.
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

/// librdkafka's maximum of `message.max.bytes`. A client's setting is fixed at its creation, but a topic's
/// limit may grow. So clients accept any record, and programs check the size. librdkafka allocates no memory
/// by this setting.
pub const CLIENT_MESSAGE_MAX_BYTES: &str = "1000000000";
/// Events wake the thread; this interval is a fallback.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The partition of a key in a topic with this number of partitions, as the producers of this workspace
/// choose it (`partitioner=murmur2_random`).
pub fn partition_of(key: &[u8], partitions: i32) -> i32 {
    let none = std::ptr::null_mut();
    // SAFETY: it only reads the key's bytes.
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

/// Like rust-rdkafka's `ThreadedProducer`, but its thread sleeps while there are no events. That of
/// rust-rdkafka 0.39 waits up to 100 ms in whole milliseconds and polls busily through the rest of the last
/// one, which costs 1 % of a core permanently.
pub struct PolledProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    polling: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> PolledProducer<C> {
    /// Sends waiting batches at once, and waits for all acknowledgements, at most `within`: in a failed
    /// transaction, librdkafka sends nothing more, and waiting records are in flight until the abort.
    ///
    /// rust-rdkafka 0.39's own flush, also used by its commit_transaction, calls librdkafka's with timeout 0,
    /// which sends nothing early, and then takes 100 ms unless nothing is in flight.
    pub fn flush_now(&self, within: Duration) {
        let limit = within.as_millis() as i32;
        // SAFETY: the client lives as long as `self`; the call may be made on any thread, and the polling
        // thread takes the delivery reports meanwhile.
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
        let (polled, has_ended) = (producer.clone(), ends.clone());
        let polling = std::thread::Builder::new()
            .name("acknowledgements".to_owned())
            .spawn(move || {
                let here = std::thread::current();
                let events = Events::that_wake(&here, polled.client());
                while !has_ended.load(Ordering::Acquire) {
                    while !events.is_empty() {
                        polled.poll(Duration::ZERO);
                    }
                    std::thread::park_timeout(CHECK_INTERVAL);
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
            // It can only have panicked, which was reported.
            let _ = polling.join();
        }
    }
}

/// A client's queue of events, including acknowledgements. While this exists, an event that arrives in the
/// empty queue wakes a thread.
struct Events<'t>(*mut RDKafkaQueue, PhantomData<&'t Thread>);

impl<'t> Events<'t> {
    fn that_wake<C: ClientContext>(thread: &'t Thread, client: &Client<C>) -> Self {
        unsafe extern "C" fn unpark(_: *mut RDKafka, thread: *mut c_void) {
            // SAFETY: see below.
            unsafe { &*thread.cast::<Thread>() }.unpark();
        }
        let woken = std::ptr::from_ref(thread).cast_mut().cast();
        // SAFETY: the client is alive, and its queue is reference-counted. The thread's handle outlives this
        // value, whose drop removes the callback; setting, removing and calling it lock the queue.
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
