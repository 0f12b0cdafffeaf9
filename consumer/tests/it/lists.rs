//! `consumer tasks`: filters, orders, pages and marks agree with a slow reference implementation over all reports.
//!
//! Long because the reference implements every filter, order and mark a second time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use jiff::Timestamp;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::TaskStatus::{self, Failed, Running, Scheduled, Succeed, Unknown};
use schemas::{TaskRunningInfo, TaskRunningInfoEvent};
use serde_json::{Value, json};

use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database};

const MINUTE: i64 = 60_000_000;
/// The earliest time of a report, in microseconds.
const FIRST: i64 = 1_764_079_500_000_000;
/// Names with special meanings for patterns, locales and shells.
const NAMES: [&str; 8] = ["exec-", "Exec-", "ä", "a%", "a_", "a\\", "Z'", "\""];
const STEADY_ODDS: f64 = 0.1;

/// A query, as options and for the reference.
#[derive(Clone, Debug)]
struct Asked {
    options: Vec<String>,
    at: Option<i64>,
    statuses: Vec<TaskStatus>,
    running: bool,
    user: Option<String>,
    engine_type: Option<String>,
    job: Option<String>,
    prefix: Option<String>,
    silent: bool,
    stalled: bool,
    silent_after: Option<i64>,
    stalled_after: i64,
    /// Lower and upper bounds of start, last report and end.
    times: [[Option<i64>; 2]; 3],
    order: &'static str,
    ascending: bool,
}

/// A task according to the reference.
struct Task<'a> {
    newest: &'a TaskRunningInfo,
    started: i64,
    ended: Option<i64>,
    memory: Option<i64>,
    cores: Option<i64>,
    silent: Option<i64>,
    stalled: Option<i64>,
    running: i64,
}

/// Reports of tasks that change at random, rarely, or report no progress.
fn reports(random: &mut ChaCha8Rng) -> Vec<TaskRunningInfoEvent> {
    let sample = strategies::sample_event();
    (0..500)
        .map(|i| {
            let task: usize = random.random_range(0..36);
            let mut event = sample.clone();
            let info = &mut event.info;
            info.exec_id = format!("{}{task:02}", NAMES[task % NAMES.len()]);
            info.job_id = format!("job-{}", task % 5);
            info.engine.user = ["ada", "Ada", "%"][task % 3].to_owned();
            info.engine.engine_type = ["spark", "trino"][task % 2].to_owned();
            // Two reports of a task may have the same time and sequence.
            info.reported_at = FIRST + random.random_range(0..180) * MINUTE / 3;
            info.sequence = random.random_range(0..4);
            let changes =
                |random: &mut ChaCha8Rng| task % 3 == 1 || random.random_bool(STEADY_ODDS);
            let statuses = [Running, Running, Scheduled, Unknown, Succeed, Failed];
            let ends = if task < 24 { 4 } else { 6 };
            info.status = match changes(random) {
                true => statuses[random.random_range(0..ends)],
                false => Running,
            };
            if task % 9 == 2 {
                info.progress = None;
            } else if let Some(progress) = &mut info.progress {
                if changes(random) {
                    progress.progress = f64::from(random.random_range(0..4)) / 3.0;
                }
                if changes(random) {
                    progress.progress_info[0].succeed_tasks += 1;
                }
            }
            match &mut info.resource {
                _ if random.random_bool(0.2) => info.resource = None,
                Some(resource) => {
                    let mut held = resource.applications["app-1"].clone();
                    held.queue_memory = random.random_range(0..3) << 30;
                    held.queue_cores = random.random_range(0..3);
                    if i % 50 == 0 {
                        // Their sum overflows an integer.
                        held.queue_memory = i64::MAX - 1;
                    }
                    let applications =
                        (0..random.random_range(0..3)).map(|n| (format!("app-{n}"), held.clone()));
                    resource.applications = applications.collect();
                }
                None => {}
            }
            event
        })
        .collect()
}

