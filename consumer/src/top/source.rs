//! The source of tasks: the HTTP API of `consumer serve`, or a database. Both return the same values.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use service::exit::WrongUsage;
use service::http::{Certificate, HttpClient, HttpOptions, StatusCode};
use tokio::time::timeout;

use super::TopOptions;
use super::answer::{Answer, Curve, Details, Question};
use crate::query::{Reader, SeriesQuery, TaskFilter, TaskPage, TaskQuery, TaskSeries};
use crate::store::{Database, DatabaseOptions};
use crate::tasks::wrong_usage;

/// The environment variable with a token.
const TOKEN: &str = "TASKRUNNING_TOKEN";
/// Maximum size of an answer.
const ANSWER_MAX_BYTES: usize = 16 << 20;
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of points requested per curve; more than a wide screen has columns.
const POINTS: u32 = 400;
/// The series that are drawn, and their names on the screen.
const CURVES: [(&str, &str); 3] = [
    ("progress", "progress"),
    ("memory_bytes", "memory"),
    ("cores", "cores"),
];
/// Number of reports in the details.
const REPORTS: u32 = 20;

/// The source, and the query for the list.
pub(super) struct Source {
    from: From,
    query: TaskQuery,
}

enum From {
    Database {
        database: Database,
        /// `None` before the first answer and after a failure.
        reader: Option<Reader>,
    },
    Api {
        client: HttpClient,
        token: Option<String>,
    },
}

impl Source {
    /// # Errors
    /// If the options name no source, or contradict each other.
    pub(super) fn of(
        options: &TopOptions,
        database: &DatabaseOptions,
        query: TaskQuery,
    ) -> anyhow::Result<Self> {
        let Some(url) = &options.url else {
            let database = Database::parse(database)?;
            let reader = None;
            return Ok(Self {
                from: From::Database { database, reader },
                query,
            });
        };
        let wrong = |why: String| WrongUsage(format!("--url: {why}"));
        let (base, credentials) = url.to_http().map_err(wrong)?;
        let mut certificates = Vec::new();
        if let Some(file) = &options.ca_file {
            let named = || format!("--ca-file {}", file.display());
            let pem = std::fs::read(file).with_context(named)?;
            certificates = Certificate::from_pem_bundle(&pem).with_context(named)?;
        }
        let limits = HttpOptions {
            response_timeout: RESPONSE_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            // The token is for this server only.
            follow_redirects: false,
            user_agent: Some(concat!("consumer-top/", env!("CARGO_PKG_VERSION"))),
            certificates,
        };
        let client = HttpClient::new(base, credentials, limits).map_err(wrong)?;
        let token = token(options)?;
        Ok(Self {
            from: From::Api { client, token },
            query,
        })
    }

    /// The source, for messages.
    pub(super) fn place(&self) -> String {
        match &self.from {
            From::Database { database, .. } => database.place(),
            From::Api { client, .. } => client.shown().to_owned(),
        }
    }

    /// Checks the query. A source that is unavailable passes: it may come back.
    ///
    /// # Errors
    /// If the source rejects the query.
    pub(super) async fn check(&mut self) -> anyhow::Result<()> {
        match timeout(RESPONSE_TIMEOUT, self.page()).await {
            Ok(Err(error)) if error.chain().any(|cause| cause.is::<WrongUsage>()) => Err(error),
            _ => {
                // Drops the connection: a late answer must not be read as the next one.
                self.give_up();
                Ok(())
            }
        }
    }

    /// Answers a question, or returns an error message.
    pub(super) async fn answer(&mut self, question: &Question) -> Result<Answer, String> {
        let answer = self.ask(question).await;
        answer.map_err(|error| {
            self.give_up();
            format!("{error:#}")
        })
    }

    /// Drops a connection that does not answer; the next question opens a new one.
    pub(super) fn give_up(&mut self) {
        if let From::Database { reader, .. } = &mut self.from {
            *reader = None;
        }
    }

