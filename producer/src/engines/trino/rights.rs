//! Trino leaves out of its list the queries that the user of the request may not view, and answers 200. Whether it does can
//! only be guessed: a user without that right sees no queries but their own.

use std::time::Duration;

use super::answers::QueryInfo;
use crate::polling::silence::Silence;

/// What the lists of a coordinator say about the rights of this program. Noted once.
#[derive(Default)]
pub(super) struct Rights {
    /// No list had a query so far.
    empty: Silence,
    noted: bool,
}

/// Whose queries a list has.
#[derive(Default)]
pub(super) enum Users {
    #[default]
    Nobody,
    One(String),
    Several,
}

impl Users {
    pub(super) fn add(&mut self, query: &QueryInfo) {
        let Some(user) = &query.session.user else {
            return;
        };
        match self {
            Self::Nobody => *self = Self::One(user.clone()),
            Self::One(one) if one != user => *self = Self::Several,
            Self::One(_) | Self::Several => {}
        }
    }
}

impl Rights {
    /// What to note about a list: `me` is the user of the requests, if known.
    pub(super) fn note(
        &mut self,
        users: &Users,
        me: Option<&str>,
        patience: Duration,
    ) -> Option<String> {
        let lists = match users {
            Users::One(user) if me.is_none_or(|me| me == user) => {
                format!("lists only queries of {user}; if others run queries there, {user}")
            }
            Users::One(_) | Users::Several => {
                // It sees queries of others.
                self.noted = true;
                return None;
            }
            Users::Nobody => {
                self.empty.go_on();
                if !self.empty.has_lasted(patience) {
                    return None;
                }
                let me = me.unwrap_or("the user of the token");
                format!("lists no queries; if any run there, {me}")
            }
        };
        match std::mem::replace(&mut self.noted, true) {
            true => None,
            false => Some(format!("{lists} has no right to view them")),
        }
    }
}
