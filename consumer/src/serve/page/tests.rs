//! The views' HTML: text from reports is never markup. Long because it contains a sample of every view.

use askama::Template;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::engines::EnginesView;
use super::error::ErrorView;
use super::jobs::JobsView;
use super::links::Query;
use super::rendered;
use super::task::{TaskData, TaskView};
use super::tasks::TasksView;
use super::usage::UsageView;
use super::visitor::Visitor;
use crate::query::{
    DEFAULT_GAP, EngineItem, EnginePage, EnginesQuery, JobItem, JobPage, JobsQuery, Mark, Metrics,
    Point, Report, Resource, Sequences, Series, SubJobs, Task, TaskDetails, TaskItem, TaskPage,
    TaskQuery, TaskSeries, Usage, UsageBy, UsageEvery, UsageItem, UsageQuery, Watermark,
};
use crate::serve::problem::Problem;

/// Strings that other programs mistook for markup, or that look different from what they are.
const HOSTILE: &[&str] = &[
    "<img src=x onerror=alert(1)>",
    "\"><script>alert(1)</script>",
    "' onfocus='alert(1)' autofocus='",
    "</td></tr></table><b>bold</b>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}${7*7}",
    "a\u{202e}b\u{200b}c\u{2028}d\r\ne\u{1b}[2J",
    "&lt;b&gt;",
];
const TIME: &str = "2026-11-25T14:05:00.000000Z";

fn item(text: &str) -> TaskItem {
    let text = || text.to_owned();
    TaskItem {
        exec_id: text(),
        job_id: text(),
        engine_instance: text(),
        engine_type: text(),
        engine_user: text(),
        ticket_id: text(),
        status: text(),
        progress: Some(0.5),
        started_at: Some(TIME.to_owned()),
        ended_at: None,
        running_seconds: Some(60.0),
        reported_at: TIME.to_owned(),
        sequence: 7,
        memory_bytes: Some(6 << 30),
        cores: Some(4),
        silent_seconds: Some(540.0),
        stalled_seconds: Some(1_000.0),
        event_partition: 7,
        event_offset: 939,
    }
}

fn details(text: &str) -> TaskDetails {
    let own = || text.to_owned();
    let report = |sequence| Report {
        sequence,
        reported_at: TIME.to_owned(),
        status: own(),
        progress: Some(0.5),
        jobs: SubJobs {
            job_ids: Some(vec![own()]),
            total_tasks: Some(vec![10]),
            running_tasks: Some(vec![2]),
            failed_tasks: Some(vec![1]),
            succeed_tasks: Some(vec![5]),
        },
        adjustments: Some(serde_json::to_string(&[own()]).unwrap()),
        event_partition: 7,
        event_offset: 939,
    };
    TaskDetails {
        task: Task {
            exec_id: own(),
            job_id: own(),
            engine_instance: own(),
            engine_type: own(),
            engine_user: own(),
            ticket_id: own(),
            status: own(),
            progress: Some(0.5),
            reported_at: TIME.to_owned(),
            sequence: 7,
            event_partition: 7,
            event_offset: 939,
            task_id: 1,
        },
        resource: vec![Resource {
            application_id: own(),
            status: own(),
            queue: own(),
            memory_bytes: 6 << 30,
            cores: 4,
            instances: 2,
            reported_at: TIME.to_owned(),
        }],
        metrics: Some(Metrics {
            engine_running_tasks: 1,
            metrics: Some(serde_json::json!({ text: text }).to_string()),
            reported_at: TIME.to_owned(),
        }),
        sequences: Sequences {
            reports: 2,
            missing: 1,
            missing_sequences: vec![3],
            ..Sequences::default()
        },
        reports: vec![report(1), report(0)],
        expired_before: None,
    }
}

fn series(text: &str) -> TaskSeries {
    let time: Timestamp = TIME.parse().unwrap();
    let point = |minute: i64| Point {
        reported_at: time + SignedDuration::from_mins(minute),
        value: 0.5,
    };
    let names = [
        "progress".to_owned(),
        "memory_bytes".to_owned(),
        "cores".to_owned(),
        format!("metrics.{text}"),
    ];
    TaskSeries {
        exec_id: text.to_owned(),
        from: None,
        to: None,
        series: names
            .map(|name| Series {
                name,
                reports: 2,
                points: vec![point(0), point(1)],
            })
            .into(),
        marks: vec![Mark {
            reported_at: time,
            status: text.to_owned(),
        }],
        marks_left_out: 0,
        watermark: Watermark::default(),
        expired_before: None,
    }
}