fn some_query(random: &mut ChaCha8Rng) -> Asked {
    let mut options = Vec::new();
    let mut option = |name: &str, value: &str| {
        options.push(format!("--{name}"));
        if !value.is_empty() {
            options.push(value.to_owned());
        }
    };
    let time = |random: &mut ChaCha8Rng| FIRST + random.random_range(-3..190) * MINUTE / 3;
    let at = random.random_bool(0.8).then(|| time(random));
    if let Some(at) = at {
        option("at", &micros(at));
    }
    let odds = 0.12;
    let mut statuses = Vec::new();
    if random.random_bool(odds) {
        statuses = vec![Running, Unknown];
        option("status", "Running,Unknown");
    } else if random.random_bool(odds) {
        statuses = vec![Failed, Scheduled];
        option("status", "Failed");
        option("status", "Scheduled");
    }
    let mut flag = |random: &mut ChaCha8Rng, name| {
        let set = random.random_bool(odds * 2.0);
        if set {
            option(name, "");
        }
        set
    };
    let (running, silent, stalled) = (
        flag(random, "running"),
        flag(random, "silent"),
        flag(random, "stalled"),
    );
    let mut text = |random: &mut ChaCha8Rng, name, values: &[&str]| {
        let value = random
            .random_bool(odds)
            .then(|| (*values.choose(random).unwrap()).to_owned());
        if let Some(value) = &value {
            option(name, value);
        }
        value
    };
    let user = text(random, "user", &["ada", "Ada", "%", "nobody"]);
    let engine_type = text(random, "engine-type", &["spark", "trino"]);
    let job = text(random, "job", &["job-1", "job-4"]);
    let prefix = text(
        random,
        "exec-id-prefix",
        &["exec-", "e", "a", "a%", "a_", "a\\", "Z'", "\"", "ä1"],
    );
    let silent_after = random
        .random_bool(0.3)
        .then(|| random.random_range(1..40) * MINUTE / 4);
    if let Some(after) = silent_after {
        option("silent-after", &format!("{}s", after / 1_000_000));
    }
    let stalled_after = match random.random_bool(0.5) {
        true => random.random_range(1..40) * MINUTE / 3,
        false => 15 * MINUTE,
    };
    option("stalled-after", &format!("{}s", stalled_after / 1_000_000));
    let names = [
        ["started-after", "started-before"],
        ["reported-after", "reported-before"],
        ["ended-after", "ended-before"],
    ];
    let times = names.map(|pair| {
        pair.map(|name| {
            let time = random.random_bool(odds / 2.0).then(|| time(random));
            if let Some(time) = time {
                option(name, &micros(time));
            }
            time
        })
    });
    let orders = [
        "started", "reported", "duration", "progress", "memory", "cores",
    ];
    let order = *orders.choose(random).unwrap();
    option("order", order);
    let ascending = random.random_bool(0.5);
    if ascending {
        option("ascending", "");
    }
    Asked {
        options,
        at,
        statuses,
        running,
        user,
        engine_type,
        job,
        prefix,
        silent,
        stalled,
        silent_after,
        stalled_after,
        times,
        order,
        ascending,
    }
}

fn micros(time: i64) -> String {
    format!("{:.6}", Timestamp::from_microsecond(time).unwrap())
}

