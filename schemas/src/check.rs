//! Validation of decoded records: every problem, by field.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;

use icu_properties::props::{
    BinaryProperty, DefaultIgnorableCodePoint, EnumeratedProperty, GeneralCategory,
    GeneralCategoryGroup,
};

use crate::records::not_finite;
use crate::{Adjustment, MetricValue, TaskRunningInfo, TaskRunningInfoEvent};

/// Maximum length of an identifier, in bytes of UTF-8. (PostgreSQL's btree takes about 2,700 bytes.)
pub const IDENTIFIER_MAX_BYTES: usize = 512;

/// Times that both databases and ISO dates support: the years 1 to 9999, in microseconds since 1970.
pub const REPORTED_AT_MICROS: RangeInclusive<i64> =
    -62_135_596_800_000_000..=253_402_300_799_999_999;

/// A problem of a field.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The field's path, e.g. `progress.progressInfo[2].totalTasks`.
    pub field: Cow<'static, str>,
    /// The kind of fault.
    pub fault: Fault,
    /// The value found, shortened if long.
    pub found: String,
}

/// A kind of fault. Those with an [`adjustment`](Fault::adjustment) can be repaired; any other makes a record
/// unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// An identifier without a visible character.
    BlankIdentifier,
    /// An identifier of more than [`IDENTIFIER_MAX_BYTES`] after its repair: U+FFFD, which replaces U+0000,
    /// takes three bytes instead of one.
    OverlongIdentifier,
    /// A time outside [`REPORTED_AT_MICROS`].
    TimeOutOfRange,
    /// Meaningful, but out of range.
    OutOfRange(Adjustment),
}

impl Fault {
    /// The repair; `None` if there is none.
    pub fn adjustment(self) -> Option<Adjustment> {
        match self {
            Self::OutOfRange(adjustment) => Some(adjustment),
            _ => None,
        }
    }

    /// The kind as a fixed word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlankIdentifier => "BlankIdentifier",
            Self::OverlongIdentifier => "OverlongIdentifier",
            Self::TimeOutOfRange => "TimeOutOfRange",
            Self::OutOfRange(adjustment) => adjustment.as_str(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            field,
            fault,
            found,
        } = self;
        match fault {
            Fault::BlankIdentifier if found.trim_matches(['"', ' ']).is_empty() => {
                write!(f, "{field} is blank")
            }
            Fault::BlankIdentifier => {
                write!(f, "{field} is blank: {found} has no visible character")
            }
            Fault::OverlongIdentifier => {
                write!(
                    f,
                    "{field} is longer than {IDENTIFIER_MAX_BYTES} bytes: {found}"
                )
            }
            Fault::TimeOutOfRange => {
                write!(
                    f,
                    "{field} is outside the years 1 to 9999: {found} µs since 1970"
                )
            }
            Fault::OutOfRange(Adjustment::ProgressNotANumber) => {
                write!(f, "{field} is not a number")
            }
            Fault::OutOfRange(Adjustment::ProgressBelowZero) => {
                write!(f, "{field} is below 0: {found}")
            }
            Fault::OutOfRange(Adjustment::ProgressAboveOne) => {
                write!(f, "{field} is above 1: {found}")
            }
            Fault::OutOfRange(Adjustment::NegativeCount) => {
                write!(f, "{field} is negative: {found}")
            }
            Fault::OutOfRange(Adjustment::NulInText) => write!(f, "{field} holds U+0000: {found}"),
            Fault::OutOfRange(Adjustment::MetricNotFinite) => {
                write!(f, "{field} is not a finite number: {found}")
            }
            Fault::OutOfRange(Adjustment::Unknown) => write!(f, "{field}: {found}"),
        }
    }
}

impl TaskRunningInfo {
    /// All problems of this record, in the schema's order. After the first thousand, only the first of each
    /// further kind.
    pub fn problems(&self) -> Vec<Problem> {
        self.problems_by(Rules::Current)
    }