    /// One page of tasks.
    ///
    /// # Errors
    /// If the source is unavailable or returns an error.
    pub(super) async fn page(&mut self) -> anyhow::Result<TaskPage> {
        match &mut self.from {
            From::Database { database, reader } => {
                let reader = fresh(database, reader).await?;
                let page = reader.page(&self.query).await.map_err(wrong_usage)?;
                // The connection is idle until the next question.
                reader.end_snapshot().await?;
                Ok(page)
            }
            From::Api { client, token } => {
                let path = ["api", "v1", "tasks"];
                let fields = query_fields(&self.query);
                let page = get(client, token.as_deref(), &path, &fields).await?;
                page.context(
                    "404: no task list at this address; check that --url is that of consumer serve",
                )
            }
        }
    }

    async fn ask(&mut self, question: &Question) -> anyhow::Result<Answer> {
        let mut page = None;
        if let Some(sort) = question.sort {
            (self.query.order, self.query.descending) = (sort.order, sort.descending);
            page = Some(self.page().await?);
        }
        let mut details = None;
        if let Some(exec_id) = &question.exec_id {
            details = Some(self.details(exec_id).await?);
        }
        Ok(Answer {
            question: question.clone(),
            at: Timestamp::now(),
            page,
            details,
        })
    }

    async fn details(&mut self, exec_id: &str) -> anyhow::Result<Option<Details>> {
        let at = self.query.at;
        let (task, series) = match &mut self.from {
            From::Database { database, reader } => {
                let reader = fresh(database, reader).await?;
                let task = reader.task(exec_id, at, REPORTS).await?;
                let query = SeriesQuery {
                    exec_id: exec_id.to_owned(),
                    user: None,
                    from: None,
                    to: at,
                    points: POINTS,
                    metrics: Vec::new(),
                };
                let series = reader.series(&query).await?;
                reader.end_snapshot().await?;
                (task, series)
            }
            From::Api { client, token } => {
                // A URL cannot have the path segments `.` and `..`.
                let is_dots = matches!(exec_id, "." | "..");
                let path = match is_dots {
                    true => vec!["api", "v1", "task", "series"],
                    false => vec!["api", "v1", "tasks", exec_id, "series"],
                };
                let task_path = &path[..path.len() - 1];
                let by_id = is_dots.then(|| ("exec_id", exec_id.to_owned()));
                let named = |name| move |at: Timestamp| (name, at.to_string());
                let mut fields = vec![("reports", REPORTS.to_string())];
                fields.extend(at.map(named("at")));
                fields.extend(by_id.clone());
                let task = get(client, token.as_deref(), task_path, &fields).await?;
                let mut fields = vec![("points", POINTS.to_string())];
                fields.extend(at.map(named("to")));
                fields.extend(by_id);
                (task, get(client, token.as_deref(), &path, &fields).await?)
            }
        };
        let curves = series.map(curves).unwrap_or_default();
        Ok(task.map(|task| Details { task, curves }))
    }
}

/// The series that are drawn.
fn curves(series: TaskSeries) -> Vec<Curve> {
    let drawn = series.series.into_iter().filter_map(|series| {
        let name = CURVES.iter().find(|(name, _)| series.name == *name)?.1;
        let points = series.points.into_iter();
        let points = points.map(|point| (point.reported_at.as_microsecond(), point.value));
        Some(Curve {
            name,
            points: points.collect(),
        })
    });
    drawn.collect()
}

/// The reader, with a new snapshot.
async fn fresh<'r>(
    database: &Database,
    reader: &'r mut Option<Reader>,
) -> anyhow::Result<&'r mut Reader> {
    let fresh = match reader.take() {
        Some(mut reader) => {
            reader.renew_snapshot().await?;
            reader
        }
        None => Reader::open(database).await?,
    };
    Ok(reader.insert(fresh))
}

/// The token, from the file or the environment.
fn token(options: &TopOptions) -> anyhow::Result<Option<String>> {
    let token = match &options.token_file {
        Some(file) => {
            let read = std::fs::read_to_string(file);
            let token = read.with_context(|| format!("--token-file {}", file.display()))?;
            match token.trim() {
                "" => {
                    let why = format!("--token-file {}: the file is empty", file.display());
                    return Err(WrongUsage(why).into());
                }
                token => Some(token.to_owned()),
            }
        }
        None => std::env::var(TOKEN)
            .ok()
            .map(|token| token.trim().to_owned()),
    };
    Ok(token.filter(|token| !token.is_empty()))
}

