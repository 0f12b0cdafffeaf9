//! When the list is read, and which of its things are followed.

use service::address::Address;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::polling::follow::Settings;
use crate::polling::rest::{Access, Api, Clients};
use crate::polling::server::{Server, Servers};

#[test]
fn things_are_polled_every_interval_while_a_refusing_address_is_asked_every_second() {
    let started = Instant::now();
    let at = |seconds: u64| started + Duration::from_secs(seconds);
    let mut schedule = Schedule::new(Duration::from_secs(10), started);
    assert!(schedule.begin(at(0)));
    schedule.polled();
    assert_eq!(schedule.next, at(10));

    let mut polled = Vec::new();
    for second in 10..40 {
        assert_eq!(schedule.next, at(second));
        if schedule.begin(at(second)) {
            polled.push(second);
        }
        schedule.hasten(at(second));
    }
    assert_eq!(polled, [10, 20, 30]);

    // It answers again, and the things are polled at once.
    schedule.begin(at(40));
    schedule.polled();
    assert_eq!(schedule.next, at(50));
    assert!(schedule.begin(at(50)));

    // An interval that is shorter than a second is not lengthened.
    let mut schedule = Schedule::new(Duration::from_millis(50), started);
    schedule.begin(started);
    schedule.hasten(started);
    assert_eq!(schedule.next, started + Duration::from_millis(50));
    assert!(schedule.begin(schedule.next));
}

struct Listed(&'static str, i64);

impl Line for Listed {
    fn id(&self) -> &str {
        self.0
    }

    fn run(&self) -> Option<i64> {
        Some(self.1)
    }

    fn has_ended(&self) -> bool {
        true
    }
}

impl Thing for String {
    fn id(&self) -> &str {
        self
    }
}

struct Made(Server);

impl Engine for Made {
    type Thing = String;
    type Line = Listed;
    type Summary = ();

    const NOUN: &'static str = "thing";
    const FOLLOWED: &'static str = "taskrunning_followed_things";
    const FORGET_AFTER: Duration = Duration::MAX;

    fn server(&self) -> &Server {
        &self.0
    }

    async fn list(&self, _: &mut (dyn FnMut(Listed) + Send)) -> Result<(), Fault> {
        Ok(())
    }

    fn thing(&self, line: &Listed) -> String {
        line.0.to_owned()
    }

    async fn poll(&self, thing: Box<String>, _: Context<Self>) -> Polled<String> {
        Polled::Open(thing)
    }
}

#[test]
fn a_thing_that_ends_while_the_list_is_read_is_not_followed_again() {
    const API: Api = Api {
        server: "a server",
        version: "",
        root: &[],
        lists: "things",
        log_in: "",
        trust: "",
    };
    let address = Address::http("localhost:1");
    let rest = Clients::default().rest(&address, &API, Access::default());
    let rest = rest.unwrap();
    let settings = Settings {
        interval: Duration::ZERO,
        stay: false,
        give_up_after: Duration::ZERO,
        chosen: Vec::new(),
        chosen_by: "--thing",
    };
    let follow = Arc::new(Follow::new(settings, CancellationToken::new()));
    let server = Servers::new(1).add(rest);
    let mut cluster = Cluster::new(follow.clone(), Made(server));
    let mut list = List::new();
    for id in ["a", "b"] {
        list.take(Listed(id, 1), &follow, &cluster.ended);
    }
    cluster.ended.insert("a".to_owned(), Some(1));
    assert!(cluster.take_up(&list));
    assert_eq!(cluster.things.keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn ends_are_remembered_while_they_are_listed_and_the_oldest_are_forgotten_first() {
    let ends = Ends::default();
    for id in ["a", "b", "c"] {
        ends.insert(id.to_owned(), Some(1));
    }
    assert!(ends.has(&Listed("a", 1)));
    assert!(!ends.has(&Listed("b", 2)), "it is another run");
    ends.forget(Duration::MAX, 2);
    let known = |id| ends.lock().contains_key(id);
    assert_eq!([known("a"), known("b"), known("c")], [true, false, true]);
    ends.forget(Duration::ZERO, 2);
    assert!(ends.lock().is_empty());
}
