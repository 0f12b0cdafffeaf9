//! One coordinator: its list of queries, and one poll of one query.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use schemas::IDENTIFIER_MAX_BYTES;
use tokio::time::{Instant, timeout};

use super::FOLLOWED;
use super::answers::{QueryInfo, Stage};
use super::mapping;
use super::options::Options;
use super::query::{End, Query, Seen};
use super::rights::{Rights, Users};
use crate::polling::complaints::Complaints;
use crate::polling::follow::{Context, Engine, Line, Polled};
use crate::polling::poll_limit::Share;
use crate::polling::rest::Fault;
use crate::polling::server::Server;
use crate::session::LiveReports;

/// A listed query is reported without its stages if they cannot be read within the interval, or this if it is longer.
const STAGES_MIN_WAIT: Duration = Duration::from_secs(1);

/// What all coordinators of a run share.
pub(super) struct Run {
    pub(super) options: Options,
    pub(super) reports: LiveReports,
}

pub(super) struct Coordinator {
    run: Arc<Run>,
    server: Server,
    /// Of the requests, if known.
    user: Option<String>,
    rights: Mutex<Rights>,
    complaints: Mutex<Complaints>,
}

/// What a list tells of its coordinator.
#[derive(Clone)]
pub(super) struct Summary {
    /// Queries that run.
    running: i64,
}

impl Coordinator {
    pub(super) fn new(run: &Arc<Run>, server: Server, user: Option<String>) -> Self {
        Self {
            run: run.clone(),
            server,
            user,
            rights: Mutex::default(),
            complaints: Mutex::default(),
        }
    }

    fn complaints(&self) -> MutexGuard<'_, Complaints> {
        let complaints = self.complaints.lock();
        complaints.unwrap_or_else(PoisonError::into_inner)
    }

    fn note_rights(&self, users: &Users) {
        let rights = self.rights.lock();
        let mut rights = rights.unwrap_or_else(PoisonError::into_inner);
        let patience = self.run.options.give_up_after;
        if let Some(note) = rights.note(users, self.user.as_deref(), patience) {
            tracing::warn!("{} {note}", self.server.rest.shown());
        }
    }

    /// The query's own response. `None` if there is none that can be used.
    async fn ask(
        &self,
        query: &mut Query,
        listed: Option<&QueryInfo>,
    ) -> Option<(QueryInfo, Option<Vec<Stage>>)> {
        let runs = listed.is_some_and(|listed| !listed.has_ended());
        let share = match runs && !query.is_slow {
            true => Share::Running,
            false => Share::Other,
        };
        let interval = self.run.options.interval;
        let patience = interval.max(STAGES_MIN_WAIT);
        let path = [query.id.as_str()];
        let request = self.server.rest.get::<QueryInfo>(&path);
        let poll = self.server.polls.run(share, interval, request);
        let answer = match listed {
            None => {
                let polled = poll.await;
                query.is_slow = polled.slow;
                polled.output
            }
            Some(_) => match timeout(patience, poll).await {
                Ok(polled) => {
                    query.is_slow = polled.slow;
                    polled.output
                }
                Err(_) => {
                    query.is_slow = true;
                    let late = format!("no answer within {patience:?}");
                    Err(Fault::NoAnswer(late))
                }
            },
        };
        let answer = answer.and_then(|own| match own.query_id == query.id {
            true => Ok(own),
            false => Err(Fault::Unusable("it answers about another query".to_owned())),
        });
        let fault = match &answer {
            // It no longer knows the query, and then the list says so too.
            Ok(_) | Err(Fault::Gone | Fault::NotFound(_)) => None,
            Err(fault) => Some(fault.to_string()),
        };
        let whose = format!("{}, asked for one query", self.server.rest.shown());
        self.complaints().change(&whose, &mut query.fault, fault);
        let mut own = answer.ok()?;
        own.shorten(self.run.options.with_query_text);
        let stages = own.take_stages();
        Some((own, stages))
    }

    fn report(&self, query: &mut Query, seen: Option<Seen<'_>>, summary: Option<&Summary>) {
        let now = Timestamp::now().as_microsecond();
        let running = summary.map(|summary| summary.running);
        let info = query.report(seen, running, now);
        self.run.reports.report(&info);
    }
}

