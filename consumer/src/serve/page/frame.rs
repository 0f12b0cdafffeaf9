//! The frame of every view: the bar at the top, and the time shown.

use jiff::Timestamp;

use super::assets;
use super::format::moment;
use super::links::{ENGINES, JOBS, Query, TASKS, USAGE};
use super::visitor::Visitor;

/// The parts that all views share.
pub(super) struct Frame {
    pub(super) title: String,
    /// `tasks`, `task`, `jobs`, `engines`, `usage`, `retry` (a temporary error) or `error`. Scripts depend on it.
    pub(super) view: &'static str,
    /// Without its query.
    pub(super) path: String,
    /// Other parameters of the address, for the form that changes the time.
    pub(super) kept: Vec<(String, String)>,
    pub(super) now: Timestamp,
    /// The past time shown, as in the address.
    pub(super) at: Option<Timestamp>,
    /// The watermark of the view, from which scripts follow the changes.
    pub(super) since: Option<String>,
    /// Interval in seconds at which scripts reload the view; `None`: they do not, or follow the changes.
    pub(super) every: Option<u32>,
    /// The view shows only the present.
    pub(super) is_only_now: bool,
    /// A past time that links to other views keep.
    pub(super) kept_time: Option<Timestamp>,
    pub(super) visitor: Visitor,
    pub(super) assets: &'static str,
    /// The same view at the present.
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
    /// The frame of the view at an address.
    pub(super) fn of(
        view: &'static str,
        title: String,
        path: &str,
        query: &Query,
        at: Option<Timestamp>,
    ) -> Self {
        // A cursor is valid only for its own time.
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
            visitor: Visitor::default(),
            assets: &assets::FOLDER,
            tasks_href: tasks,
            views,
        }
    }

    /// Marks a view that shows only the present; its links keep the past time of the other views.
    pub(super) fn only_now(mut self, kept_time: Option<Timestamp>) -> Self {
        self.is_only_now = true;
        self.kept_time = kept_time;
        self
    }

    /// Sets the interval at which the view is reloaded.
    pub(super) fn every(mut self, seconds: u32) -> Self {
        self.every = Some(seconds);
        self
    }

    pub(super) fn kept_text(&self) -> String {
        self.kept_time.map(moment).unwrap_or_default()
    }

    /// The time that ages are relative to: the past time, if one is shown.
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

    /// In the format of a datetime-local input.
    pub(super) fn at_input(&self) -> String {
        self.present().strftime("%Y-%m-%dT%H:%M:%S").to_string()
    }

    pub(super) fn second_of_day(&self) -> i64 {
        self.present().as_second().rem_euclid(86_400)
    }
}
