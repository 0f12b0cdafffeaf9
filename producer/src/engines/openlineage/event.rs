//! A JSON text → what a report takes of an OpenLineage event. Pure; linear in the text's bytes.
//!
//! Only what a report needs is parsed. The rest (plans, schemas, query texts, properties) is skipped without being
//! copied, and a facet of another shape than expected counts as missing: the other parts of the event are read.
//! Long because each facet that is used has its type here.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};

use schemas::REPORTED_AT_MICROS;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use service::text::shown;

use super::event_time;
use crate::polling::limits::identifier;

/// Characters of a value that a reason quotes.
const QUOTED_CHARS: usize = 60;

/// Why an event cannot be reported. Quotes nothing but ids and times: the rest may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    /// One of [`schemas::dead_letter::KINDS`].
    pub(crate) kind: &'static str,
    /// What was found, and where.
    pub(crate) reason: String,
}

impl Refused {
    pub(super) fn malformed(reason: impl Into<String>) -> Self {
        Self {
            kind: "Malformed",
            reason: reason.into(),
        }
    }
}

/// An event.
#[derive(Debug)]
pub(crate) enum Event {
    Run(Box<RunEvent>),
    /// A job event or a dataset event, which is about no run.
    NotOfRun,
}

/// An event of a run.
#[derive(Debug, Default)]
pub(crate) struct RunEvent {
    pub(super) run_id: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// `None` if it has none that the specification knows.
    pub(super) event_type: Option<EventType>,
    /// Microseconds since 1970; `None` if the event has no time.
    pub(super) time: Option<i64>,
    pub(super) facts: Facts,
    pub(super) inputs: Vec<(DatasetId, Statistics)>,
    pub(super) outputs: Vec<(DatasetId, Statistics)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EventType {
    Start,
    Running,
    Complete,
    Abort,
    Fail,
    Other,
}

/// What the facets tell; of a run, they accumulate. Texts are no longer than an identifier may be: they are remembered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) engine_type: EngineType,
    pub(super) user: Option<String>,
    pub(super) ticket_id: Option<String>,
    pub(super) parent_run: Option<String>,
    pub(super) root_run: Option<String>,
    pub(super) job_type: Option<String>,
    pub(super) processing_type: Option<String>,
    pub(super) checkpoints: Option<Checkpoints>,
}

/// The engine's name, by the trust in where it is from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum EngineType {
    #[default]
    Unknown,
    /// From the address of what has sent the event.
    Producer(String),
    /// The integration that the job names.
    Integration(String),
    /// The processing engine that the run names.
    Engine(String),
}

impl EngineType {
    fn trust(&self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Producer(_) => 1,
            Self::Integration(_) => 2,
            Self::Engine(_) => 3,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Unknown => "openlineage",
            Self::Producer(name) | Self::Integration(name) | Self::Engine(name) => name,
        }
    }
}

impl Facts {
    /// Adds what a later event of the run tells. What is known stays, so that a run's identity does not change.
    pub(super) fn add(&mut self, later: Self) {
        fn keep<T>(known: &mut Option<T>, later: Option<T>) {
            if known.is_none() {
                *known = later;
            }
        }
        if later.engine_type.trust() > self.engine_type.trust() {
            self.engine_type = later.engine_type;
        }
        keep(&mut self.user, later.user);
        keep(&mut self.ticket_id, later.ticket_id);
        keep(&mut self.parent_run, later.parent_run);
        keep(&mut self.root_run, later.root_run);
        keep(&mut self.job_type, later.job_type);
        keep(&mut self.processing_type, later.processing_type);
        self.checkpoints = later.checkpoints.or(self.checkpoints.take());
    }
}

/// Counts of a Flink job's checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(super) struct Checkpoints {
    pub(super) completed: Option<i64>,
    pub(super) failed: Option<i64>,
    pub(super) in_progress: Option<i64>,
}

/// A hash of a dataset's namespace and name.
pub(super) type DatasetId = u64;

