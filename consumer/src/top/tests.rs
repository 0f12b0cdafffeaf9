//! Screens of `consumer top`, drawn into memory. Long because it contains whole screens.

use jiff::{SignedDuration, Timestamp};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use serde_json::{Value, json};
use service::text::is_hidden;

use super::answer::{Answer, Curve, Details, Sort};
use super::draw::draw;
use super::state::{Action, State, View};
use super::theme::Theme;
use crate::query::TaskOrder;

/// Hostile names of engines: control, bidirectional and invisible characters, markup, wide and combined ones.
const HOSTILE: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}<img src=x onerror=alert(1)>\u{202e}\u{2066}\u{200b}\r\n\u{9b}31m\
    \u{feff}日本e\u{301}👩\u{200d}🚀";

fn now() -> Timestamp {
    "2026-11-25T14:05:00Z".parse().unwrap()
}

fn later(seconds: i64) -> Timestamp {
    now() + SignedDuration::from_secs(seconds)
}

/// A running task in the API's format.
fn task(exec_id: &str, changes: Value) -> Value {
    let mut task = json!({
        "exec_id": exec_id, "job_id": "job-1", "engine_instance": "node-1:4040", "engine_type": "spark",
        "engine_user": "ada", "ticket_id": "t", "status": "Running", "progress": 0.4321,
        "started_at": "2026-11-25T14:00:00.000000Z", "ended_at": null, "running_seconds": 300.0,
        "reported_at": "2026-11-25T14:04:48.123456Z", "sequence": 7, "memory_bytes": 3_u64 << 30, "cores": 12,
        "silent_seconds": null, "stalled_seconds": null, "event_partition": 0, "event_offset": 7,
    });
    let fields = task.as_object_mut().unwrap();
    fields.extend(changes.as_object().unwrap().clone());
    task
}

fn state() -> State {
    let sort = Sort {
        order: TaskOrder::Started,
        descending: true,
    };
    let mut state = State::new("sqlite:tasks.db".to_owned(), String::new(), None, sort);
    state.theme = Theme { is_coloured: true };
    state
}

/// An answer with these tasks, and these details of the requested one.
fn answer(state: &State, tasks: &[Value], details: Option<Details>) -> Answer {
    let page = json!({"items": tasks, "next": null, "watermark": {}, "expired_before": null});
    let question = state.question();
    Answer {
        page: question.sort.map(|_| serde_json::from_value(page).unwrap()),
        details: question.exec_id.is_some().then_some(details),
        question,
        at: now(),
    }
}

fn with(tasks: &[Value]) -> State {
    let mut state = state();
    let answer = answer(&state, tasks, None);
    state.answered(Ok(answer), now());
    state
}

fn press(state: &mut State, key: KeyCode) -> Action {
    state.pressed(KeyEvent::new(key, KeyModifiers::NONE), now())
}

fn type_in(state: &mut State, keys: &str) {
    for key in keys.chars() {
        press(state, KeyCode::Char(key));
    }
}

fn screen(state: &mut State, columns: u16, lines: u16, at: Timestamp) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| draw(state, frame, at)).unwrap();
    terminal.backend().buffer().clone()
}

/// The screen's lines. A wide character occupies its own cell and an undrawn one.
fn lines(buffer: &Buffer) -> Vec<String> {
    let (columns, rows) = (buffer.area.width, buffer.area.height);
    let line = |y| {
        let mut line = String::new();
        let mut x = 0;
        while x < columns {
            let symbol = buffer[(x, y)].symbol();
            line.push_str(symbol);
            x += super::theme::width(symbol).max(1) as u16;
        }
        line.trim_end().to_owned()
    };
    (0..rows).map(line).collect()
}

fn text(state: &mut State, columns: u16, rows: u16) -> String {
    lines(&screen(state, columns, rows, now())).join("\n")
}

