//! Which changes a client receives.

use crate::query::{Change, Ownership, PreviousStatus};

/// The status of a task whose engine disappeared: it has not ended, and does not run.
const UNKNOWN: &str = "Unknown";

/// The tasks that a client shows: those that satisfy every given condition.
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

/// What a client receives of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visibility {
    /// The task.
    Shown,
    /// Only its id: the client may show the task, which no longer matches.
    Left,
    Hidden,
}

impl Scope {
    pub(super) fn sees(&self, change: &Change) -> Visibility {
        let item = &change.item;
        let prefix = self.exec_id_prefix.as_ref();
        if !prefix.is_none_or(|prefix| item.exec_id.starts_with(prefix)) {
            return Visibility::Hidden;
        }
        let ownership = item.ownership();
        let is_running = !item.is_final && item.status != UNKNOWN;
        let has = self.is_of(ownership) && self.shows(&item.status, is_running);
        let previous_ownership = change.previous_ownership.as_ref().map(Ownership::as_ref);
        let had = self.is_of(previous_ownership.unwrap_or(ownership))
            && match &change.previous_status {
                PreviousStatus::NoTask => false,
                PreviousStatus::Known(status) => self.shows(status, status != UNKNOWN),
                PreviousStatus::Unknown => true,
            };
        match (has, had) {
            (true, _) => Visibility::Shown,
            (false, true) => Visibility::Left,
            (false, false) => Visibility::Hidden,
        }
    }

    /// Matches the columns that say to whom a task belongs.
    fn is_of(&self, ownership: Ownership<&str>) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|w| w == found);
        is(&self.user, ownership.engine_user)
            && is(&self.engine_type, ownership.engine_type)
            && is(&self.engine_instance, ownership.engine_instance)
            && is(&self.job_id, ownership.job_id)
    }

    /// Matches the status.
    fn shows(&self, status: &str, is_running: bool) -> bool {
        (self.status.is_empty() || self.status.iter().any(|one| one == status))
            && (!self.running || is_running)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::moved;
    use super::*;

    fn sees(scope: Scope, from: Option<&str>, to: &str) -> Visibility {
        scope.sees(&moved(from, to))
    }

    #[test]
    fn another_users_task_is_hidden_even_when_it_ends() {
        let of = |user: &str| Scope {
            user: Some(user.to_owned()),
            running: true,
            ..Scope::default()
        };
        assert_eq!(sees(of("ada"), None, "Running"), Visibility::Shown);
        assert_eq!(
            sees(of("ada"), Some("Running"), "Succeed"),
            Visibility::Left
        );
        assert_eq!(sees(of("bob"), None, "Running"), Visibility::Hidden);
        assert_eq!(
            sees(of("bob"), Some("Running"), "Succeed"),
            Visibility::Hidden
        );
    }

    #[test]
    fn a_task_that_another_engine_took_over_leaves_the_filters_of_the_first() {
        let mut change = (*moved(Some("Running"), "Running")).clone();
        let now = change.item.ownership().map(str::to_owned);
        change.previous_ownership = Some(Ownership {
            engine_instance: "before:1".to_owned(),
            engine_user: "bob".to_owned(),
            ..now.clone()
        });
        let on = |instance: &str| Scope {
            engine_instance: Some(instance.to_owned()),
            ..Scope::default()
        };
        let of = |user: &str| Scope {
            user: Some(user.to_owned()),
            ..Scope::default()
        };
        assert_eq!(on("before:1").sees(&change), Visibility::Left);
        assert_eq!(on(&now.engine_instance).sees(&change), Visibility::Shown);
        assert_eq!(on("other:1").sees(&change), Visibility::Hidden);
        assert_eq!(of("bob").sees(&change), Visibility::Left);
        assert_eq!(of(&now.engine_user).sees(&change), Visibility::Shown);
        assert_eq!(
            of("carol").sees(&change),
            Visibility::Hidden,
            "it never was"
        );
    }

    #[test]
    fn a_task_that_leaves_a_filter_is_reported_as_left() {
        let running = || Scope {
            running: true,
            ..Scope::default()
        };
        assert_eq!(
            sees(running(), Some("Scheduled"), "Running"),
            Visibility::Shown
        );
        assert_eq!(
            sees(running(), Some("Running"), "Succeed"),
            Visibility::Left
        );
        assert_eq!(
            sees(running(), Some("Running"), "Unknown"),
            Visibility::Left
        );
        assert_eq!(
            sees(running(), None, "Succeed"),
            Visibility::Left,
            "who knows"
        );
        assert_eq!(
            sees(running(), Some("Unknown"), "Succeed"),
            Visibility::Hidden
        );
        let failed = || Scope {
            status: vec!["Failed".to_owned()],
            ..Scope::default()
        };
        assert_eq!(
            sees(failed(), Some("Running"), "Running"),
            Visibility::Hidden
        );
        assert_eq!(sees(failed(), Some("Running"), "Failed"), Visibility::Shown);
        assert_eq!(
            sees(failed(), None, "Succeed"),
            Visibility::Left,
            "who knows"
        );
    }
}
