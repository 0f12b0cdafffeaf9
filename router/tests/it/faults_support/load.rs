//! A steady load of reports.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Topics, enqueue, numbered, producer};
use rdkafka::producer::{BaseRecord, Producer};
use service::testing::until;

/// A thread that writes good records to the source topic at a steady rate.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicI64>,
    thread: Option<JoinHandle<()>>,
}

impl Load {
    /// Records of 90 tasks in turn.
    pub(crate) fn start(topics: &Topics, per_second: i64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (bootstrap, topic) = (topics.bootstrap.clone(), topics.source.clone());
        let (stopped, count) = (stop.clone(), Arc::new(AtomicI64::new(0)));
        let counted = count.clone();
        let thread = std::thread::spawn(move || {
            let producer = producer(&bootstrap);
            let begun = Instant::now();
            let mut sent = 0;
            while !stopped.load(Ordering::Relaxed) {
                let due = begun.elapsed().as_millis() as i64 * per_second / 1000;
                for i in sent..due {
                    let (key, value) = numbered(i, 90);
                    let record = BaseRecord::to(&topic);
                    enqueue(&producer, record.key(key.as_bytes()).payload(&value[..]));
                }
                sent = due;
                counted.store(sent, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
            producer.flush(Duration::from_secs(120)).unwrap();
        });
        Self {
            stop,
            sent: count,
            thread: Some(thread),
        }
    }

    /// Waits until this number of records has been written.
    pub(crate) async fn until(&self, count: i64) {
        let what = format!("{count} records are written");
        until(&what, Duration::from_secs(120), async || {
            (self.sent.load(Ordering::Relaxed) >= count).then_some(())
        })
        .await;
    }

    /// Ends it; all its records are acknowledged.
    pub(crate) async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap())
            .await
            .unwrap();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