/// A task's details in the API's format, with curves of three points.
fn details(exec_id: &str, user: &str) -> Details {
    let task = json!({
        "task": task(exec_id, json!({"engine_user": user})),
        "resource": [{
            "application_id": "application_1", "status": "RUNNING", "queue": "root.etl", "memory_bytes": 3_u64 << 30,
            "cores": 12, "instances": 3, "reported_at": "2026-11-25T14:04:48.123456Z",
        }],
        "metrics": {
            "engine_running_tasks": 2, "metrics": {"rows": 5}, "reported_at": "2026-11-25T14:04:48.123456Z",
        },
        "sequences": {"reports": 8, "repeated": 1, "missing": 2, "missing_sequences": [3, 4]},
        "reports": [{
            "sequence": 7, "reported_at": "2026-11-25T14:04:48.123456Z", "status": "Running", "progress": 0.4321,
            "jobs": {"job_ids": ["s-1"], "total_tasks": [9], "running_tasks": [1], "failed_tasks": [0],
                "succeed_tasks": [8]},
            "adjustments": ["ProgressRaised"], "event_partition": 0, "event_offset": 7,
        }],
    });
    let points = [(0, 0.0), (30_000_000, 0.5), (60_000_000, 0.25)];
    let curve = |name, factor: f64| Curve {
        name,
        points: points
            .iter()
            .map(|(at, value)| (*at, value * factor))
            .collect(),
    };
    Details {
        task: serde_json::from_value(task).unwrap(),
        curves: vec![
            curve("progress", 1.0),
            curve("memory", (4_u64 << 30) as f64),
            curve("cores", 8.0),
        ],
    }
}

#[test]
fn a_screen_of_80_columns_lists_tasks_with_their_marks() {
    let mut state = with(&[
        task("exec-1", json!({})),
        task("exec-2", json!({"silent_seconds": 200.0})),
        task(
            "exec-3",
            json!({"stalled_seconds": 1200.0, "progress": null}),
        ),
        task(
            "exec-4",
            json!({"status": "Failed", "running_seconds": 61.0}),
        ),
    ]);
    let screen = lines(&screen(&mut state, 80, 24, now()));
    assert_eq!(
        screen[..8],
        [
            "consumer top  14:05:00 UTC  sqlite:tasks.db",
            "live",
            "4 tasks  by started ↓",
            "exec task          status         mark               progress  running  reported",
            "exec-1             ► Running                          43.21 %    5 min      11 s",
            "exec-2             ► Running      ! silent 3 min      43.21 %    5 min      11 s",
            "exec-3             ► Running      = stalled 20 min          ?    5 min      11 s",
            "exec-4             ✗ Failed                           43.21 %     61 s      11 s",
        ],
        "{screen:#?}"
    );
    assert_eq!(
        screen[23],
        "q quit  ? help  / search  f freeze  Enter details  sort: s r d p m c"
    );
}

#[test]
fn a_wide_screen_has_all_columns_and_a_small_one_the_most_important() {
    let tasks = [
        task("exec-1", json!({})),
        task("exec-2", json!({"stalled_seconds": 1200.0})),
    ];
    let mut state = with(&tasks);
    let wide = text(&mut state, 200, 12);
    for words in [
        "████",
        "3.00 GiB",
        "12",
        "spark node-1:4040",
        "ada",
        "job-1",
    ] {
        assert!(wide.contains(words), "{words} is not in\n{wide}");
    }
    let small = lines(&screen(&mut state, 40, 10, now()));
    assert_eq!(small[3], "exec task       status          progress");
    assert_eq!(small[4], "exec-1          ► Running        43.21 %");
    // A hidden status column does not hide the mark.
    assert_eq!(small[5], "exec-2          = stalled 20 …   43.21 %");
    let low = (1..=8).map(|rows| (80, rows));
    let small = [(1, 1), (5, 2), (20, 4), (40, 10), (300, 100)];
    for (columns, rows) in small.into_iter().chain(low) {
        for keys in ["", "?", "\n"] {
            let mut state = with(&tasks);
            screen_is_drawn(&mut state, columns, rows);
            type_in(&mut state, keys);
            press(&mut state, KeyCode::Enter);
            screen_is_drawn(&mut state, columns, rows);
            let answer = answer(&state, &tasks, Some(details("exec-1", "ada")));
            state.answered(Ok(answer), now());
            screen_is_drawn(&mut state, columns, rows);
        }
    }
}

