//! Appearance: text truncated to a width, shapes of statuses, colours.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

/// Colours only repeat what words say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Theme {
    pub(super) is_coloured: bool,
}

impl Theme {
    /// No colours if `NO_COLOR` is set and not empty (no-color.org).
    pub(super) fn of_environment() -> Self {
        let no_color = std::env::var_os("NO_COLOR");
        Self {
            is_coloured: no_color.is_none_or(|value| value.is_empty()),
        }
    }

    fn coloured(self, color: Color) -> Style {
        match self.is_coloured {
            true => Style::new().fg(color),
            false => Style::new(),
        }
    }

    pub(super) fn warning(self) -> Style {
        self.coloured(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    pub(super) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(super) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    pub(super) fn bar(self) -> Style {
        self.coloured(Color::Cyan)
    }

    pub(super) fn status(self, status: &str) -> Style {
        match status {
            "Running" => self.coloured(Color::Cyan),
            "Succeed" => self.coloured(Color::Green),
            "Failed" | "Timeout" => self.coloured(Color::Red),
            "Cancelled" | "Unknown" => self.coloured(Color::Yellow),
            _ => Style::new(),
        }
    }
}

/// The shape shown before a status.
pub(super) fn shape(status: &str) -> char {
    match status {
        "Inited" => '○',
        "WaitForRetry" => '↻',
        "Scheduled" => '◌',
        "Running" => '►',
        "Succeed" => '✓',
        "Failed" => '✗',
        "Cancelled" => '■',
        "Timeout" => '▲',
        _ => '?',
    }
}

/// The display width of a text, in columns.
pub(super) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Truncates the text to a width, with `…` at the end. Wide characters are not split, and combining marks stay with
/// their letters.
pub(super) fn fit(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let (mut fitting, mut used) = (String::new(), 0);
    for grapheme in Span::raw(text).styled_graphemes(Style::default()) {
        used += width(grapheme.symbol);
        // Leaves one column for the ellipsis.
        if used >= columns {
            break;
        }
        fitting.push_str(grapheme.symbol);
    }
    if columns > 0 {
        fitting.push('…');
    }
    fitting
}

/// A bar of this width for a share from 0 to 1.
pub(super) fn bar(share: f64, columns: usize) -> String {
    const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    // The cast maps NaN to 0.
    let eighths = (share.clamp(0.0, 1.0) * 8.0 * columns as f64).floor() as usize;
    let mut bar = "█".repeat(eighths / 8);
    if let Some(part) = (eighths % 8).checked_sub(1) {
        bar.push(EIGHTHS[part]);
    }
    bar.push_str(&"·".repeat(columns.saturating_sub(width(&bar))));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_by_the_columns_it_takes() {
        for (text, columns, cut) in [
            ("exec-1", 6, "exec-1"),
            ("exec-12", 6, "exec-…"),
            ("日本任务", 8, "日本任务"),
            ("日本任务", 7, "日本任…"),
            ("日本任务", 6, "日本…"),
            ("日本", 1, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
            ("a", 0, ""),
        ] {
            let fitting = fit(text, columns);
            assert_eq!(fitting, cut, "{text} in {columns}");
            assert!(width(&fitting) <= columns);
        }
    }

    #[test]
    fn bars_of_anything() {
        assert_eq!(bar(0.0, 4), "····");
        assert_eq!(bar(0.5, 4), "██··");
        assert_eq!(bar(1.0, 4), "████");
        assert_eq!(bar(0.29, 4), "█▏··");
        assert_eq!(bar(f64::NAN, 2), "··");
        assert_eq!(bar(7.0, 2), "██");
    }
}