    fn problems_by(&self, rules: Rules) -> Vec<Problem> {
        let mut problems = Problems::default();
        let engine = &self.engine;

        problems.required("execId", &self.exec_id, rules);
        problems.required("jobId", &self.job_id, rules);
        problems.required("engine.instance", &engine.instance, rules);
        problems.required("engine.engineType", &engine.engine_type, rules);
        problems.identifier("engine.user", &engine.user);
        problems.identifier("engine.ticketId", &engine.ticket_id);
        problems.count("engine.runningTasks", engine.running_tasks.into());
        if !REPORTED_AT_MICROS.contains(&self.reported_at) {
            let found = || self.reported_at.to_string();
            problems.add(|| "reportedAt", Fault::TimeOutOfRange, found);
        }
        problems.count("sequence", self.sequence);

        if let Some(progress) = &self.progress {
            if let Some(adjustment) = rules.progress_adjustment(progress.progress) {
                let (field, found) = (|| "progress.progress", || progress.progress.to_string());
                problems.add(field, Fault::OutOfRange(adjustment), found);
            }
            for (i, job) in progress.progress_info.iter().enumerate() {
                let field = |name| move || format!("progress.progressInfo[{i}].{name}");
                problems.text_at(field("id"), &job.id);
                problems.count_at(field("totalTasks"), job.total_tasks.into());
                problems.count_at(field("runningTasks"), job.running_tasks.into());
                problems.count_at(field("failedTasks"), job.failed_tasks.into());
                problems.count_at(field("succeedTasks"), job.succeed_tasks.into());
            }
        }
        for (id, application) in self
            .resource
            .iter()
            .flat_map(|resource| &resource.applications)
        {
            let field = |name| move || format!("resource.applications[{}].{name}", shown(id));
            problems.text_at(|| format!("resource.applications[{}]", shown(id)), id);
            problems.count_at(field("queueMemory"), application.queue_memory);
            problems.count_at(field("queueCores"), application.queue_cores.into());
            problems.count_at(field("queueInstances"), application.queue_instances.into());
            problems.text_at(field("jobStatus"), &application.job_status);
            problems.text_at(field("queue"), &application.queue);
        }
        for (name, value) in self.metrics.iter().flatten() {
            let field = || format!("metrics[{}]", shown(name));
            problems.text_at(field, name);
            match value {
                _ if rules.is_metric_not_finite(value) => {
                    let fault = Fault::OutOfRange(Adjustment::MetricNotFinite);
                    problems.add(field, fault, || format!("{value:?}"));
                }
                MetricValue::String(text) => problems.text_at(field, text),
                _ => {}
            }
        }
        problems.kept
    }
}

impl TaskRunningInfoEvent {
    /// All problems that prove that no router, of this version or an older one, wrote this event.
    pub fn problems(&self) -> Vec<Problem> {
        self.info.problems_by(Rules::EveryVersion)
    }
}

/// Rules that define faults.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rules {
    /// For reports.
    Current,
    /// For events, which any released version of the router may have written: only faults that all versions
    /// refuse or repair.
    EveryVersion,
}

impl Rules {
    /// Whether an identifier is blank. Older routers accepted identifiers without a visible character unless
    /// they were all whitespace.
    pub(crate) fn is_blank(self, text: &str) -> bool {
        match self {
            Self::Current => is_blank(text),
            Self::EveryVersion => is_whitespace(text),
        }
    }

    /// Whether a text names NaN or an infinity. Routers before event version 3 knew only these three names.
    pub(crate) fn is_not_finite(self, text: &str) -> bool {
        match self {
            Self::Current => not_finite(text).is_some(),
            Self::EveryVersion => matches!(text, "NaN" | "Infinity" | "-Infinity"),
        }
    }

    fn is_metric_not_finite(self, value: &MetricValue) -> bool {
        match value {
            MetricValue::String(text) => self.is_not_finite(text),
            _ => value.not_finite().is_some(),
        }
    }

    /// The fault of a progress value. Negative zero is zero; routers before event version 3 counted it as
    /// below 0.
    fn progress_adjustment(self, progress: f64) -> Option<Adjustment> {
        if progress.is_nan() {
            Some(Adjustment::ProgressNotANumber)
        } else if progress < 0.0
            || matches!(self, Self::EveryVersion) && progress.is_sign_negative()
        {
            Some(Adjustment::ProgressBelowZero)
        } else if progress > 1.0 {
            Some(Adjustment::ProgressAboveOne)
        } else {
            None
        }
    }
}