/// What was read from a dataset, or written to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Statistics {
    pub(super) rows: Option<i64>,
    pub(super) bytes: Option<i64>,
    pub(super) files: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Whole<'a> {
    #[serde(borrow)]
    event_type: Option<&'a RawValue>,
    #[serde(borrow)]
    event_time: Option<&'a RawValue>,
    #[serde(borrow)]
    producer: Option<&'a RawValue>,
    #[serde(borrow)]
    run: Option<&'a RawValue>,
    #[serde(borrow)]
    job: Option<&'a RawValue>,
    #[serde(borrow)]
    dataset: Option<&'a RawValue>,
    #[serde(borrow)]
    inputs: Option<&'a RawValue>,
    #[serde(borrow)]
    outputs: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Run<'a> {
    #[serde(borrow)]
    run_id: Option<&'a RawValue>,
    #[serde(borrow)]
    facets: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Job<'a> {
    #[serde(borrow)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    facets: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RunFacets<'a> {
    #[serde(borrow)]
    parent: Option<&'a RawValue>,
    /// The name of `parent` in events of the first versions.
    #[serde(borrow, rename = "parentRun")]
    parent_run: Option<&'a RawValue>,
    #[serde(borrow)]
    processing_engine: Option<&'a RawValue>,
    #[serde(borrow, rename = "externalQuery")]
    external_query: Option<&'a RawValue>,
    #[serde(borrow, rename = "spark_applicationDetails")]
    spark_application: Option<&'a RawValue>,
    #[serde(borrow)]
    flink_job: Option<&'a RawValue>,
    #[serde(borrow)]
    hive_query: Option<&'a RawValue>,
    #[serde(borrow)]
    hive_session: Option<&'a RawValue>,
    #[serde(borrow)]
    trino_query_context: Option<&'a RawValue>,
    #[serde(borrow)]
    checkpoints: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parent<'a> {
    #[serde(borrow)]
    run: Option<&'a RawValue>,
    #[serde(borrow)]
    root: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct JobFacets<'a> {
    #[serde(borrow, rename = "jobType")]
    job_type: Option<&'a RawValue>,
}

/// Texts of facets, by the names that they have there.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Texts<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    integration: Option<&'a RawValue>,
    #[serde(borrow)]
    job_type: Option<&'a RawValue>,
    #[serde(borrow)]
    processing_type: Option<&'a RawValue>,
    #[serde(borrow)]
    external_query_id: Option<&'a RawValue>,
    #[serde(borrow)]
    application_id: Option<&'a RawValue>,
    #[serde(borrow)]
    job_id: Option<&'a RawValue>,
    #[serde(borrow)]
    query_id: Option<&'a RawValue>,
    #[serde(borrow)]
    user_name: Option<&'a RawValue>,
    #[serde(borrow)]
    username: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Dataset<'a> {
    #[serde(borrow)]
    namespace: Option<&'a RawValue>,
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    input_facets: Option<&'a RawValue>,
    #[serde(borrow)]
    output_facets: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DatasetFacets<'a> {
    #[serde(borrow)]
    input_statistics: Option<&'a RawValue>,
    #[serde(borrow)]
    output_statistics: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Counts<'a> {
    #[serde(borrow)]
    row_count: Option<&'a RawValue>,
    #[serde(borrow)]
    size: Option<&'a RawValue>,
    #[serde(borrow)]
    file_count: Option<&'a RawValue>,
}

