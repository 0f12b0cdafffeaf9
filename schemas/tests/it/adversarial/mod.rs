//! Records with maximum cost: maps with keys that become equal by repair or share long prefixes, in any
//! order; lists and texts in which everything needs repair.

use proptest::prelude::*;
use proptest::sample::select;
use schemas::{
    JobProgressInfo, MetricValue, ResourceWithStatus, TaskProgressInfo, TaskResourceInfo,
    TaskRunningInfo,
};

/// A record of any number of items.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Alphabet of the keys: the more characters, the shorter the keys.
    alphabet: Vec<char>,
    /// Common prefix of all keys.
    beginning: String,
    part: Part,
    value: MetricValue,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Metrics,
    Applications,
    Jobs,
    /// One metric with one long text.
    Text,
    /// Identifiers that only a repair makes too long, and a long text.
    Identifiers,
}

pub(crate) fn shape() -> impl Strategy<Value = Shape> {
    let characters = ['\0', '\u{FFFD}', 'a', '9', '\u{1}', 'ü'];
    // Most keys collide.
    let alphabet = prop_oneof![
        3 => Just(vec!['\0', '\u{FFFD}']),
        1 => Just(vec!['\0', '\u{FFFD}', '9']),
        1 => prop::sample::subsequence(characters.to_vec(), 2..=6),
    ];
    let parts = [
        Part::Metrics,
        Part::Metrics,
        Part::Applications,
        Part::Jobs,
        Part::Text,
        Part::Identifiers,
    ];
    let values = [
        MetricValue::Null,
        MetricValue::Long(-1),
        MetricValue::Double(f64::NAN),
        MetricValue::String("NaN".into()),
        MetricValue::String("\0\0\0\0".into()),
        MetricValue::String("\u{1}\"\\".into()),
    ];
    let beginning = (select(vec!["", "\0", "a", "\u{FFFD}9"]), 0..40_usize);
    (
        alphabet,
        beginning,
        select(parts.to_vec()),
        select(values.to_vec()),
    )
        .prop_map(|(alphabet, (text, times), part, value)| Shape {
            alphabet,
            beginning: text.repeat(times),
            part,
            value,
        })
}

#[allow(dead_code, reason = "each crate's tests use theirs")]
impl Shape {
    /// Applications with equal first halves of their ids.
    pub(crate) fn of_applications() -> Self {
        Self {
            alphabet: vec!['\0', '\u{FFFD}', '9'],
            beginning: "a".repeat(9),
            part: Part::Applications,
            value: MetricValue::Null,
        }
    }

    /// All colliding keys of a map.
    pub(crate) fn of_colliding_keys() -> Self {
        Self {
            alphabet: vec!['\0', '\u{FFFD}'],
            beginning: String::new(),
            part: Part::Metrics,
            value: MetricValue::Null,
        }
    }

    /// `good`, with this number of items of this shape.
    pub(crate) fn spoil(&self, good: &TaskRunningInfo, items: usize) -> TaskRunningInfo {
        let mut info = good.clone();
        (info.progress, info.resource, info.metrics) = (None, None, None);
        let keys = (0..items).map(|i| self.key(i, items));
        match self.part {
            Part::Metrics => {
                info.metrics = Some(keys.map(|key| (key, self.value.clone())).collect());
            }
            Part::Applications => {
                let held = |key: String| ResourceWithStatus {
                    queue_memory: -1,
                    queue: key.clone(),
                    job_status: key,
                    ..ResourceWithStatus::default()
                };
                info.resource = Some(TaskResourceInfo {
                    applications: keys.map(|key| (key.clone(), held(key))).collect(),
                });
            }
            Part::Jobs => {
                let job = |id| JobProgressInfo {
                    id,
                    total_tasks: -1,
                    ..JobProgressInfo::default()
                };
                info.progress = Some(TaskProgressInfo {
                    progress: f64::NAN,
                    progress_info: keys.map(job).collect(),
                });
            }
            Part::Text | Part::Identifiers => {
                let text: String = keys.collect();
                info.metrics = Some([("text".to_owned(), MetricValue::String(text))].into());
            }
        }
        if let Part::Identifiers = self.part {
            info.exec_id = "\0".repeat(512);
            info.engine.ticket_id = "\0".repeat(171);
        }
        info
    }

    /// One of `count` distinct keys of the same length.
    fn key(&self, i: usize, count: usize) -> String {
        let base = self.alphabet.len();
        let mut key = self.beginning.clone();
        let (mut left, mut most) = (i, count.max(2) - 1);
        while most > 0 {
            key.push(self.alphabet[left % base]);
            (left, most) = (left / base, most / base);
        }
        key
    }
}
