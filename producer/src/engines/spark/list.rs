//! Reads an address's list of applications as it arrives, whatever its length.

use super::answers::{Application as Answer, Attempt};
use super::application::Key;
use super::follower::Follower;
use super::mapping::State;
use super::options::APPLICATIONS_MAX;
use super::standings::Listed;
use crate::polling::rest::{Fault, Rest};

/// The content of a list, sorted by what to do about it.
pub(super) struct List {
    /// Whether it has any chosen application.
    pub(super) any: bool,
    /// Those that are followed, here or at another address.
    pub(super) followed: Vec<(Key, State)>,
    pub(super) running: Newcomers,
    pub(super) ended: Newcomers,
    /// Given up before. They take no room from others, because Spark may still say nothing of them.
    pub(super) returning: Newcomers,
}

/// Applications to follow from now on, as far as there is room.
pub(super) struct Newcomers {
    pub(super) taken: Vec<Newcomer>,
    room: usize,
    pub(super) beyond: usize,
}

pub(super) struct Newcomer {
    pub(super) key: Key,
    pub(super) user: String,
    pub(super) state: State,
}

impl Newcomers {
    fn new(room: usize) -> Self {
        Self {
            taken: Vec::new(),
            room,
            beyond: 0,
        }
    }

    fn push(&mut self, key: Key, attempt: &Attempt, state: State) {
        if self.taken.len() < self.room {
            let user = attempt.spark_user.clone();
            self.taken.push(Newcomer { key, user, state });
        } else {
            self.beyond += 1;
        }
    }
}

impl List {
    /// Reads the list of an address that already follows `running` running applications and `others`.
    ///
    /// # Errors
    /// If the list cannot be read to its end: an application that is missing so far may still be in it.
    pub(super) async fn read(
        follower: &Follower,
        rest: &Rest,
        running: usize,
        others: usize,
    ) -> Result<Self, Fault> {
        let mut list = Self {
            any: false,
            followed: Vec::new(),
            running: Newcomers::new(APPLICATIONS_MAX.saturating_sub(running)),
            ended: Newcomers::new(APPLICATIONS_MAX.saturating_sub(others)),
            returning: Newcomers::new(APPLICATIONS_MAX),
        };
        let chosen = &follower.options.app;
        let running_only = follower.options.running_only;
        let query = running_only.then(|| ("status", "running".to_owned()));
        rest.each(query.as_slice(), |answer: Answer| {
            let is_chosen = chosen.is_empty() || chosen.contains(&answer.id);
            if !is_chosen || answer.id.trim().is_empty() {
                return;
            }
            for (newer, attempt) in answer.attempts.iter().enumerate() {
                list.any = true;
                let key = Key::new(&answer.id, attempt);
                let state = match attempt.completed {
                    true => State::Completed,
                    // Spark begins an attempt when the one before has ended; the event log of
                    // one that crashed stays as it was.
                    false if newer > 0 => State::Replaced,
                    false => State::Alive,
                };
                let standing = follower.standings().listed(&key);
                match standing {
                    Listed::Ended => {}
                    Listed::Followed => list.followed.push((key, state)),
                    Listed::GivenUp => list.returning.push(key, attempt, state),
                    Listed::New if state == State::Alive => list.running.push(key, attempt, state),
                    Listed::New if running_only => {}
                    Listed::New => list.ended.push(key, attempt, state),
                }
            }
        })
        .await?;
        follower.standings().forget();
        Ok(list)
    }
}