impl Event {
    /// Reads an event.
    ///
    /// # Errors
    /// If it is not an OpenLineage event, or does not identify its run.
    pub(crate) fn parse(event: &[u8]) -> Result<Self, Refused> {
        let text = std::str::from_utf8(event).map_err(|error| {
            let at = error.valid_up_to();
            Refused::malformed(format!("the event is not UTF-8 at byte {at}"))
        })?;
        if text.trim_ascii().is_empty() {
            return Err(Refused {
                kind: "Empty",
                reason: "the event is empty".to_owned(),
            });
        }
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Refused::malformed("the event is not a JSON object"));
        }
        let whole: Whole<'_> = serde_json::from_str(text).map_err(|error| {
            // The category instead of the message, which can quote the event.
            let what = match error.classify() {
                serde_json::error::Category::Eof => "the JSON ends early",
                serde_json::error::Category::Data => "a field is given twice",
                _ => "the JSON is not valid",
            };
            let (line, column) = (error.line(), error.column());
            Refused::malformed(format!("{what}, at line {line} column {column}"))
        })?;
        let Some(run) = whole.run else {
            return match whole.job.is_some() || whole.dataset.is_some() {
                true => Ok(Self::NotOfRun),
                false => Err(Refused::malformed(
                    "the event has neither run, job nor dataset: it is not of OpenLineage",
                )),
            };
        };
        let run: Run<'_> = required_object(Some(run), "run")?;
        let job: Job<'_> = required_object(whole.job, "job")?;
        let required = |raw, field: &str| {
            text_of(raw).ok_or_else(|| Refused {
                kind: "BlankIdentifier",
                reason: format!("{field} is missing, blank or no text"),
            })
        };
        let facts = facts(&run, &job, whole.producer);
        Ok(Self::Run(Box::new(RunEvent {
            run_id: required(run.run_id, "run.runId")?,
            namespace: text_of(job.namespace).unwrap_or_default(),
            name: required(job.name, "job.name")?,
            event_type: text_of(whole.event_type).and_then(|name| EventType::of(&name)),
            time: whole.event_time.map(micros).transpose()?,
            facts,
            inputs: statistics(whole.inputs),
            outputs: statistics(whole.outputs),
        })))
    }
}

impl EventType {
    fn of(name: &str) -> Option<Self> {
        Some(match name.to_ascii_uppercase().as_str() {
            "START" => Self::Start,
            "RUNNING" => Self::Running,
            "COMPLETE" => Self::Complete,
            "ABORT" => Self::Abort,
            "FAIL" => Self::Fail,
            "OTHER" => Self::Other,
            _ => return None,
        })
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Start => "START",
            Self::Running => "RUNNING",
            Self::Complete => "COMPLETE",
            Self::Abort => "ABORT",
            Self::Fail => "FAIL",
            Self::Other => "OTHER",
        }
    }
}

fn facts(run: &Run<'_>, job: &Job<'_>, producer: Option<&RawValue>) -> Facts {
    let facets: RunFacets<'_> = object(run.facets).unwrap_or_default();
    let parent: Parent<'_> = object(facets.parent.or(facets.parent_run)).unwrap_or_default();
    let root: Parent<'_> = object(parent.root).unwrap_or_default();
    let run_of = |parent: &Parent<'_>| {
        let run: Run<'_> = object(parent.run)?;
        identifier_of(run.run_id)
    };
    let texts = |raw| object::<Texts<'_>>(raw).unwrap_or_default();
    let engine = text_of(texts(facets.processing_engine).name);
    let job_facets: JobFacets<'_> = object(job.facets).unwrap_or_default();
    let job_type = texts(job_facets.job_type);
    let (spark, hive) = (texts(facets.spark_application), texts(facets.hive_session));
    let trino = texts(facets.trino_query_context);
    let external = texts(facets.external_query).external_query_id;
    let flink = texts(facets.flink_job).job_id;
    let query = texts(facets.hive_query).query_id;
    let engine_type = || {
        let lower = |name: String| identifier(&name.to_lowercase());
        if let Some(name) = engine {
            return Some(EngineType::Engine(lower(name)));
        }
        if let Some(name) = text_of(job_type.integration) {
            return Some(EngineType::Integration(lower(name)));
        }
        Some(EngineType::Producer(lower(of_address(&text_of(
            producer,
        )?)?)))
    };
    Facts {
        engine_type: engine_type().unwrap_or_default(),
        user: identifier_of(spark.user_name)
            .or_else(|| identifier_of(hive.username))
            .or_else(|| identifier_of(trino.user)),
        ticket_id: identifier_of(external)
            .or_else(|| identifier_of(spark.application_id))
            .or_else(|| identifier_of(flink))
            .or_else(|| identifier_of(query)),
        parent_run: run_of(&parent),
        root_run: run_of(&root),
        job_type: identifier_of(job_type.job_type),
        processing_type: identifier_of(job_type.processing_type),
        checkpoints: object(facets.checkpoints),
    }
}

