//! A status on the page: a shape, a word and a colour.

/// How a status is displayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) word: &'static str,
    /// The symbol in `templates/page/base.html`.
    pub(super) shape: &'static str,
    /// The class in `static/page.css`.
    pub(super) class: &'static str,
}

const fn status(word: &'static str, class: &'static str) -> Status {
    Status {
        word,
        shape: word,
        class,
    }
}

const ALL: &[Status] = &[
    status("Inited", "waiting"),
    status("Scheduled", "waiting"),
    status("WaitForRetry", "waiting"),
    status("Running", "running"),
    status("Succeed", "good"),
    status("Failed", "bad"),
    status("Cancelled", "ended"),
    status("Timeout", "bad"),
    status("Unknown", "unknown"),
];

impl Status {
    /// The tables contain only the schema's statuses.
    pub(super) fn of(word: &str) -> Self {
        let known = ALL.iter().find(|status| status.word == word);
        *known.unwrap_or(&status("Unknown", "unknown"))
    }

    /// Whether the task will not change again.
    pub(super) fn is_over(self) -> bool {
        !matches!(self.class, "waiting" | "running")
    }

    /// All statuses, in the order of a task's life.
    pub(super) fn words() -> Vec<&'static str> {
        ALL.iter().map(|status| status.word).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_the_contract_is_shown_as_itself() {
        use schemas::TaskStatus::{
            Cancelled, Failed, Inited, Running, Scheduled, Succeed, Timeout, Unknown, WaitForRetry,
        };
        let contract = [
            Inited,
            WaitForRetry,
            Scheduled,
            Running,
            Succeed,
            Failed,
            Cancelled,
            Timeout,
            Unknown,
        ];
        for status in contract {
            assert_eq!(Status::of(&status.to_string()).word, status.to_string());
        }
        assert_eq!(Status::words().len(), contract.len());
        let base = include_str!("../../../templates/page/base.html");
        let css = include_str!("static/page.css");
        let rows = include_str!("static/rows.js");
        for status in ALL {
            assert!(base.contains(&format!("id=\"s-{}\"", status.shape)));
            assert!(css.contains(&format!(".status.{}", status.class)));
            assert!(rows.contains(&format!("{}: \"{}\"", status.word, status.class)));
        }
    }
}