fn screen_is_drawn(state: &mut State, columns: u16, rows: u16) {
    let buffer = screen(state, columns, rows, now());
    assert_eq!((buffer.area.width, buffer.area.height), (columns, rows));
}

#[test]
fn no_text_of_a_report_reaches_the_terminal_as_a_command() {
    let hostile = json!({
        "job_id": HOSTILE, "engine_instance": HOSTILE, "engine_type": HOSTILE, "engine_user": HOSTILE,
        "status": HOSTILE, "reported_at": HOSTILE,
    });
    let tasks = [task(HOSTILE, hostile)];
    let mut state = with(&tasks);
    state.place = HOSTILE.to_owned();
    state.filters = HOSTILE.to_owned();
    let mut screens = vec![screen(&mut state, 300, 12, now())];
    type_in(&mut state, "/\u{202e}");
    screens.push(screen(&mut state, 300, 12, now()));
    press(&mut state, KeyCode::Esc);
    press(&mut state, KeyCode::Enter);
    screens.push(screen(&mut state, 300, 12, now()));
    let answer = answer(&state, &tasks, Some(details(HOSTILE, HOSTILE)));
    state.answered(Ok(answer), now());
    screens.push(screen(&mut state, 300, 40, now()));
    state.answered(Err(HOSTILE.to_owned()), now());
    screens.push(screen(&mut state, 300, 40, now()));
    for screen in screens {
        let shown = lines(&screen).join("\n");
        let emoji = shown.replace("👩\u{200d}🚀", "");
        let hidden = emoji.chars().find(|c| is_hidden(*c) && *c != '\n');
        assert_eq!(hidden, None, "{shown}");
        assert!(shown.contains(r"\u{1b}[2J"), "{shown}");
    }
}

#[test]
fn wide_characters_keep_the_columns_in_line() {
    let mut state = with(&[
        task("日本任务日本任务日本任务日本任务", json!({})),
        task("e\u{301}xec", json!({})),
    ]);
    let buffer = screen(&mut state, 80, 10, now());
    let shapes: Vec<u16> = (4..6)
        .map(|y| (0..80).find(|x| buffer[(*x, y)].symbol() == "►").unwrap())
        .collect();
    assert_eq!(shapes, [19, 19], "{:#?}", lines(&buffer));
    assert!(lines(&buffer)[4].starts_with("日本任务日本任务… "));
}

#[test]
fn an_unavailable_source_is_shown_with_the_age_of_the_data() {
    let mut state = with(&[task("exec-1", json!({}))]);
    for seconds in [1, 5] {
        let refused = Err("connection refused".to_owned());
        state.answered(refused, later(seconds));
    }
    assert!(state.ticks());
    let away = lines(&screen(&mut state, 80, 24, later(13))).join("\n");
    assert!(
        away.contains("AWAY for 12 s, since 14:05:01 UTC; shown: OLD, of 14:05:00 UTC: connection"),
        "{away}"
    );
    assert!(
        away.contains("refused") && away.contains("exec-1"),
        "{away}"
    );
    let answer = answer(&state, &[], None);
    state.answered(Ok(answer), later(14));
    let back = text(&mut state, 80, 24);
    assert!(
        back.contains("live") && back.contains("no tasks yet"),
        "{back}"
    );

    let mut never = self::state();
    assert!(text(&mut never, 80, 24).contains("asking …"));
    never.answered(Err("no such file".to_owned()), now());
    let never = text(&mut never, 80, 24);
    assert!(
        never.contains("AWAY for 0 s") && never.contains("nothing yet"),
        "{never}"
    );
}

#[test]
fn the_past_says_so() {
    let mut state = with(&[task("exec-1", json!({}))]);
    state.as_of = Some(later(60));
    let past = lines(&screen(&mut state, 80, 24, now()));
    assert_eq!(past[1], "AS OF 2026-11-25T14:06:00Z, as it was known then");
    // Ages are relative to that time.
    assert!(past[4].ends_with("71 s"), "{past:#?}");
}

