//! `--dry-run`: reports as JSON lines on standard output.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemas::{MetricValue, TaskRunningInfo};
use service::health::{Health, Reading};
use service::output::{self, Unwritten};
use service::text::shown_json;
use tokio::task::AbortHandle;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

/// How often to confirm that the program is ready.
const HEALTH_INTERVAL: Duration = Duration::from_secs(1);

/// Prints reports instead of sending them.
pub(crate) struct Printer {
    printed: AtomicU64,
    reader_has_gone: AtomicBool,
    /// Why standard output does not take them.
    unwritten: Mutex<Option<Unwritten>>,
    shutdown: CancellationToken,
    ready: AbortHandle,
}

impl Printer {
    pub(crate) fn new(health: Arc<Health>, shutdown: CancellationToken) -> Self {
        let ready = tokio::spawn(async move {
            let mut ticks = interval(HEALTH_INTERVAL);
            loop {
                ticks.tick().await;
                let nothing_waits = Reading {
                    position: 0,
                    lag: Some(0),
                };
                health.observed(true, true, BTreeMap::from([(0, nothing_waits)]));
            }
        });
        Self {
            printed: AtomicU64::new(0),
            reader_has_gone: AtomicBool::new(false),
            unwritten: Mutex::default(),
            shutdown,
            ready: ready.abort_handle(),
        }
    }

    /// Prints a report; returns whether it did. If that fails or nobody reads it, stops the adapter.
    pub(crate) fn print(&self, info: &TaskRunningInfo) -> bool {
        match output::print_line(&json(info)) {
            Ok(true) => {
                self.printed.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Ok(false) => self.reader_has_gone.store(true, Ordering::Relaxed),
            Err(error) => *self.unwritten() = Some(error),
        }
        self.shutdown.cancel();
        false
    }

    /// # Errors
    /// If standard output has refused a report.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match self.unwritten().take() {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    fn unwritten(&self) -> MutexGuard<'_, Option<Unwritten>> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports printed so far.
    pub(crate) fn printed(&self) -> u64 {
        self.printed.load(Ordering::Relaxed)
    }

    /// Whether nobody reads standard output any more, as with `| head`.
    pub(crate) fn reader_has_gone(&self) -> bool {
        self.reader_has_gone.load(Ordering::Relaxed)
    }
}

impl Drop for Printer {
    fn drop(&mut self) {
        self.ready.abort();
    }
}

/// A report as `producer publish` reads it: one line. JSON has no NaN and no infinity, so these are given by name.
fn json(info: &TaskRunningInfo) -> String {
    let mut json = serde_json::json!(info);
    if let Some(progress) = &info.progress
        && let Some(name) = name_if_not_finite(progress.progress)
    {
        json["progress"]["progress"] = name.into();
    }
    for (key, value) in info.metrics.iter().flatten() {
        if let MetricValue::Double(value) = value
            && let Some(name) = name_if_not_finite(*value)
        {
            json["metrics"][key] = name.into();
        }
    }
    shown_json(&json.to_string())
}

fn name_if_not_finite(number: f64) -> Option<&'static str> {
    if number.is_nan() {
        Some("NaN")
    } else if number.is_infinite() {
        Some(if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        })
    } else {
        None
    }
}