/// The reference for one task, from its known reports with their offsets.
fn account<'a>(known: &[(usize, &'a TaskRunningInfo)], asked: &Asked, moment: i64) -> Task<'a> {
    let newest_first = {
        let mut sorted = known.to_vec();
        sorted.sort_by_key(|(offset, info)| (info.reported_at, info.sequence, *offset));
        sorted.reverse();
        sorted
    };
    let state = known.iter();
    let state = state.max_by_key(|(offset, info)| {
        (
            info.status.is_final(),
            info.reported_at,
            info.sequence,
            *offset,
        )
    });
    let newest = state.unwrap().1;
    let times = || known.iter().map(|(_, info)| info.reported_at);
    let started = times().min().unwrap();
    let finals = known.iter().filter(|(_, info)| info.status.is_final());
    let ended = finals.map(|(_, info)| info.reported_at).min();
    let held = known.iter().filter(|(_, info)| {
        // A part without an application has no row.
        info.resource
            .as_ref()
            .is_some_and(|resource| !resource.applications.is_empty())
    });
    let held = held.max_by_key(|(offset, info)| (info.reported_at, *offset));
    let held = held.filter(|_| ended.is_none()).map(|(_, info)| {
        let applications = info.resource.as_ref().unwrap().applications.values();
        applications.fold((0, 0), |(memory, cores): (i64, i64), one| {
            (
                memory.saturating_add(one.queue_memory),
                cores + i64::from(one.queue_cores),
            )
        })
    });
    let distinct: BTreeSet<i64> = times().collect();
    let last: Vec<i64> = distinct.into_iter().rev().take(10).collect();
    let mut gaps: Vec<i64> = last.windows(2).map(|pair| pair[0] - pair[1]).collect();
    gaps.sort_unstable();
    let usual = gaps
        .get(gaps.len().saturating_sub(1) / 2)
        .copied()
        .unwrap_or(0);
    let quiet = moment - newest.reported_at;
    let silent_after = asked.silent_after.unwrap_or(MINUTE.max(5 * usual));
    let silent = (ended.is_none() && quiet >= silent_after).then_some(quiet);
    let mut same_since = newest.reported_at;
    for (_, info) in &newest_first {
        if info.status != newest.status || info.progress != newest.progress {
            break;
        }
        same_since = info.reported_at;
    }
    let stalled = ended.is_none()
        && silent.is_none()
        && newest.progress.is_some()
        && moment - same_since >= asked.stalled_after
        && same_since < newest.reported_at;
    let until = match ended {
        Some(ended) => ended,
        None if newest.status == Unknown => newest.reported_at,
        None => moment,
    };
    Task {
        newest,
        started,
        ended,
        memory: held.map(|(memory, _)| memory),
        cores: held.map(|(_, cores)| cores),
        silent,
        stalled: stalled.then_some(moment - same_since),
        running: until - started,
    }
}

impl Task<'_> {
    fn matches(&self, asked: &Asked) -> bool {
        let info = self.newest;
        let is =
            |wanted: &Option<String>, text: &str| wanted.as_deref().is_none_or(|it| it == text);
        let within = |[after, before]: [Option<i64>; 2], time: Option<i64>| match time {
            Some(time) => {
                after.is_none_or(|after| time >= after) && before.is_none_or(|before| time < before)
            }
            None => after.is_none() && before.is_none(),
        };
        let [start, report, end] = asked.times;
        (asked.statuses.is_empty() || asked.statuses.contains(&info.status))
            && !(asked.running && (info.status.is_final() || info.status == Unknown))
            && is(&asked.user, &info.engine.user)
            && is(&asked.engine_type, &info.engine.engine_type)
            && is(&asked.job, &info.job_id)
            && asked
                .prefix
                .as_deref()
                .is_none_or(|prefix| info.exec_id.starts_with(prefix))
            && (!asked.silent || self.silent.is_some())
            && (!asked.stalled || self.stalled.is_some())
            && within(start, Some(self.started))
            && within(report, Some(info.reported_at))
            && within(end, self.ended)
    }

    /// The sort key as an integer: doubles cannot represent every number of bytes, and non-negative ones sort like
    /// their bits.
    fn key(&self, order: &str) -> Option<i64> {
        match order {
            "started" => Some(self.started),
            "reported" => Some(self.newest.reported_at),
            "duration" => Some(self.running),
            "progress" => self.progress().map(|it| it.to_bits().cast_signed()),
            "memory" => self.memory,
            _ => self.cores,
        }
    }

    fn progress(&self) -> Option<f64> {
        self.newest.progress.as_ref().map(|it| it.progress)
    }

    /// The fields of a list that do not depend on the clock.
    fn printed(&self, seconds: bool) -> Value {
        let info = self.newest;
        let of = |micros: Option<i64>| match seconds {
            true => json!(micros.map(|micros| micros as f64 / 1e6)),
            false => json!(micros.is_some()),
        };
        json!({
            "exec_id": info.exec_id,
            "status": info.status.to_string(),
            "progress": self.progress(),
            "started_at": micros(self.started),
            "ended_at": self.ended.map(micros),
            "running_seconds": of(Some(self.running)),
            "reported_at": micros(info.reported_at),
            "memory_bytes": self.memory,
            "cores": self.cores,
            "silent_seconds": of(self.silent),
            "stalled_seconds": of(self.stalled),
        })
    }
}