/// The engine in the address of a producer: `…/integration/spark/…`, or else the repository `github.com/OWNER/NAME`.
fn of_address(producer: &str) -> Option<String> {
    let (_, path) = producer.split_once("://")?;
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let host = parts.next()?;
    let parts: Vec<&str> = parts.take(16).collect();
    let integration = parts.windows(2).find(|pair| pair[0] == "integration");
    let repository = (host == "github.com").then(|| parts.get(1)).flatten();
    let name = integration.map(|pair| pair[1]).or(repository.copied())?;
    Some(name.to_owned())
}

/// The datasets that have statistics.
fn statistics(datasets: Option<&RawValue>) -> Vec<(DatasetId, Statistics)> {
    let mut found = Vec::new();
    let Some(datasets) = datasets else {
        return found;
    };
    let each = Each(|dataset| {
        let dataset: Dataset<'_> = object(Some(dataset)).unwrap_or_default();
        let facets = object(dataset.output_facets.or(dataset.input_facets));
        let facets: DatasetFacets<'_> = facets.unwrap_or_default();
        let counts = object(facets.output_statistics.or(facets.input_statistics));
        let Some(Counts {
            row_count,
            size,
            file_count,
        }) = counts
        else {
            return;
        };
        let count = |raw: Option<&RawValue>| {
            let count: i64 = serde_json::from_str(raw?.get()).ok()?;
            (count >= 0).then_some(count)
        };
        let mut id = DefaultHasher::new();
        (text_of(dataset.namespace), text_of(dataset.name)).hash(&mut id);
        let statistics = Statistics {
            rows: count(row_count),
            bytes: count(size),
            files: count(file_count),
        };
        found.push((id.finish(), statistics));
    });
    let mut deserializer = serde_json::Deserializer::from_str(datasets.get());
    // What is no array has no datasets.
    let _ = each.deserialize(&mut deserializer);
    found
}

/// Calls a function with each element of an array, which is never in memory as a whole.
struct Each<F>(F);

impl<'de, F: FnMut(&'de RawValue)> DeserializeSeed<'de> for Each<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut array: A) -> Result<(), A::Error> {
        while let Some(element) = array.next_element()? {
            self.0(element);
        }
        Ok(())
    }
}

/// `None` if it is not an object, or a field is given twice. (serde would read an array's elements as the fields.)
fn object<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>) -> Option<T> {
    let text = raw?.get();
    let object = text
        .starts_with('{')
        .then(|| serde_json::from_str(text).ok());
    object.flatten()
}

/// As [`object`].
///
/// # Errors
/// If it is none.
fn required_object<'a, T: Deserialize<'a>>(
    raw: Option<&'a RawValue>,
    name: &str,
) -> Result<T, Refused> {
    let is_object = |raw: &RawValue| raw.get().starts_with('{');
    object(raw).ok_or_else(|| {
        Refused::malformed(match raw {
            None => format!("{name} is missing"),
            Some(raw) if is_object(raw) => format!("a field of {name} is given twice"),
            Some(_) => format!("{name} is no object"),
        })
    })
}

/// `None` if it is no text, or blank.
fn text_of(raw: Option<&RawValue>) -> Option<String> {
    let text: String = serde_json::from_str(raw?.get()).ok()?;
    (!text.trim().is_empty()).then_some(text)
}

/// As [`text_of`], no longer than an identifier may be.
fn identifier_of(raw: Option<&RawValue>) -> Option<String> {
    text_of(raw).map(|text| identifier(&text))
}

/// An event's time, in microseconds since 1970.
fn micros(raw: &RawValue) -> Result<i64, Refused> {
    let text: Option<String> = serde_json::from_str(raw.get()).ok();
    let found = text.as_deref().unwrap_or(raw.get());
    let quoted = || {
        let found: String = found.chars().take(QUOTED_CHARS).collect();
        shown(&found)
    };
    match text.as_deref().and_then(event_time::micros) {
        None => Err(Refused::malformed(format!(
            "eventTime {} is not a time as in RFC 3339",
            quoted()
        ))),
        Some(time) if !REPORTED_AT_MICROS.contains(&time) => Err(Refused {
            kind: "TimeOutOfRange",
            reason: format!("eventTime {} is outside the years 1 to 9999", quoted()),
        }),
        Some(time) => Ok(time),
    }
}