impl MetricValue {
    /// NaN or an infinity, as a number or by a name that JSON writers use (apache/flink writes the text "NaN"
    /// beside numbers in the same metric).
    pub fn not_finite(&self) -> Option<f64> {
        match self {
            Self::Double(value) => (!value.is_finite()).then_some(*value),
            Self::String(text) => not_finite(text),
            _ => None,
        }
    }
}

/// Whether a text has no visible character after its repair (U+0000 becomes U+FFFD). Invisible are spaces and
/// the characters that `service::text` escapes; a test of the consumer compares the two rules. Nearly every
/// identifier begins with a visible ASCII character.
fn is_blank(text: &str) -> bool {
    let is_invisible = |c: char| {
        c != '\0'
            && (c.is_whitespace()
                // A symbol in Unicode, but looks like a space.
                || c == '\u{2800}'
                || DefaultIgnorableCodePoint::for_char(c)
                || GeneralCategoryGroup::Other.contains(GeneralCategory::for_char(c)))
    };
    match text.as_bytes().first() {
        Some(b'!'..=b'~') => false,
        _ => text.chars().all(is_invisible),
    }
}

/// [`is_blank`] by the rule of older routers.
fn is_whitespace(text: &str) -> bool {
    match text.as_bytes().first() {
        Some(b'!'..=b'~') => false,
        _ => text.trim().is_empty(),
    }
}

/// Maximum number of problems that are listed; beyond it, only the first of each further kind. A record of 1
/// MiB can have a million, whose list would take 140 MiB.
const PROBLEMS_LISTED: usize = 1_000;

#[derive(Default)]
struct Problems {
    kept: Vec<Problem>,
    kinds: BTreeSet<Fault>,
}

impl Problems {
    fn add<F: Into<Cow<'static, str>>>(
        &mut self,
        field: impl FnOnce() -> F,
        fault: Fault,
        found: impl FnOnce() -> String,
    ) {
        if self.kinds.insert(fault) || self.kept.len() < PROBLEMS_LISTED {
            self.kept.push(Problem {
                field: field().into(),
                fault,
                found: found(),
            });
        }
    }

    /// An identifier that may not be blank.
    fn required(&mut self, field: &'static str, text: &str, rules: Rules) {
        if rules.is_blank(text) {
            self.add(|| field, Fault::BlankIdentifier, || shown(text));
            self.text_at(|| field.to_owned(), text);
        } else {
            self.identifier(field, text);
        }
    }

    fn identifier(&mut self, field: &'static str, text: &str) {
        let bytes = identifier_bytes(text);
        if bytes > IDENTIFIER_MAX_BYTES {
            let found = || match bytes == text.len() {
                true => shown(text),
                false => format!("{}, {bytes} bytes once it is repaired", shown(text)),
            };
            self.add(|| field, Fault::OverlongIdentifier, found);
        }
        self.text_at(|| field.to_owned(), text);
    }

    fn count(&mut self, field: &'static str, count: i64) {
        self.count_at(|| field.to_owned(), count);
    }

    fn count_at(&mut self, field: impl Fn() -> String, count: i64) {
        if count < 0 {
            let fault = Fault::OutOfRange(Adjustment::NegativeCount);
            self.add(field, fault, || count.to_string());
        }
    }

    fn text_at(&mut self, field: impl Fn() -> String, text: &str) {
        if text.contains('\0') {
            let fault = Fault::OutOfRange(Adjustment::NulInText);
            self.add(field, fault, || shown(text));
        }
    }
}

/// Length of an identifier for [`IDENTIFIER_MAX_BYTES`], in bytes: that of the repaired text, in which U+FFFD
/// replaces U+0000.
pub fn identifier_bytes(text: &str) -> usize {
    let nuls = text.bytes().filter(|byte| *byte == 0).count();
    text.len() + nuls * (char::REPLACEMENT_CHARACTER.len_utf8() - 1)
}

/// A text in quotes, cut after 60 characters.
fn shown(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}… ({} bytes)", &text[..end], text.len()),
        None => format!("{text:?}"),
    }
}