#[test]
fn a_frozen_list_stays_and_asks_for_nothing() {
    let mut state = with(&[task("exec-1", json!({}))]);
    let late = answer(&state, &[task("exec-2", json!({}))], None);
    type_in(&mut state, "f");
    assert_eq!(state.question().sort, None);
    state.answered(Ok(late), later(1));
    let frozen = lines(&screen(&mut state, 80, 24, later(30))).join("\n");
    assert!(
        frozen.contains("FROZEN for 30 s, since 14:05:00 UTC"),
        "{frozen}"
    );
    assert!(
        frozen.contains("exec-1") && !frozen.contains("exec-2"),
        "{frozen}"
    );
    type_in(&mut state, "f");
    assert!(state.question().sort.is_some());
    assert!(text(&mut state, 80, 24).contains("live"));
}

#[test]
fn keys_sort_and_the_list_says_how_it_is_sorted() {
    let tasks = [task("exec-1", json!({}))];
    let mut state = with(&tasks);
    for (keys, order, descending, heading) in [
        ("p", TaskOrder::Progress, true, "progress↓"),
        ("p", TaskOrder::Progress, false, "progress↑"),
        ("d", TaskOrder::Duration, true, "running↓"),
        ("r", TaskOrder::Reported, true, "reported↓"),
        ("m", TaskOrder::Memory, true, "memory↓"),
        ("c", TaskOrder::Cores, true, "cores↓"),
        ("s", TaskOrder::Started, true, "by started ↓"),
    ] {
        type_in(&mut state, keys);
        assert_eq!(state.question().sort, Some(Sort { order, descending }));
        // The heading changes only once the answer is sorted.
        let before = text(&mut state, 120, 10);
        assert!(
            before.contains("(sorting …)") && !before.contains(heading),
            "{before}"
        );
        let answer = answer(&state, &tasks, None);
        state.answered(Ok(answer), now());
        let sorted = text(&mut state, 120, 10);
        assert!(
            sorted.contains(heading) && !sorted.contains("(sorting …)"),
            "{sorted}"
        );
    }
}