/// The list according to the reference.
fn expected(events: &[TaskRunningInfoEvent], asked: &Asked) -> Vec<Value> {
    let mut known: BTreeMap<&str, Vec<(usize, &TaskRunningInfo)>> = BTreeMap::new();
    for (offset, TaskRunningInfoEvent { info, .. }) in events.iter().enumerate() {
        if asked.at.is_none_or(|at| info.reported_at <= at) {
            known.entry(&info.exec_id).or_default().push((offset, info));
        }
    }
    let moment = asked
        .at
        .unwrap_or_else(|| Timestamp::now().as_microsecond());
    let tasks = known.values().map(|known| account(known, asked, moment));
    let mut tasks: Vec<Task<'_>> = tasks.filter(|task| task.matches(asked)).collect();
    tasks.sort_by(|a, b| {
        let by_key = match (a.key(asked.order), b.key(asked.order)) {
            (Some(a), Some(b)) if asked.ascending => a.cmp(&b),
            (Some(a), Some(b)) => b.cmp(&a),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        by_key.then_with(|| a.newest.exec_id.as_bytes().cmp(b.newest.exec_id.as_bytes()))
    });
    let printed = tasks.iter().map(|task| task.printed(asked.at.is_some()));
    printed.collect()
}

impl Pipeline {
    fn tasks(&self, options: &[String], more: &[&str]) -> Output {
        let command = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["tasks", "--json", "--database-url", &self.database_url])
            .args(options)
            .args(more)
            .output();
        command.unwrap()
    }

    /// All pages of at most `limit` tasks.
    fn pages(&self, options: &[String], limit: usize) -> Vec<Value> {
        let mut items = Vec::new();
        let (limit_option, mut cursor) = (limit.to_string(), None::<String>);
        loop {
            let mut more = vec!["--limit", &limit_option];
            if let Some(cursor) = &cursor {
                more.extend(["--cursor", cursor]);
            }
            let output = self.tasks(options, &more);
            let remarks = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{options:?}: {remarks}");
            let page: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
            cursor = remarks
                .lines()
                .find_map(|line| line.strip_prefix("next page: --cursor ").map(str::to_owned));
            let full = page.len().cmp(&limit);
            let last = cursor.is_none();
            assert!(
                full == Ordering::Equal || last && full == Ordering::Less,
                "{options:?}"
            );
            items.extend(page);
            if last {
                return items;
            }
        }
    }
}

on_every_database!(
    lists_are_those_of_a_slow_account,
    a_cursor_is_of_one_list_alone,
    pages_of_tasks_at_the_ends_of_time_hold_each_of_them
);