/// The API's answer; `None` for 404.
async fn get<T: DeserializeOwned>(
    client: &HttpClient,
    token: Option<&str>,
    path: &[&str],
    query: &[(impl AsRef<str>, String)],
) -> anyhow::Result<Option<T>> {
    let response = client
        .send(client.get(path.iter().copied(), query, token))
        .await?;
    let status = response.status();
    let body = response.body(ANSWER_MAX_BYTES).await?;
    if status.is_success() {
        let value = serde_json::from_slice(&body);
        return Ok(Some(
            value.context("the answer is not from consumer serve")?,
        ));
    }
    /// A problem (RFC 9457); empty if the body is something else.
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Problem {
        title: String,
        detail: String,
    }
    let problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    let hint = match status {
        StatusCode::NOT_FOUND => return Ok(None),
        StatusCode::UNAUTHORIZED => format!("; set a token with --token-file or {TOKEN}"),
        _ => String::new(),
    };
    let detail = match problem.detail.is_empty() {
        true => problem.title,
        false => problem.detail,
    };
    let why = format!("{status}: {detail}{hint}");
    match status {
        // Permanent: retrying does not help.
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(WrongUsage(why).into())
        }
        _ => anyhow::bail!("{why}"),
    }
}
/// The filter's fields that are set, as names and values.
fn fields(filter: &TaskFilter) -> Vec<(String, String)> {
    let Ok(Value::Object(fields)) = serde_json::to_value(filter) else {
        return Vec::new();
    };
    let mut set = Vec::new();
    for (name, value) in fields {
        match value {
            Value::Null | Value::Bool(false) => {}
            Value::Array(values) => {
                let texts = values.iter().filter_map(Value::as_str);
                set.extend(texts.map(|text| (name.clone(), text.to_owned())));
            }
            Value::String(text) => set.push((name, text)),
            other => set.push((name, other.to_string())),
        }
    }
    set
}

/// The filter, for people; empty: no filter.
pub(super) fn shown(filter: &TaskFilter) -> String {
    let each = fields(filter).into_iter();
    let each = each.map(|(name, value)| match value.as_str() {
        "true" => name.replace('_', " "),
        value => format!("{} {value}", name.replace('_', " ")),
    });
    each.collect::<Vec<_>>().join(", ")
}

/// The query as parameters of the API.
fn query_fields(query: &TaskQuery) -> Vec<(String, String)> {
    let mut fields = fields(&query.filter);
    let mut field = |name: &str, value| fields.push((name.to_owned(), value));
    let milliseconds = |duration: Duration| format!("{}ms", duration.as_millis());
    field("limit", query.limit.to_string());
    if let Ok(Value::String(order)) = serde_json::to_value(query.order) {
        field("order", order);
    }
    field("descending", query.descending.to_string());
    if let Some(at) = query.at {
        field("at", at.to_string());
    }
    if let Some(after) = query.thresholds.silent_after {
        field("silent_after", milliseconds(after));
    }
    field(
        "stalled_after",
        milliseconds(query.thresholds.stalled_after),
    );
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Thresholds;

    #[test]
    fn a_filter_becomes_parameters_and_words() {
        let filter = TaskFilter {
            status: vec!["Running".to_owned(), "Scheduled".to_owned()],
            silent: true,
            engine_type: Some("spark & co".to_owned()),
            started_after: "2026-11-25T14:05:00Z".parse().ok(),
            ..TaskFilter::default()
        };
        assert_eq!(
            shown(&filter),
            "engine type spark & co, silent, started after 2026-11-25T14:05:00Z, status Running, status Scheduled"
        );
        assert_eq!(shown(&TaskFilter::default()), "");
        let query = TaskQuery {
            filter,
            descending: false,
            limit: 7,
            thresholds: Thresholds {
                silent_after: Some(Duration::from_secs(2)),
                stalled_after: Duration::from_millis(1500),
            },
            ..TaskQuery::default()
        };
        let fields = query_fields(&query);
        let each = fields.iter().map(|(name, value)| format!("{name}={value}"));
        assert_eq!(
            each.collect::<Vec<_>>(),
            [
                "engine_type=spark & co",
                "silent=true",
                "started_after=2026-11-25T14:05:00Z",
                "status=Running",
                "status=Scheduled",
                "limit=7",
                "order=reported",
                "descending=false",
                "silent_after=2000ms",
                "stalled_after=1500ms",
            ]
        );
    }
}
