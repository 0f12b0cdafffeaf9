//! Progress bars on a terminal.

use indicatif::{ProgressBar, ProgressStyle};

pub(super) fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = "{msg:>7} {wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template);
    ProgressBar::new(length)
        .with_message(what)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

pub(crate) fn spinner(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>7} {human_pos}, {per_sec}");
    ProgressBar::no_length()
        .with_message(what)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