#[test]
fn the_selected_task_stays_selected_wherever_its_row_goes() {
    let named =
        |names: &[&str]| -> Vec<Value> { names.iter().map(|name| task(name, json!({}))).collect() };
    let names: Vec<String> = (0..30).map(|n| format!("exec-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut state = with(&named(&names));
    let selected = |state: &mut State| {
        let buffer = screen(state, 80, 15, now());
        let y = (0..15).find(|y| {
            let style = buffer[(0, *y)].style();
            style
                .add_modifier
                .contains(ratatui::style::Modifier::REVERSED)
        });
        lines(&buffer)[usize::from(y.unwrap())][..7].to_owned()
    };
    assert_eq!(selected(&mut state), "exec-00");
    type_in(&mut state, "jjk");
    assert_eq!(selected(&mut state), "exec-01");
    press(&mut state, KeyCode::PageDown);
    assert_eq!(selected(&mut state), "exec-10");
    type_in(&mut state, "G");
    assert_eq!(selected(&mut state), "exec-29");
    press(&mut state, KeyCode::Up);
    press(&mut state, KeyCode::PageUp);
    assert_eq!(selected(&mut state), "exec-19");
    let mut fewer = names.clone();
    fewer.drain(..10);
    fewer.reverse();
    let answer_ = answer(&state, &named(&fewer), None);
    state.answered(Ok(answer_), now());
    assert_eq!(selected(&mut state), "exec-19");
    // The row in its place, once it is gone.
    let answer_ = answer(&state, &named(&["exec-01", "exec-02"]), None);
    state.answered(Ok(answer_), now());
    assert_eq!(selected(&mut state), "exec-02");
    type_in(&mut state, "g");
    assert_eq!(selected(&mut state), "exec-01");
}

#[test]
fn a_search_narrows_the_list() {
    let mut state = with(&[
        task("exec-1", json!({"engine_user": "Grace"})),
        task("exec-2", json!({})),
    ]);
    type_in(&mut state, "/graq");
    // Letters are no commands while a search is typed.
    let typed = text(&mut state, 80, 12);
    assert!(typed.contains("/graq▏"), "{typed}");
    assert!(
        typed.contains("none of the 2 tasks matches \"graq\""),
        "{typed}"
    );
    press(&mut state, KeyCode::Backspace);
    press(&mut state, KeyCode::Enter);
    let found = text(&mut state, 80, 12);
    assert!(
        found.contains("1 of 2 with \"gra\"") && found.contains("exec-1"),
        "{found}"
    );
    assert!(!found.contains("exec-2"), "{found}");
    press(&mut state, KeyCode::Esc);
    assert!(text(&mut state, 80, 12).contains("exec-2"));
    type_in(&mut state, &format!("/{}", "x".repeat(1_000)));
    assert_eq!(state.search.len(), 100);
}

#[test]
fn details_show_curves_and_the_commands_output() {
    let tasks = [task("exec-1", json!({}))];
    let mut state = with(&tasks);
    press(&mut state, KeyCode::Enter);
    assert_eq!(state.question().exec_id.as_deref(), Some("exec-1"));
    assert!(text(&mut state, 80, 24).contains("exec-1: asking …"));
    let answer_ = answer(&state, &tasks, Some(details("exec-1", "ada")));
    state.answered(Ok(answer_), now());
    let shown = text(&mut state, 80, 50);
    for words in [
        "progress 25.00 %",
        "0.00 % … 50.00 %",
        "memory   1.00 GiB",
        "cores    2",
        "█",
        "exec task   exec-1",
        "2 missing (first [3, 4]), 1 repeated",
        "application_1",
        "ProgressRaised",
    ] {
        assert!(shown.contains(words), "{words} is not in\n{shown}");
    }
    // The text scrolls, but not beyond its end.
    let small = text(&mut state, 80, 24);
    assert!(
        small.contains("exec task") && !small.contains("ProgressRaised"),
        "{small}"
    );
    type_in(&mut state, "G");
    let end = text(&mut state, 80, 24);
    assert!(
        !end.contains("exec task   ") && end.contains("ProgressRaised"),
        "{end}"
    );
    let View::Details { scroll, .. } = &state.view else {
        panic!("{state:?}");
    };
    assert!(*scroll < 100, "{scroll}");
    press(&mut state, KeyCode::Esc);
    assert_eq!(state.question().exec_id, None);
    press(&mut state, KeyCode::Enter);
    let answer_ = answer(&state, &tasks, None);
    state.answered(Ok(answer_), now());
    let gone = text(&mut state, 80, 24);
    assert!(gone.contains("exec task exec-1 no longer exists"), "{gone}");
}

#[test]
fn keys_end_suspend_and_help() {
    let mut state = with(&[]);
    type_in(&mut state, "?");
    let help = text(&mut state, 40, 10);
    assert!(
        help.contains("q ^C quit") || help.contains("move"),
        "{help}"
    );
    assert_eq!(press(&mut state, KeyCode::Char('p')), Action::Nothing);
    press(&mut state, KeyCode::Esc);
    assert!(text(&mut state, 80, 24).contains("no tasks yet"));
    let control = |key| KeyEvent::new(KeyCode::Char(key), KeyModifiers::CONTROL);
    assert_eq!(state.pressed(control('c'), now()), Action::Quit);
    assert_eq!(state.pressed(control('z'), now()), Action::Suspend);
    assert_eq!(press(&mut state, KeyCode::Char('q')), Action::Quit);
    type_in(&mut state, "/q");
    assert_eq!(state.pressed(control('c'), now()), Action::Quit);
}

#[test]
fn without_colours_words_and_shapes_say_the_same() {
    let tasks = [
        task("exec-1", json!({"silent_seconds": 200.0})),
        task("exec-2", json!({"status": "Failed"})),
    ];
    let mut state = with(&tasks);
    let coloured = screen(&mut state, 80, 24, now());
    state.theme = Theme { is_coloured: false };
    let plain = screen(&mut state, 80, 24, now());
    assert_eq!(lines(&coloured), lines(&plain));
    let colours = |buffer: &Buffer| {
        let cells = buffer.content.iter();
        cells
            .filter(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
            .count()
    };
    assert!(colours(&coloured) > 0);
    assert_eq!(colours(&plain), 0);
}