fn list(text: &str) -> String {
    let page = TaskPage {
        items: vec![item(text)],
        next: Some(text.to_owned()),
        watermark: Watermark::default(),
        expired_before: None,
    };
    let given = Query::default()
        .and("user", text)
        .and("exec_id_prefix", text)
        .and(text, text);
    let view = TasksView::of(&given, &TaskQuery::default(), None, page);
    view.render().unwrap()
}

fn one(text: &str) -> String {
    let at: Timestamp = TIME.parse().unwrap();
    let found = TaskData {
        item: item(text),
        details: details(text),
        series: series(text),
    };
    let view = TaskView::of(&Query::default(), Some(at), found);
    view.render().unwrap()
}

fn jobs(text: &str) -> String {
    let own = || Some(text.to_owned());
    let item = JobItem {
        job_id: text.to_owned(),
        tasks: 1_234,
        running_tasks: 1,
        statuses: [("Running".to_owned(), 1), ("Succeed".to_owned(), 1_233)].into(),
        progress_mean: Some(0.5),
        progress_least: Some(0.25),
        started_at: TIME.to_owned(),
        reported_at: TIME.to_owned(),
        ended_at: None,
        memory_bytes: Some(6 << 30),
        cores: Some(4),
    };
    let page = JobPage {
        items: vec![item],
        next: own(),
        watermark: Watermark::default(),
        expired_before: None,
    };
    let asked = JobsQuery {
        job_id: own(),
        user: own(),
        running: true,
        at: None,
        limit: 100,
        cursor: None,
    };
    let given = Query::default()
        .and("user", text)
        .and("job_id", text)
        .and(text, text);
    JobsView::of(&given, &asked, page).render().unwrap()
}

fn engines(text: &str) -> String {
    let at: Timestamp = TIME.parse().unwrap();
    let own = || text.to_owned();
    let item = EngineItem {
        engine_instance: own(),
        engine_type: own(),
        users: vec![own(), own(), own()],
        user_count: 7,
        tasks: 1_234,
        running_tasks: 3,
        engine_running_tasks: Some(5),
        first_reported_at: TIME.to_owned(),
        reported_at: TIME.to_owned(),
        busy_seconds: 7_800.0,
        idle_seconds: 724.0,
        unknown_seconds: 7.0,
        busy_share: Some(0.5),
    };
    let page = EnginePage {
        from: at,
        to: at,
        longest_gap_seconds: 300.0,
        items: vec![item],
        next: Some(own()),
        watermark: Watermark::default(),
        expired_before: None,
    };
    let asked = EnginesQuery {
        engine_instance: Some(own()),
        engine_type: None,
        user: None,
        from: Some(at),
        to: None,
        longest_gap: DEFAULT_GAP,
        limit: 100,
        cursor: None,
    };
    let given = Query::default()
        .and("engine_instance", text)
        .and(text, text)
        .and("from", "-1h");
    let view = EnginesView::of(&given, &asked, Some(at), page);
    view.render().unwrap()
}

fn usage_every(text: &str, every: UsageEvery, hours: i64) -> String {
    let from: Timestamp = TIME.parse().unwrap();
    let item = |hour: i64, key: Option<&str>| UsageItem {
        from: from + SignedDuration::from_hours(hour),
        to: from + SignedDuration::from_hours(hour + 1),
        key: key.map(str::to_owned),
        core_seconds: 4_446_000.0,
        memory_byte_seconds: 7e12,
        instance_seconds: 3_600.0,
        application_seconds: 1.5,
    };
    let items =
        (0..hours.min(3)).flat_map(|hour| [Some(text), Some(""), None].map(|key| item(hour, key)));
    let usage = Usage {
        from,
        to: from + SignedDuration::from_hours(hours),
        by: UsageBy::User,
        every,
        longest_gap_seconds: 300.0,
        watermark: Watermark::default(),
        items: items.collect(),
        expired_before: Some(from),
    };
    let asked = UsageQuery {
        from: None,
        to: None,
        by: UsageBy::User,
        every,
        user: None,
        longest_gap: DEFAULT_GAP,
        limit: 100,
    };
    let given = Query::default().and("user", text).and(text, text);
    let view = UsageView::of(&given, &asked, Some(from), &usage);
    view.render().unwrap()
}

fn usage(text: &str) -> String {
    usage_every(text, UsageEvery::Hour, 3)
}

/// Renders a view in which all text is the same.
type View = fn(&str) -> String;

