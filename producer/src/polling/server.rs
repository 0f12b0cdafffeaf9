//! A server whose REST API is polled.

use std::collections::HashMap;
use std::sync::Arc;

use super::poll_limit::PollLimit;
use super::rest::Rest;

/// A server, and how many polls of it run at a time.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) rest: Rest,
    pub(crate) polls: Arc<PollLimit>,
}

/// The servers of a run. Several addresses of one server, such as paths of one proxy, share its limit.
pub(crate) struct Servers {
    polls: usize,
    limits: HashMap<String, Arc<PollLimit>>,
}

impl Servers {
    /// `polls`: how many polls of a server run at a time.
    pub(crate) fn new(polls: u16) -> Self {
        Self {
            polls: polls.into(),
            limits: HashMap::new(),
        }
    }

    pub(crate) fn add(&mut self, rest: Rest) -> Server {
        let limit = self.limits.entry(rest.instance());
        let limit = limit.or_insert_with_key(|instance| {
            let (instance, what) = (instance.clone(), rest.api().lists);
            Arc::new(PollLimit::new(instance, what, self.polls))
        });
        let polls = limit.clone();
        Server { rest, polls }
    }

    /// Forgets the limits of servers that are not used any more.
    pub(crate) fn forget_unused(&mut self) {
        self.limits.retain(|_, limit| Arc::strong_count(limit) > 1);
    }
}
