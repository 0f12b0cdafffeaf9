//! Structured Streaming: what the progress of a query's last batch says, as metrics.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemas::MetricValue;

use super::events::{Progress, StreamStarted};
use crate::engines::spark::mapping;

/// One run of a streaming query. Spark runs its jobs in the job group of its run id.
#[derive(Default)]
pub(super) struct Stream {
    /// The same in every run of the query.
    id: String,
    name: Option<String>,
    /// Its last batch.
    last: Option<Batch>,
    input_rows_total: i64,
    /// How it was terminated: whether with an exception.
    pub(super) terminated: Option<bool>,
}

#[derive(Default)]
struct Batch {
    id: Option<i64>,
    input_rows: Option<i64>,
    output_rows: Option<i64>,
    input_rows_per_second: Option<f64>,
    processed_rows_per_second: Option<f64>,
    trigger_ms: Option<i64>,
    watermark_lag_ms: Option<i64>,
    state: Option<State>,
    offsets_behind_max: Option<i64>,
}

struct State {
    rows: i64,
    bytes: Option<i64>,
    dropped_by_watermark: Option<i64>,
}

impl Stream {
    pub(super) fn start(&mut self, started: StreamStarted) {
        self.id = started.id;
        self.name = started.name;
    }

    pub(super) fn progress(&mut self, progress: Progress) {
        let sources = &progress.sources;
        let input_rows = progress
            .num_input_rows
            .or_else(|| sum(sources.iter().map(|source| source.num_input_rows)));
        let offsets = sources.iter().filter_map(|source| source.metrics.as_ref());
        let offsets = offsets.filter_map(|metrics| metrics.get("maxOffsetsBehindLatest"));
        let operators = &progress.state_operators;
        let state = (!operators.is_empty()).then(|| State {
            rows: sum(operators.iter().map(|o| Some(o.num_rows_total))).unwrap_or(0),
            bytes: sum(operators.iter().map(|o| o.memory_used_bytes)),
            dropped_by_watermark: sum(operators.iter().map(|o| o.num_rows_dropped_by_watermark)),
        });
        let rate = |own: Option<f64>, of: fn(&super::events::Source) -> Option<f64>| {
            own.or_else(|| {
                let rates: Option<Vec<f64>> = sources.iter().map(of).collect();
                rates
                    .filter(|rates| !rates.is_empty())
                    .map(|rates| rates.iter().sum())
                    .filter(|sum: &f64| sum.is_finite())
            })
        };
        self.input_rows_total = self
            .input_rows_total
            .saturating_add(input_rows.unwrap_or(0).max(0));
        self.last = Some(Batch {
            id: progress.batch_id,
            input_rows,
            output_rows: progress.sink.as_ref().and_then(|sink| sink.num_output_rows),
            input_rows_per_second: rate(progress.input_rows_per_second, |source| {
                source.input_rows_per_second
            }),
            processed_rows_per_second: rate(progress.processed_rows_per_second, |source| {
                source.processed_rows_per_second
            }),
            trigger_ms: progress.duration_ms.get("triggerExecution").copied(),
            watermark_lag_ms: watermark_lag_ms(&progress),
            state,
            offsets_behind_max: offsets
                .filter_map(|offsets| offsets.parse::<f64>().ok())
                .filter(|offsets| (0.0..i64::MAX as f64).contains(offsets))
                .map(|offsets| offsets as i64)
                .max(),
        });
        self.id = progress.id;
        self.name = progress.name.or(self.name.take());
    }

    /// Adds what is known of it.
    pub(super) fn add_metrics(&self, metrics: &mut BTreeMap<String, MetricValue>) {
        let mut add = |name: &str, value: MetricValue| {
            metrics.insert(format!("stream.{name}"), value);
        };
        add("id", MetricValue::String(self.id.clone()));
        if let Some(name) = &self.name {
            add("name", MetricValue::String(name.clone()));
        }
        add("active", MetricValue::Boolean(self.terminated.is_none()));
        if let Some(failed) = self.terminated {
            add("failed", MetricValue::Boolean(failed));
        }
        let Some(last) = &self.last else {
            return;
        };
        let state = last.state.as_ref();
        let longs = [
            ("batchId", last.id),
            ("inputRows", last.input_rows),
            (
                "inputRowsTotal",
                last.input_rows.map(|_| self.input_rows_total),
            ),
            ("outputRows", last.output_rows),
            ("triggerMs", last.trigger_ms),
            ("watermarkLagMs", last.watermark_lag_ms),
            ("stateRows", state.map(|state| state.rows)),
            ("stateBytes", state.and_then(|state| state.bytes)),
            (
                "rowsDroppedByWatermark",
                state.and_then(|state| state.dropped_by_watermark),
            ),
            ("offsetsBehindMax", last.offsets_behind_max),
        ];
        for (name, value) in longs {
            // Only the watermark may be ahead. Otherwise a negative number is Spark's for what it does not know.
            if let Some(value) = value.filter(|value| *value >= 0 || name == "watermarkLagMs") {
                add(name, MetricValue::Long(value));
            }
        }
        let rates = [
            ("inputRowsPerSecond", last.input_rows_per_second),
            ("processedRowsPerSecond", last.processed_rows_per_second),
        ];
        for (name, rate) in rates {
            if let Some(rate) = rate {
                add(name, MetricValue::Double(rate));
            }
        }
    }
}

/// The sum; none of nothing, or where one is not known.
fn sum(mut counts: impl Iterator<Item = Option<i64>>) -> Option<i64> {
    let first = counts.next()??;
    counts.try_fold(first, |sum, count| Some(mapping::sum(sum, count?)))
}

/// When the progress was made, in milliseconds since 1970.
pub(super) fn time_ms(progress: &Progress) -> Option<i64> {
    let time: Timestamp = progress.timestamp.parse().ok()?;
    Some(time.as_millisecond())
}

/// How far the watermark is behind the trigger. Before there is one, Spark shows it as 1970.
fn watermark_lag_ms(progress: &Progress) -> Option<i64> {
    let watermark: Timestamp = progress.event_time.get("watermark")?.parse().ok()?;
    let watermark = watermark.as_millisecond();
    (watermark > 0).then_some(time_ms(progress)?.saturating_sub(watermark))
}