impl Engine for Coordinator {
    type Thing = Query;
    type Line = QueryInfo;
    type Summary = Summary;

    const NOUN: &'static str = "query";
    const FOLLOWED: &'static str = FOLLOWED;
    /// No two queries have the same id, and one that is not listed any more has expired.
    const FORGET_AFTER: Duration = Duration::from_secs(60 * 60);

    fn server(&self) -> &Server {
        &self.server
    }

    async fn list(&self, each: &mut (dyn FnMut(QueryInfo) + Send)) -> Result<Summary, Fault> {
        let with_text = self.run.options.with_query_text;
        let mut users = Users::default();
        let mut running = 0;
        let list = self.server.rest.each(&[], |mut query: QueryInfo| {
            query.shorten(with_text);
            users.add(&query);
            let runs = !query.has_ended() && !mapping::is_queued(&query.state);
            running += i64::from(runs);
            // A longer id is not Trino's.
            if query.query_id.len() <= IDENTIFIER_MAX_BYTES {
                each(query);
            }
        });
        list.await?;
        self.note_rights(&users);
        Ok(Summary { running })
    }

    fn thing(&self, query: &QueryInfo) -> Query {
        let engine_type = match self.run.options.presto {
            true => "presto",
            false => "trino",
        };
        let instance = self.server.rest.instance();
        Query::new(&query.query_id, &instance, engine_type)
    }

    async fn poll(&self, mut query: Box<Query>, context: Context<Self>) -> Polled<Query> {
        let Context {
            listed,
            is_refused,
            summary,
        } = context;
        // The list tells all of a query that had ended before it was seen.
        let asks = listed.as_ref().is_none_or(|listed| {
            let is_old = query.is_new() && listed.has_ended();
            mapping::has_stages(&listed.state) && !is_old
        });
        let asks = asks && !is_refused;
        let own = match asks {
            true => self.ask(&mut query, listed.as_ref()).await,
            false => None,
        };
        let is_late = asks && own.is_none();
        let end = query.end.take();
        let known_since = end.as_ref().map(|end| end.known_since);
        // An end that is known and can no longer be read is reported with the counts known so far.
        let is_lost = own.is_none() && listed.is_none();
        let listed = listed.or_else(|| Some(end.filter(|_| is_lost)?.query));
        let (info, stages) = match (own, listed) {
            (Some((own, _)), Some(listed)) if listed.has_ended() && !own.has_ended() => {
                (listed, None)
            }
            (Some(own), _) => own,
            (None, Some(listed)) => (listed, None),
            (None, None) => {
                query.silence.go_on();
                if query.given_up {
                    return Polled::GivenUp(query);
                }
                let give_up_after = self.run.options.give_up_after;
                if !query.silence.has_lasted(give_up_after) {
                    return Polled::Open(query);
                }
                tracing::warn!(
                    "query {}: nothing about it could be read for {give_up_after:?}; whether and how it has ended is not known",
                    query.id
                );
                query.given_up = true;
                self.complaints().end(&mut query.fault);
                self.report(&mut query, None, summary.as_ref());
                return Polled::GivenUp(query);
            }
        };
        query.silence.end();
        query.given_up = false;
        let known_for = known_since.map(|since| since.elapsed());
        let now = Timestamp::now();
        let is_known = is_lost || mapping::has_last_counts(&info, is_late, known_for, now);
        if info.has_ended() && !is_known {
            query.end = Some(Box::new(End {
                known_since: known_since.unwrap_or_else(Instant::now),
                query: info,
            }));
            return Polled::Open(query);
        }
        let seen = Seen {
            query: &info,
            stages: stages.as_deref(),
        };
        self.report(&mut query, Some(seen), summary.as_ref());
        match info.has_ended() {
            true => {
                self.complaints().end(&mut query.fault);
                Polled::Ended(query)
            }
            false => Polled::Open(query),
        }
    }
}

impl Line for QueryInfo {
    fn id(&self) -> &str {
        &self.query_id
    }

    fn has_ended(&self) -> bool {
        mapping::is_final(&self.state)
    }
}
