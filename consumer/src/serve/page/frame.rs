//! What every view has around it: the bar, and the time it shows.

use jiff::Timestamp;

use super::assets;
use super::format::moment;
use super::links::{ENGINES, JOBS, Query, TASKS, USAGE};

/// The parts of a page that all views have.
pub(super) struct Frame {
    pub(super) title: String,
    /// `tasks`, `task`, `jobs`, `engines`, `usage`, `retry` (an error that may pass) or `error`: what the modules do depends
    /// on it.
    pub(super) view: &'static str,
    /// Without its query.
    pub(super) path: String,
    /// What the address holds beside the time, for a form that changes the time.
    pub(super) kept: Vec<(String, String)>,
    pub(super) now: Timestamp,
    /// The past time that is shown, as it is in the address.
    pub(super) at: Option<Timestamp>,
    /// Offsets that the view was read at: changes are asked for since then.
    pub(super) since: Option<String>,
    /// The view is read again as often, in seconds; `None`: it is not, or follows the stream of changes.
    pub(super) every: Option<u32>,
    /// The view has no past.
    pub(super) is_only_now: bool,
    /// The past time that its links to other views keep.
    pub(super) kept_time: Option<Timestamp>,
    pub(super) assets: &'static str,
    /// The same view now.
    pub(super) live_href: String,
    pub(super) tasks_href: String,
    pub(super) views: [ViewLink; 4],
}

/// A link to a view, at the same time.
pub(super) struct ViewLink {
    pub(super) word: &'static str,
    pub(super) view: &'static str,
    pub(super) href: String,
}

impl Frame {
    /// The frame of a view at an address.
    pub(super) fn of(
        view: &'static str,
        title: String,
        path: &str,
        query: &Query,
        at: Option<Timestamp>,
    ) -> Self {
        // A cursor belongs to the time it was made for.
        let live = query.clone().without(&["at", "cursor"]);
        let time = query.clone().only(&["at"]);
        let running = time.clone().and("running", "true");
        let tasks = match view {
            "tasks" => time.at(TASKS),
            _ => running.clone().and("order", "started").at(TASKS),
        };
        let link = |word, view, href| ViewLink { word, view, href };
        let views = [
            link("Tasks", "tasks", tasks.clone()),
            link("Jobs", "jobs", running.at(JOBS)),
            link("Engines", "engines", time.at(ENGINES)),
            link("Usage", "usage", time.at(USAGE)),
        ];
        Self {
            title: match at {
                Some(at) => format!("{title}, as of {} · taskrunning", moment(at)),
                None => format!("{title} · taskrunning"),
            },
            view,
            path: path.to_owned(),
            live_href: live.at(path),
            kept: live.0,
            now: Timestamp::now(),
            at,
            since: None,
            every: None,
            is_only_now: false,
            kept_time: None,
            assets: &assets::FOLDER,
            tasks_href: tasks,
            views,
        }
    }

    /// This, of a view that shows only now: its links keep the past time that others show.
    pub(super) fn only_now(mut self, kept_time: Option<Timestamp>) -> Self {
        self.is_only_now = true;
        self.kept_time = kept_time;
        self
    }

    /// This, of a view that is read again as often.
    pub(super) fn every(mut self, seconds: u32) -> Self {
        self.every = Some(seconds);
        self
    }

    pub(super) fn kept_text(&self) -> String {
        self.kept_time.map(moment).unwrap_or_default()
    }

    /// What counts as now: the past time, if one is shown.
    pub(super) fn present(&self) -> Timestamp {
        self.at.unwrap_or(self.now)
    }

    pub(super) fn now_text(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }

    pub(super) fn now_short(&self) -> String {
        moment(self.now)
    }

    pub(super) fn at_text(&self) -> String {
        moment(self.present())
    }

    /// As an input of type datetime-local has it.
    pub(super) fn at_input(&self) -> String {
        self.present().strftime("%Y-%m-%dT%H:%M:%S").to_string()
    }

    pub(super) fn second_of_day(&self) -> i64 {
        self.present().as_second().rem_euclid(86_400)
    }
}
