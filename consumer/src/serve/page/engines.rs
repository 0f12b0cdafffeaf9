//! The list of engines.

use askama::Template;
use jiff::Timestamp;
use service::text::shown;

use super::format::{ABSENT, ago, count, duration, or_absent, percent};
use super::frame::Frame;
use super::links::{self, ENGINES, PERIOD, Query, TASKS};
use super::pages::Pages;
use super::period::Period;
use crate::query::{EngineItem, EnginePage, EnginesQuery};

/// The form's fields.
const FORM: &[&str] = &["engine_instance", "engine_type", "user"];
/// Parameters that the form keeps in hidden fields.
const HIDDEN: &[&str] = &["limit", "longest_gap", "at"];
/// Maximum number of users shown per engine.
const USERS: usize = 3;
const EVERY_SECONDS: u32 = 10;

#[derive(Template)]
#[template(path = "page/engines.html")]
pub(super) struct EnginesView {
    pub(super) frame: Frame,
    period: Period,
    hidden: Vec<(String, String)>,
    engine_instance: String,
    engine_type: String,
    user: String,
    filters_set: usize,
    is_filtered: bool,
    clear_href: String,
    /// Start of the period.
    from: Timestamp,
    to: Timestamp,
    gap: String,
    /// Whether only one user's tasks are shown; then the engine's own count is hidden.
    is_of_user: bool,
    rows: Vec<EngineRow>,
    pages: Pages,
}

/// A row of the list.
struct EngineRow {
    key: String,
    name: String,
    engine_type: String,
    href: String,
    running_href: String,
    users: String,
    tasks: String,
    running_tasks: String,
    says: String,
    /// The engine's own count differs from the tables.
    differs: bool,
    busy: Option<(f64, String)>,
    busy_time: String,
    idle_time: String,
    unknown_time: String,
    reported_at: String,
    reported_ago: String,
}

impl EnginesView {
    /// `given` is the address's query, `asked` the parsed one. `kept_time` is a past time that the other views
    /// show.
    pub(super) fn of(
        given: &Query,
        asked: &EnginesQuery,
        kept_time: Option<Timestamp>,
        page: EnginePage,
    ) -> Self {
        let frame = Frame::of("engines", "Engines".to_owned(), ENGINES, given, None);
        let frame = frame.only_now(kept_time).every(EVERY_SECONDS);
        // All pages have the same period.
        let next = page.next.map(|cursor| {
            let rest = given.clone().without(PERIOD).without(&["cursor"]);
            let ends = [("from", asked.from), ("to", asked.to)];
            ends.into_iter()
                .filter_map(|(name, time)| Some((name, time?)))
                .fold(rest, |query, (name, time)| {
                    query.and(name, time.to_string())
                })
                .and("cursor", cursor)
        });
        let rows: Vec<EngineRow> = page
            .items
            .into_iter()
            .map(|engine| EngineRow::of(engine, given, asked.user.as_deref(), frame.now))
            .collect();
        let filters_set = FORM
            .iter()
            .filter(|name| !given.first(name).is_empty())
            .count();
        let period = Period::of(ENGINES, given);
        Self {
            hidden: given.clone().only(HIDDEN).0,
            engine_instance: given.first("engine_instance").to_owned(),
            engine_type: given.first("engine_type").to_owned(),
            user: given.first("user").to_owned(),
            filters_set,
            is_filtered: filters_set > 0 || period.is_chosen,
            period,
            clear_href: given.clone().only(&["at"]).at(ENGINES),
            from: page.from,
            to: page.to,
            gap: duration(page.longest_gap_seconds),
            is_of_user: asked.user.is_some(),
            pages: Pages::of(ENGINES, given, "engine", rows.len(), next.as_ref())
                .expired(page.expired_before),
            rows,
            frame,
        }
    }
}

impl EngineRow {
    /// `user` is the only user whose tasks count. Links lead to the present, as the row does.
    fn of(engine: EngineItem, given: &Query, user: Option<&str>, now: Timestamp) -> Self {
        let tasks = Query::default()
            .and("engine_instance", engine.engine_instance.as_str())
            .and("engine_type", engine.engine_type.as_str());
        let tasks = match user {
            Some(user) => tasks.and("user", user),
            None => tasks,
        };
        let given_user = given.first("user");
        let mut users: Vec<String> = engine
            .users
            .iter()
            .take(USERS)
            .map(|user| shown(user))
            .collect();
        let more = engine.user_count - users.len() as i64;
        if more > 0 && given_user.is_empty() {
            users.push(format!("{} more", count(more.unsigned_abs())));
        }
        let says = engine.engine_running_tasks;
        Self {
            key: format!(
                "{} {}",
                links::key(&engine.engine_instance),
                links::key(&engine.engine_type)
            ),
            name: shown(&engine.engine_instance),
            engine_type: shown(&engine.engine_type),
            running_href: tasks.clone().and("running", "true").at(TASKS),
            href: tasks.at(TASKS),
            users: users.join(", "),
            tasks: count(engine.tasks.unsigned_abs()),
            running_tasks: count(engine.running_tasks.unsigned_abs()),
            says: says.map_or_else(|| ABSENT.to_owned(), |says| says.to_string()),
            differs: says.is_some_and(|says| says != engine.running_tasks),
            busy: engine.busy_share.map(|share| (share, percent(share))),
            busy_time: duration(engine.busy_seconds),
            idle_time: or_absent(engine.busy_share, |_| duration(engine.idle_seconds)),
            unknown_time: duration(engine.unknown_seconds),
            reported_ago: ago(&engine.reported_at, now),
            reported_at: engine.reported_at,
        }
    }
}
