//! The state of each application, for all addresses together: none is reported twice, and a given-up one is followed again
//! when Spark lists it again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::application::{Application, Key};

/// How long an ended or given-up application is remembered after an address last listed it. A History Server takes minutes
/// to read its logs, not a day.
const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// Maximum number of given-up applications whose jobs are remembered.
const KEPT_MAX: usize = 1_000;

pub(super) struct Standings {
    known: HashMap<Key, Known>,
    /// Chosen by `--app` and not listed so far.
    awaited: HashSet<String>,
}

struct Known {
    standing: Standing,
    listed: Instant,
}

enum Standing {
    /// An address follows it.
    Followed,
    /// Its end was reported.
    Ended,
    /// It was reported as unknown. Holds what was last known of it.
    GivenUp(Option<Box<Application>>),
}

/// The state of a listed application, for the address that lists it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Listed {
    New,
    /// It was given up, here or at another address.
    GivenUp,
    /// It is followed, here or at another address.
    Followed,
    Ended,
}

impl Standings {
    pub(super) fn new(chosen: &[String]) -> Self {
        Self {
            known: HashMap::new(),
            awaited: chosen.iter().cloned().collect(),
        }
    }

    /// Records that an address lists it.
    pub(super) fn listed(&mut self, key: &Key) -> Listed {
        self.awaited.remove(&key.id);
        let Some(known) = self.known.get_mut(key) else {
            return Listed::New;
        };
        known.listed = Instant::now();
        match known.standing {
            Standing::Followed => Listed::Followed,
            Standing::Ended => Listed::Ended,
            Standing::GivenUp(_) => Listed::GivenUp,
        }
    }

    /// `None` if it must not be followed now; otherwise what is known of it from before.
    pub(super) fn take_up(&mut self, key: &Key) -> Option<Option<Box<Application>>> {
        match self.known.get(key).map(|known| &known.standing) {
            Some(Standing::Followed | Standing::Ended) => return None,
            Some(Standing::GivenUp(_)) | None => {}
        }
        match self.set(key.clone(), Standing::Followed) {
            Some(Standing::GivenUp(kept)) => Some(kept),
            _ => Some(None),
        }
    }

    pub(super) fn end(&mut self, key: Key) {
        self.set(key, Standing::Ended);
    }

    pub(super) fn give_up(&mut self, application: Application) {
        let kept = self.known.values();
        let kept = kept.filter(|known| matches!(known.standing, Standing::GivenUp(Some(_))));
        let room = kept.count() < KEPT_MAX;
        let key = application.key.clone();
        let kept = room.then(|| Box::new(application));
        self.set(key, Standing::GivenUp(kept));
    }

    fn set(&mut self, key: Key, standing: Standing) -> Option<Standing> {
        let listed = Instant::now();
        let before = self.known.insert(key, Known { standing, listed });
        before.map(|known| known.standing)
    }

    pub(super) fn forget(&mut self) {
        self.known.retain(|_, known| {
            matches!(known.standing, Standing::Followed) || known.listed.elapsed() < FORGET_AFTER
        });
    }

    /// The applications of `--app` that no address has listed, sorted.
    pub(super) fn awaited(&self) -> Vec<&str> {
        let mut awaited: Vec<&str> = self.awaited.iter().map(String::as_str).collect();
        awaited.sort_unstable();
        awaited
    }

    /// The applications whose end is not known, sorted.
    pub(super) fn given_up(&self) -> Vec<&Key> {
        let given_up = self.known.iter();
        let given_up = given_up.filter(|(_, known)| matches!(known.standing, Standing::GivenUp(_)));
        let mut keys: Vec<&Key> = given_up.map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys
    }
}
