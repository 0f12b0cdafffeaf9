//! The views' HTML: text of reports stays text, whatever it holds.

use askama::Template;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};

use super::error::ErrorView;
use super::links::Query;
use super::task::{Found, TaskView};
use super::tasks::TasksView;
use crate::query::{
    Mark, Metrics, Point, Report, Resource, Sequences, Series, SubJobs, Task, TaskDetails,
    TaskItem, TaskPage, TaskQuery, TaskSeries, Watermark,
};

/// What user interfaces of other programs took for markup, and what shows as something else than it is.
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
    let view = TasksView::of(&given, &TaskQuery::default(), page);
    view.render().unwrap()
}

fn one(text: &str) -> String {
    let at: Timestamp = TIME.parse().unwrap();
    let found = Found {
        item: item(text),
        details: details(text),
        series: series(text),
    };
    let view = TaskView::of(&Query::default(), Some(at), found);
    view.render().unwrap()
}

/// The tags of a page without the values of their attributes, and the text between them.
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
    for (view, name) in [(list as fn(&str) -> String, "list"), (one, "task")] {
        let (harmless, _) = parsed(&view("x"));
        assert!(harmless.len() > 50, "{harmless:?}");
        for hostile in HOSTILE {
            let html = view(hostile);
            // A drawing has as many marks as before.
            let (tags, told) = parsed(&html);
            assert_eq!(tags, harmless, "{name}: {hostile}\n{html}");
            assert_eq!(
                told.chars()
                    .find(|c| service::text::is_hidden(*c) && *c != '\n'),
                None,
                "{name}: {hostile}\n{told}"
            );
            assert!(!html.contains("href=\"javascript:"), "{name}: {hostile}");
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
        assert_eq!(html.contains("tries again"), view == "retry", "{html}");
    }
}

#[test]
fn the_page_of_an_unknown_path_leads_to_the_list_only() {
    let html = ErrorView::absent("//evil.example/\"><b>").render().unwrap();
    let (tags, _) = parsed(&html);
    assert!(!tags.contains(&"b".to_owned()), "{html}");
    for attribute in ["href", "action", "src"] {
        assert!(!html.contains(&format!("{attribute}=\"//")), "{html}");
    }
}

#[test]
fn no_page_has_a_style_or_script_of_its_own() {
    for html in [list("x"), one("x")] {
        assert!(
            !html.contains(" style=") && !html.contains("<style"),
            "{html}"
        );
        assert_eq!(html.matches("<script").count(), 1, "{html}");
        assert!(!html.contains("http://") || html.contains("xmlns=\"http://www.w3.org/2000/svg\""));
    }
}
