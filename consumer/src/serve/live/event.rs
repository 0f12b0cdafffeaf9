//! Server-sent events, as defined by the HTML standard.
//!
//! axum's own events are encoded per client; here one encoding serves all clients with the same scope.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;

use super::scope::{Scope, Visibility};
use crate::query::{Change, Watermark};

/// Reconnection time for clients.
const RETRY: Duration = Duration::from_secs(3);
/// Maximum number of tasks in an event. An event is sent whole, so this bounds the memory held for a slow client.
const TASKS: usize = 250;

/// Starts each stream with the reconnection time.
pub(super) fn hello() -> Bytes {
    format!("retry: {}\n\n", RETRY.as_millis()).into()
}

/// A watermark as an event id. An empty id would reset the client's position.
fn id(at: &Watermark) -> String {
    match at.to_string() {
        none if none.is_empty() => "0:0".to_owned(),
        text => text,
    }
}

/// A comment that keeps proxies from closing the stream. Its id moves past changes that do not concern this client, so
/// that it can resume after a long silence.
pub(super) fn heartbeat(at: &Watermark) -> Bytes {
    format!(": alive\nid: {}\n\n", id(at)).into()
}

/// Asks the client to reload; the changes after this watermark follow.
pub(super) fn reset(at: &Watermark) -> Bytes {
    // Only digits, colons and commas, so the id needs no escaping.
    let (id, watermark) = (id(at), json(at));
    format!("event: reset\nid: {id}\ndata: {{\"watermark\":{watermark}}}\n\n").into()
}

/// Encodes the changes in scope. Only the last event has an id: a client that is disconnected in between receives all
/// of them again.
pub(super) fn tasks(changes: &[Arc<Change>], scope: &Scope, upto: &Watermark) -> Vec<Bytes> {
    let seen = |change: &Arc<Change>| match scope.sees(change) {
        Visibility::Hidden => None,
        shown => Some((change.clone(), shown == Visibility::Shown)),
    };
    let in_scope: Vec<(Arc<Change>, bool)> = changes.iter().filter_map(seen).collect();
    let last = in_scope.len().div_ceil(TASKS);
    let events = in_scope.chunks(TASKS).enumerate();
    events
        .map(|(number, in_scope)| event(in_scope, (number + 1 == last).then_some(upto)))
        .collect()
}

fn event(in_scope: &[(Arc<Change>, bool)], upto: Option<&Watermark>) -> Bytes {
    let mut text = String::from("event: tasks\n");
    if let Some(upto) = upto {
        // Writing to a string is infallible.
        let _ = writeln!(text, "id: {}", id(upto));
    }
    text += "data: {\"items\":[";
    // JSON escapes line breaks within strings and has no others.
    join(
        &mut text,
        in_scope
            .iter()
            .filter(|(_, shown)| *shown)
            .map(|(change, _)| &*change.json),
    );
    text += "],\"left\":[";
    let left = in_scope.iter().filter(|(_, shown)| !shown);
    let left: Vec<String> = left.map(|(change, _)| json(&change.item.exec_id)).collect();
    join(&mut text, left.iter().map(String::as_str));
    text += "]";
    if let Some(upto) = upto {
        let _ = write!(text, ",\"watermark\":{}", json(upto));
    }
    text += "}\n\n";
    text.into()
}

fn join<'a>(text: &mut String, parts: impl Iterator<Item = &'a str>) {
    for (number, part) in parts.enumerate() {
        if number > 0 {
            text.push(',');
        }
        text.push_str(part);
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // Text and maps of numbers always serialize.
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{change, named};
    use super::*;

    /// The fields of an event, one per line.
    fn fields(event: &Bytes) -> Vec<(String, String)> {
        let text = std::str::from_utf8(event).unwrap();
        let text = text.strip_suffix("\n\n").unwrap();
        assert!(!text.contains("\n\n"), "{text}");
        let field = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        text.lines().map(field).collect()
    }

    #[test]
    fn hostile_text_stays_within_its_event() {
        const HOSTILE: &str = "a\n\nevent: reset\rid: 9:9\u{2028}\"\\</script>";
        let at: Watermark = "0:7".parse().unwrap();
        let events = tasks(&[named(HOSTILE, "Running")], &Scope::default(), &at);
        let [event] = &events[..] else {
            panic!("{events:?}")
        };
        let fields = fields(event);
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["event", "id", "data"]);
        assert_eq!(fields[1].1, "0:7");
        let data: serde_json::Value = serde_json::from_str(&fields[2].1).unwrap();
        assert_eq!(data["items"][0]["exec_id"], HOSTILE);
        assert_eq!(data["watermark"]["0"], 7);
    }

    #[test]
    fn the_id_moves_on_with_the_last_of_many_events() {
        let changes: Vec<_> = (0..TASKS as i64 + 1).map(|id| change(id, 0, id)).collect();
        let events = tasks(&changes, &Scope::default(), &"0:251".parse().unwrap());
        let ids = events
            .iter()
            .map(|event| fields(event).iter().any(|(name, _)| name == "id"));
        assert_eq!(ids.collect::<Vec<_>>(), [false, true]);
        assert!(tasks(&[], &Scope::default(), &"0:1".parse().unwrap()).is_empty());
    }

    #[test]
    fn the_other_events_are_whole_too() {
        let at: Watermark = "0:7,1:9".parse().unwrap();
        assert_eq!(hello(), "retry: 3000\n\n");
        assert_eq!(heartbeat(&Watermark::default()), ": alive\nid: 0:0\n\n");
        assert_eq!(heartbeat(&at), ": alive\nid: 0:7,1:9\n\n");
        assert_eq!(
            reset(&at),
            "event: reset\nid: 0:7,1:9\ndata: {\"watermark\":{\"0\":7,\"1\":9}}\n\n"
        );
    }
}
