//! Usage between two times.

use askama::Template;
use jiff::Timestamp;

use super::bars::{Bars, bars, named};
use super::chip::Chip;
use super::format::{amount, count, duration, moment};
use super::frame::Frame;
use super::links::{self, Query, TASKS, USAGE};
use super::period::Period;
use crate::query::{Usage, UsageBy, UsageEvery, UsageItem, UsageQuery};

/// Parameters that the form keeps in hidden fields.
const HIDDEN: &[&str] = &["by", "every", "limit", "longest_gap", "at"];
/// Maximum number of rows of the table.
const ROWS: usize = 1_000;
const EVERY_SECONDS: u32 = 30;
const HOUR_SECONDS: f64 = 3_600.0;
const GIB: f64 = (1_u64 << 30) as f64;

const BY: &[(UsageBy, &str, &str)] = &[
    (UsageBy::User, "user", "User"),
    (UsageBy::Queue, "queue", "Queue"),
    (UsageBy::EngineType, "engine_type", "Engine type"),
    (UsageBy::Job, "job", "Job"),
    (UsageBy::Application, "application", "Application"),
];
const EVERY: &[(UsageEvery, &str, &str)] = &[
    (UsageEvery::Whole, "whole", "Whole time"),
    (UsageEvery::Hour, "hour", "Hour"),
    (UsageEvery::Day, "day", "Day"),
];

#[derive(Template)]
#[template(path = "page/usage.html")]
pub(super) struct UsageView {
    pub(super) frame: Frame,
    period: Period,
    by: Vec<Chip>,
    every: Vec<Chip>,
    hidden: Vec<(String, String)>,
    user: String,
    clear_href: String,
    /// Heading of the groups' column.
    noun: &'static str,
    is_whole: bool,
    from: Timestamp,
    to: Timestamp,
    gap: String,
    rows: Vec<UsageRow>,
    total: Option<Amounts>,
    rows_text: String,
    expired_before: Option<Timestamp>,
    bars: Option<Bars>,
}

/// A row of the table.
struct UsageRow {
    key: String,
    /// Rank by core-seconds, if the whole time range is one period.
    place: usize,
    from: Timestamp,
    from_text: String,
    name: String,
    href: Option<String>,
    amounts: Amounts,
}

/// Hours, and the exact seconds.
struct Amounts {
    cores: Amount,
    memory: Amount,
    instances: Amount,
    known: Amount,
}

struct Amount {
    hours: String,
    seconds: f64,
    unit: &'static str,
}

impl Amounts {
    fn of(item: &UsageItem) -> Self {
        let amount = |seconds: f64, of: f64, unit| Amount {
            hours: amount(seconds / of / HOUR_SECONDS),
            seconds,
            unit,
        };
        Self {
            cores: amount(item.core_seconds, 1.0, "core-seconds"),
            memory: amount(item.memory_byte_seconds, GIB, "byte-seconds"),
            instances: amount(item.instance_seconds, 1.0, "instance-seconds"),
            known: amount(item.application_seconds, 1.0, "seconds"),
        }
    }
}

impl UsageView {
    /// `given` is the address's query, `asked` the parsed one. `at` is the past time shown.
    pub(super) fn of(
        given: &Query,
        asked: &UsageQuery,
        at: Option<Timestamp>,
        usage: &Usage,
    ) -> Self {
        let frame = Frame::of("usage", "Usage".to_owned(), USAGE, given, at);
        let frame = frame.every(EVERY_SECONDS);
        let time = given.clone().only(&["at"]);
        let (by, noun) = chips("by", given, BY, asked.by);
        let (every, _) = chips("per", given, EVERY, asked.every);
        let is_whole = asked.every == UsageEvery::Whole;
        let rows: Vec<UsageRow> = usage
            .items
            .iter()
            .take(ROWS)
            .enumerate()
            .map(|(i, item)| UsageRow::of(i + 1, item, asked, &time))
            .collect();
        let all = usage.items.len();
        let rows_text = match (rows.len(), all - rows.len()) {
            (0, _) => "No usage.".to_owned(),
            (1, 0) => "1 row.".to_owned(),
            (shown, 0) => format!("{} rows.", count(shown as u64)),
            (shown, more) => format!(
                "The first {} rows. {} more are included only in the total: choose a shorter time or longer periods, or use /api/v1/usage.",
                count(shown as u64),
                count(more as u64)
            ),
        };
        Self {
            period: Period::of(USAGE, given),
            by,
            every,
            hidden: given.clone().only(HIDDEN).0,
            user: given.first("user").to_owned(),
            clear_href: time.at(USAGE),
            noun,
            is_whole,
            from: usage.from,
            to: usage.to,
            gap: duration(usage.longest_gap_seconds),
            total: (all > 1).then(|| Amounts::of(&sum(&usage.items, usage))),
            rows,
            rows_text,
            expired_before: usage.expired_before,
            bars: bars(usage),
            frame,
        }
    }
}

/// The choices of a parameter, and the label of the current one.
fn chips<T: Copy + PartialEq>(
    lead: &'static str,
    given: &Query,
    all: &[(T, &'static str, &'static str)],
    asked: T,
) -> (Vec<Chip>, &'static str) {
    let name = if lead == "per" { "every" } else { lead };
    let others = given.clone().without(&[name]);
    let mut word = "";
    let mut chips: Vec<Chip> = Vec::new();
    for &(choice, value, label) in all {
        let is_on = choice == asked;
        if is_on {
            word = label;
        }
        let href = others.clone().and(name, value).at(USAGE);
        chips.push(Chip {
            lead: chips.is_empty().then_some(lead),
            ..Chip::of(label, href, is_on)
        });
    }
    (chips, word)
}

fn sum(items: &[UsageItem], usage: &Usage) -> UsageItem {
    let none = UsageItem {
        from: usage.from,
        to: usage.to,
        key: None,
        core_seconds: 0.0,
        memory_byte_seconds: 0.0,
        instance_seconds: 0.0,
        application_seconds: 0.0,
    };
    items.iter().fold(none, |mut sum, item| {
        sum.add(item);
        sum
    })
}

impl UsageRow {
    fn of(place: usize, item: &UsageItem, asked: &UsageQuery, time: &Query) -> Self {
        let parameter = match asked.by {
            UsageBy::User => Some("user"),
            UsageBy::EngineType => Some("engine_type"),
            UsageBy::Job => Some("job_id"),
            UsageBy::Queue | UsageBy::Application => None,
        };
        let own = item.key.as_deref().filter(|key| !key.is_empty());
        let href = parameter.zip(own).map(|(name, key)| {
            let tasks = time.clone().and(name, key);
            match asked.user.as_deref() {
                Some(user) if name != "user" => tasks.and("user", user),
                _ => tasks,
            }
            .at(TASKS)
        });
        let key = item
            .key
            .as_deref()
            .map_or_else(String::new, |key| format!("k{}", links::key(key)));
        Self {
            // The first period is clipped, and moves with the time range.
            key: match asked.every.period() {
                None => key,
                Some(period) => {
                    let period = period.as_secs().cast_signed();
                    format!("{} {key}", item.from.as_second().div_euclid(period))
                }
            },
            place,
            from: item.from,
            from_text: moment(item.from),
            name: named(item.key.as_deref()),
            href,
            amounts: Amounts::of(item),
        }
    }
}