/// Every view, by name.
const VIEWS: &[(View, &str)] = &[
    (list, "list"),
    (one, "task"),
    (jobs, "jobs"),
    (engines, "engines"),
    (usage, "usage"),
];

/// The tags of a page without their attributes' values, and the text between them.
fn parsed(html: &str) -> (Vec<String>, String) {
    let (mut tags, mut text) = (Vec::new(), String::new());
    let mut rest = html;
    while let Some((before, tag)) = rest.split_once('<') {
        text.push_str(before);
        let (mut quoted, mut bare) = (false, String::new());
        let end = tag.find(|c| {
            quoted ^= c == '"';
            if !quoted && c != '>' {
                bare.push(c);
            }
            !quoted && c == '>'
        });
        tags.push(bare);
        rest = end.map_or("", |end| &tag[end + 1..]);
    }
    (tags, text)
}

#[test]
fn hostile_text_changes_no_tag_of_a_page() {
    for (view, name) in VIEWS {
        let (harmless, _) = parsed(&view("x"));
        assert!(harmless.len() > 50, "{harmless:?}");
        for hostile in HOSTILE {
            let html = view(hostile);
            // A drawing has the same number of marks as before.
            let (tags, text) = parsed(&html);
            assert_eq!(tags, harmless, "{name}: {hostile}\n{html}");
            assert_eq!(
                text.chars()
                    .find(|c| service::text::is_hidden(*c) && *c != '\n'),
                None,
                "{name}: {hostile}\n{text}"
            );
            assert!(!html.contains("href=\"javascript:"), "{name}: {hostile}");
            let keys = html.split("data-id=\"").skip(1);
            for key in keys.map(|key| key.split('"').next().unwrap()) {
                let is_bare = key
                    .bytes()
                    .all(|byte| byte.is_ascii_graphic() || byte == b' ');
                assert!(is_bare, "{name}: {key:?}");
            }
        }
    }
}

#[test]
fn every_fact_of_a_task_is_in_its_page() {
    let html = one("fact");
    for fact in [
        "6.00 GiB",
        "50.0 %",
        "7@939",
        "5/10, 2 running, 1 failed",
        "2 reports, 1 missing",
        "As of",
        "2026-11-25 14:05:00 UTC",
        "silent",
        "stalled",
    ] {
        assert!(html.contains(fact), "{fact}\n{html}");
    }
    let html = list("fact");
    for fact in [
        "6.00 GiB",
        "50.0 %",
        "silent",
        "stalled",
        "next page",
        "aria-sort=\"descending\"",
        "The first 1 tasks",
    ] {
        assert!(html.contains(fact), "{fact}\n{html}");
    }
}

#[test]
fn every_fact_of_jobs_engines_and_usage_is_in_their_pages() {
    let facts: &[(View, &[&str])] = &[
        (
            jobs,
            &[
                "1,234",
                "1,233 Succeed",
                "1 Running",
                "50.0 %",
                "25.0 %",
                "6.00 GiB",
                "href=\"/tasks?job_id=fact&#38;user=fact\"",
                "next page",
                "data-every",
            ],
        ),
        (
            engines,
            &[
                "fact, fact, fact, 4 more",
                "The engine reports 5 running tasks, the tables show 3",
                "differs",
                "50.0 %",
                "2 h 10 m",
                "12 m 04 s",
                "engine_type=fact&#38;running=true",
                "This view shows the present",
                "shows the present",
                // The next page has the same period.
                "from=2026-11-25T14:05:00Z&#38;cursor=fact",
                "aria-current=\"true\"><span class=\"label\">Last hour<",
            ],
        ),
        (
            usage,
            &[
                "1,235.00",
                "title=\"4446000 core-seconds\"",
                "<data value=\"7000000000000\"",
                "all others",
                "(none)",
                "href=\"/tasks?user=fact\"",
                "11,115.00",
                "9 rows.",
                "aria-current=\"true\"><span class=\"label\">Hour<",
                "removed by consumer expire",
                "<rect",
            ],
        ),
    ];
    for (view, facts) in facts {
        let html = view("fact");
        for fact in *facts {
            assert!(html.contains(fact), "{fact}\n{html}");
        }
    }
}

