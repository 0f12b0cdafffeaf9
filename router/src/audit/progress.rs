//! Progress of the audit.

use std::io::{IsTerminal, stderr};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use service::range::Ranges;

/// A progress bar on standard error, if that is a terminal.
pub(super) struct Progress(ProgressBar);

impl Progress {
    pub(super) fn start() -> Self {
        let bar = ProgressBar::new(0);
        if !stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template =
            "{msg} [{wide_bar}] {human_pos} of {human_len} offsets, {per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self(bar)
    }

    pub(super) fn says(&self, message: &'static str) {
        self.0.set_message(message);
    }

    /// Adds these offsets to the total.
    pub(super) fn more(&self, ranges: &Ranges) {
        let offsets = |range: &std::ops::Range<i64>| u64::try_from(range.end - range.start);
        let each = ranges.values().filter_map(|range| offsets(range).ok());
        self.0.inc_length(each.sum());
    }

    /// Counts as these ranges are read.
    pub(super) fn steps<'a>(&'a self, ranges: &Ranges) -> Steps<'a> {
        Steps {
            bar: &self.0,
            left: ranges.clone(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Ranges that are being read.
pub(super) struct Steps<'a> {
    bar: &'a ProgressBar,
    left: Ranges,
}

impl Steps<'_> {
    /// Counts a record, and the offsets without records before it.
    pub(super) fn read(&mut self, partition: i32, offset: i64) {
        if let Some(left) = self.left.get_mut(&partition) {
            let next = (offset + 1).clamp(left.start, left.end.max(left.start));
            self.bar.inc(next.abs_diff(left.start));
            left.start = next;
        }
    }

    /// Counts the rest of the ranges.
    pub(super) fn end(self) {
        for left in self.left.values().filter(|left| !left.is_empty()) {
            self.bar.inc(left.end.abs_diff(left.start));
        }
    }
}