/// Reports may have times beyond the range of the programs' time type.
async fn pages_of_tasks_at_the_ends_of_time_hold_each_of_them(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let (first, last) = schemas::REPORTED_AT_MICROS.into_inner();
    let times = [first, first, first + 1, -1, 0, FIRST, last - 1, last, last];
    let sample = strategies::sample_event();
    let events = (0..).zip(times).map(|(i, time)| {
        let mut event = sample.clone();
        (event.info.exec_id, event.info.job_id) = (format!("e{i}"), format!("j{i}"));
        (event.info.reported_at, event.info.sequence) = (time, 0);
        event.info.status = [Running, Succeed][i % 2];
        event
    });
    pipeline.send_events(&events.collect::<Vec<_>>());
    pipeline.store_all().await;
    for order in ["reported", "started", "duration"] {
        for direction in [&[][..], &["--ascending"]] {
            let mut options = vec!["--order".to_owned(), order.to_owned()];
            options.extend(direction.iter().map(|&option| option.to_owned()));
            let name = |task: &Value| task["exec_id"].as_str().unwrap().to_owned();
            let names: Vec<_> = pipeline.pages(&options, 1).iter().map(name).collect();
            let mut all = names.clone();
            all.sort_unstable();
            assert_eq!(
                all,
                (0..times.len())
                    .map(|i| format!("e{i}"))
                    .collect::<Vec<_>>(),
                "{options:?}"
            );
            let by_time: Vec<_> = names
                .iter()
                .map(|name| times[name[1..].parse::<usize>().unwrap()])
                .collect();
            match (order, direction) {
                ("duration", _) => {}
                (_, []) => assert!(by_time.is_sorted_by(|a, b| a >= b), "{names:?}"),
                _ => assert!(by_time.is_sorted(), "{names:?}"),
            }
        }
    }
}

async fn lists_are_those_of_a_slow_account(kind: Kind) {
    let seed: u64 = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let events = reports(&mut random);
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let mut listed = 0;
    for _ in 0..24 {
        let asked = some_query(&mut random);
        let limit = random.random_range(4..24);
        let actual = pipeline.pages(&asked.options, limit);
        let account = expected(&events, &asked);
        let mut alike = actual.clone();
        for (actual, account) in alike.iter_mut().zip(&account) {
            let actual = actual.as_object_mut().unwrap();
            actual.retain(|name, _| account.get(name).is_some());
            if asked.at.is_none() {
                for seconds in ["running_seconds", "silent_seconds", "stalled_seconds"] {
                    actual[seconds] = json!(!actual[seconds].is_null());
                }
            }
        }
        assert_eq!(alike, account, "{asked:?}, pages of {limit}, seed {seed}");
        listed += actual.len();
    }
    assert!(listed > 0, "all lists are empty, seed {seed}");
}

async fn a_cursor_is_of_one_list_alone(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let events = [1, 2, 3].map(|i| {
        let mut event = sample.clone();
        event.info.exec_id = format!("exec-{i}");
        event.info.reported_at = Timestamp::now().as_microsecond() - i * 3 * MINUTE;
        event
    });
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let page = pipeline.ask(&["tasks", "--running", "--limit", "2"]);
    for message in [
        "2 of 3 running tasks",
        "1 more with --limit 0",
        "silent 3 min",
        "8.00 GiB",
    ] {
        assert!(page.contains(message), "{message} is not in\n{page}");
    }
    let cursor = page.split("--cursor ").nth(1).unwrap().trim();
    let last = pipeline.ask(&["tasks", "--running", "--limit", "2", "--cursor", cursor]);
    assert!(
        last.contains("exec-3") && !last.contains("exec-2"),
        "{last}"
    );
    assert!(last.contains("the last 1 of 3 running tasks"), "{last}");
    for (options, why) in [
        (vec!["--cursor", cursor], "was issued for other filters"),
        (
            vec!["--running", "--ascending", "--cursor", cursor],
            "was issued for other filters",
        ),
        (vec!["--cursor", "e30"], "was not issued by this program"),
        (vec!["--cursor", "ü"], "was not issued by this program"),
        (
            vec!["--status", "Runing"],
            "expected one of Unknown, Inited",
        ),
    ] {
        let refused = pipeline.tasks(&[], &options);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{message}");
        assert!(message.contains(why), "{why} is not in {message}");
    }
}