#[test]
fn usage_is_drawn_whatever_its_periods() {
    let bars = |every, hours| {
        let html = usage_every("fact", every, hours);
        let wide = html.split("<div class=\"wide\">").nth(1).unwrap();
        let wide = wide.split("</svg>").next().unwrap();
        assert!(!wide.contains("NaN") && !wide.contains("inf"), "{wide}");
        wide.matches("<rect").count()
    };
    // Three panels, each with parts for two users and all others.
    assert_eq!(bars(UsageEvery::Hour, 3), 3 * 3 * 3);
    assert_eq!(bars(UsageEvery::Hour, 500), 3 * 3);
    // All on one day.
    assert_eq!(bars(UsageEvery::Day, 24 * 200), 3);
    assert_eq!(bars(UsageEvery::Whole, 3), 3 * 9);
    assert!(!usage_every("fact", UsageEvery::Hour, 0).contains("<rect"));
}

#[test]
fn a_relative_period_is_kept_by_the_form() {
    let html = engines("fact");
    assert!(
        html.contains("<input type=\"hidden\" name=\"from\" value=\"-1h\">"),
        "{html}"
    );
    assert!(html.contains("empty: now -1h"), "{html}");
    assert!(html.contains("name=\"from\" value=\"\""), "{html}");
}

/// The list that holds nothing, as this visitor sees it.
fn empty_list(at: Option<Timestamp>, visitor: Visitor) -> String {
    let page = TaskPage {
        items: Vec::new(),
        next: None,
        watermark: Watermark::default(),
        expired_before: None,
    };
    let asked = TaskQuery {
        at,
        ..TaskQuery::default()
    };
    rendered(
        TasksView::of(&Query::default(), &asked, None, page),
        visitor,
    )
    .unwrap()
}

fn empty_jobs(at: Option<Timestamp>, visitor: Visitor) -> String {
    let page = JobPage {
        items: Vec::new(),
        next: None,
        watermark: Watermark::default(),
        expired_before: None,
    };
    let asked = JobsQuery {
        job_id: None,
        user: visitor.viewer.clone(),
        running: false,
        at,
        limit: 100,
        cursor: None,
    };
    rendered(JobsView::of(&Query::default(), &asked, page), visitor).unwrap()
}

#[test]
fn a_viewer_learns_that_only_own_tasks_are_shown() {
    let at: Option<Timestamp> = Some(TIME.parse().unwrap());
    let viewer = || Visitor {
        viewer: Some("ada<b>".to_owned()),
        is_logged_in: true,
    };
    for (html, noun) in [
        (empty_list(None, viewer()), "No task is visible to you"),
        (empty_jobs(None, viewer()), "No job is visible to you"),
        (empty_list(at, viewer()), "the only ones visible to you"),
        (empty_jobs(at, viewer()), "the only ones visible to you"),
    ] {
        assert!(html.contains(noun), "{html}");
        assert!(html.contains("<bdi>ada&#60;b&#62;</bdi>"), "{html}");
        assert!(!html.contains("producer simulate"), "{html}");
        assert!(html.contains("action=\"/logout\""), "{html}");
    }
    for html in [
        empty_list(None, Visitor::default()),
        empty_jobs(None, Visitor::default()),
    ] {
        assert!(html.contains("producer simulate"), "{html}");
        assert!(!html.contains("/logout"), "{html}");
    }
}

#[test]
fn only_an_error_that_may_pass_is_tried_again() {
    for (status, view) in [
        (StatusCode::BAD_REQUEST, "error"),
        (StatusCode::NOT_FOUND, "error"),
        (StatusCode::TOO_MANY_REQUESTS, "retry"),
        (StatusCode::SERVICE_UNAVAILABLE, "retry"),
    ] {
        let page = ErrorView::of("/tasks", &Query::default(), status, "why".to_owned());
        let html = page.render().unwrap();
        assert!(html.contains(&format!("data-view=\"{view}\"")), "{html}");
        assert_eq!(html.contains("retries"), view == "retry", "{html}");
    }
}

#[test]
fn the_page_of_an_unknown_path_leads_to_the_list_only() {
    let absent = Problem::new(StatusCode::NOT_FOUND, "nothing");
    let html = ErrorView::elsewhere("//evil.example/\"><b>", &absent);
    let html = html.render().unwrap();
    let (tags, _) = parsed(&html);
    assert!(!tags.contains(&"b".to_owned()), "{html}");
    for attribute in ["href", "action", "src"] {
        assert!(!html.contains(&format!("{attribute}=\"//")), "{html}");
    }
}

#[test]
fn no_page_has_a_style_or_script_of_its_own() {
    for html in VIEWS.iter().map(|(view, _)| view("x")) {
        assert!(
            !html.contains(" style=") && !html.contains("<style"),
            "{html}"
        );
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(!html.contains("http://") || html.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    }
}
