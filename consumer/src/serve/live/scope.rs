//! What of the changes a client gets.

use crate::query::{Before, Change, ChangedTask};

/// The status of a task whose engine went away: it has not ended, and does not run.
const UNKNOWN: &str = "Unknown";

/// The tasks that a client shows: those that satisfy every condition given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) user: Option<String>,
    pub(crate) engine_type: Option<String>,
    pub(crate) engine_instance: Option<String>,
    pub(crate) job_id: Option<String>,
    pub(crate) exec_id_prefix: Option<String>,
    /// One of these; empty: any.
    pub(crate) status: Vec<String>,
    /// Neither a final status nor `Unknown`.
    pub(crate) running: bool,
}

/// What a client gets of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The task.
    Shown,
    /// That it may have shown the task, and shows it no longer.
    Left,
    Not,
}

impl Scope {
    pub(super) fn sees(&self, change: &Change) -> Seen {
        let item = &change.item;
        if !self.may_show(item) {
            return Seen::Not;
        }
        let is_running = !item.is_final && item.status != UNKNOWN;
        let had = match &change.before {
            Before::New => false,
            Before::Was(status) => self.shows(status, status != UNKNOWN),
            Before::Unknown => true,
        };
        match (self.shows(&item.status, is_running), had) {
            (true, _) => Seen::Shown,
            (false, true) => Seen::Left,
            (false, false) => Seen::Not,
        }
    }

    /// By what a task keeps for life.
    fn may_show(&self, item: &ChangedTask) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        let starts = |prefix: &String| item.exec_id.starts_with(prefix);
        is(&self.user, &item.engine_user)
            && is(&self.engine_type, &item.engine_type)
            && is(&self.engine_instance, &item.engine_instance)
            && is(&self.job_id, &item.job_id)
            && self.exec_id_prefix.as_ref().is_none_or(starts)
    }

    /// By what reports change.
    fn shows(&self, status: &str, is_running: bool) -> bool {
        (self.status.is_empty() || self.status.iter().any(|one| one == status))
            && (!self.running || is_running)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::moved;
    use super::*;

    fn sees(scope: Scope, from: Option<&str>, to: &str) -> Seen {
        scope.sees(&moved(from, to))
    }

    #[test]
    fn of_another_users_task_not_even_its_end_is_told() {
        let of = |user: &str| Scope {
            user: Some(user.to_owned()),
            running: true,
            ..Scope::default()
        };
        assert_eq!(sees(of("ada"), None, "Running"), Seen::Shown);
        assert_eq!(sees(of("ada"), Some("Running"), "Succeed"), Seen::Left);
        assert_eq!(sees(of("bob"), None, "Running"), Seen::Not);
        assert_eq!(sees(of("bob"), Some("Running"), "Succeed"), Seen::Not);
    }

    #[test]
    fn a_task_that_leaves_a_filter_is_told_to_have_left() {
        let running = || Scope {
            running: true,
            ..Scope::default()
        };
        assert_eq!(sees(running(), Some("Scheduled"), "Running"), Seen::Shown);
        assert_eq!(sees(running(), Some("Running"), "Succeed"), Seen::Left);
        assert_eq!(sees(running(), Some("Running"), "Unknown"), Seen::Left);
        assert_eq!(sees(running(), None, "Succeed"), Seen::Left, "who knows");
        assert_eq!(sees(running(), Some("Unknown"), "Succeed"), Seen::Not);
        let failed = || Scope {
            status: vec!["Failed".to_owned()],
            ..Scope::default()
        };
        assert_eq!(sees(failed(), Some("Running"), "Running"), Seen::Not);
        assert_eq!(sees(failed(), Some("Running"), "Failed"), Seen::Shown);
        assert_eq!(sees(failed(), None, "Succeed"), Seen::Left, "who knows");
    }
}
