//! Items of the records' arrays and maps.

use serde::ser::{Serialize, Serializer};

use super::bytes::Bytes;
use super::list::{Entry, Item, List};
use crate::Adjustment;

/// A field that was NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NotFinite<'a> {
    /// Its path in `info`.
    pub field: &'a str,
    /// `NaN`, `Infinity` or `-Infinity`.
    pub value: &'a str,
}

/// One job inside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Job<'a> {
    /// The engine's name for the job.
    pub id: &'a str,
    /// Number of all tasks.
    pub total_tasks: i32,
    /// Number of running tasks.
    pub running_tasks: i32,
    /// Number of tasks that ended with an error.
    pub failed_tasks: i32,
    /// Number of successful tasks.
    pub succeed_tasks: i32,
}

/// Resources of one application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Application<'a> {
    /// Its id.
    pub id: &'a str,
    /// Memory, in bytes.
    pub memory_bytes: i64,
    /// Cores.
    pub cores: i32,
    /// Containers, executors, …, without the driver.
    pub instances: i32,
    /// Its status, in the engine's terms.
    pub status: &'a str,
    /// The queue it was submitted to; may be empty.
    pub queue: &'a str,
}

/// A metric's name and value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NamedMetric<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its value.
    pub value: PlainMetric<'a>,
}

/// A metric's value; in JSON as [`MetricValue`](crate::MetricValue) writes it.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum PlainMetric<'a> {
    /// Known by name, value unknown.
    Null,
    /// A boolean.
    Boolean(bool),
    /// An integer.
    Long(i64),
    /// A floating-point number.
    Double(f64),
    /// A text.
    String(&'a str),
}

/// Serializes as a JSON object with sorted names.
impl Serialize for List<'_, NamedMetric<'_>> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.sorted().map(|metric| (metric.name, metric.value)))
    }
}

impl<'a> Item<'a> for Job<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            id: bytes.text()?,
            total_tasks: bytes.count()?,
            running_tasks: bytes.count()?,
            failed_tasks: bytes.count()?,
            succeed_tasks: bytes.count()?,
        })
    }
}

impl<'a> Item<'a> for Application<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            id: bytes.text()?,
            memory_bytes: bytes.long().filter(|memory| *memory >= 0)?,
            cores: bytes.count()?,
            instances: bytes.count()?,
            status: bytes.text()?,
            queue: bytes.text()?,
        })
    }
}

impl<'a> Entry<'a> for Application<'a> {
    fn key(&self) -> &'a str {
        self.id
    }
}

impl<'a> Item<'a> for NamedMetric<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            name: bytes.text()?,
            value: match bytes.index()? {
                0 => PlainMetric::Null,
                1 => PlainMetric::Boolean(match bytes.take(1)? {
                    [0] => false,
                    [1] => true,
                    _ => return None,
                }),
                2 => PlainMetric::Long(bytes.long()?),
                3 => PlainMetric::Double(bytes.double().filter(|value| value.is_finite())?),
                4 => {
                    let text = bytes.text()?;
                    if bytes.1.is_not_finite(text) {
                        return None;
                    }
                    PlainMetric::String(text)
                }
                _ => return None,
            },
        })
    }
}

impl<'a> Entry<'a> for NamedMetric<'a> {
    fn key(&self) -> &'a str {
        self.name
    }
}

impl<'a> Item<'a> for NotFinite<'a> {
    fn read(bytes: &mut Bytes<'a>) -> Option<Self> {
        Some(Self {
            field: bytes.text()?,
            value: bytes.text()?,
        })
    }
}

impl<'a> Entry<'a> for NotFinite<'a> {
    fn key(&self) -> &'a str {
        self.field
    }
}

/// In the schema's order.
const ADJUSTMENTS: [Adjustment; 7] = [
    Adjustment::Unknown,
    Adjustment::ProgressNotANumber,
    Adjustment::ProgressBelowZero,
    Adjustment::ProgressAboveOne,
    Adjustment::NegativeCount,
    Adjustment::NulInText,
    Adjustment::MetricNotFinite,
];

impl Item<'_> for Adjustment {
    fn read(bytes: &mut Bytes<'_>) -> Option<Self> {
        ADJUSTMENTS.get(bytes.index()?).copied()
    }
}
