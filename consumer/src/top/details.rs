//! Draws a task's details: its values over time, then the scrollable text of `consumer task`.

use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Sparkline};

use super::answer::{Curve, Details};
use super::theme::{Theme, fit};
use crate::tasks::{details_text, gib};

/// Columns for a curve's name and values.
const NAMES: u16 = 25;
/// A sparkline's maximum, large enough for small values to show.
const HIGHEST: f64 = 1e6;
/// Minimum number of lines for the text.
const TEXT_MIN: u16 = 4;

/// Draws a task's details as of `now`, with `scroll` lines of the text scrolled away; clamps `scroll`. Returns the
/// number of text lines on the screen.
pub(super) fn draw(
    details: &Details,
    at: Timestamp,
    scroll: &mut usize,
    frame: &mut Frame<'_>,
    area: Rect,
    theme: Theme,
) -> usize {
    let curves = u16::try_from(details.curves.len()).unwrap_or(u16::MAX);
    // Two lines per curve, or one, or none.
    let lines = [2, 1]
        .into_iter()
        .find(|lines| curves.saturating_mul(*lines) + TEXT_MIN <= area.height);
    let lines = lines.unwrap_or_default();
    let [top, body] = Layout::vertical([
        Constraint::Length(curves.saturating_mul(lines)),
        Constraint::Min(0),
    ])
    .areas(area);
    let areas = Layout::vertical(vec![Constraint::Length(lines); details.curves.len()]).split(top);
    for (curve, area) in details.curves.iter().zip(areas.iter()) {
        self::curve(curve, *area, frame, theme);
    }
    let text = details_text(&details.task, Some(at)).unwrap_or_else(|error| format!("{error:#}"));
    let text: Vec<&str> = text.lines().collect();
    *scroll = (*scroll).min(text.len().saturating_sub(body.height.into()));
    let visible = text.iter().skip(*scroll).take(body.height.into());
    let lines = visible.map(|line| Line::raw(fit(line, body.width.into())));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), body);
    body.height.into()
}

fn curve(curve: &Curve, area: Rect, frame: &mut Frame<'_>, theme: Theme) {
    let [names, line] =
        Layout::horizontal([Constraint::Length(NAMES), Constraint::Min(0)]).areas(area);
    let shown = |value: f64| match curve.name {
        "progress" => format!("{:.2} %", value * 100.0),
        "memory" => gib(value as i64),
        _ => format!("{value}"),
    };
    let (low, high, last) = (
        curve.values().fold(f64::INFINITY, f64::min),
        curve.values().fold(f64::NEG_INFINITY, f64::max),
        curve.values().last(),
    );
    let Some(last) = last else {
        frame.render_widget(format!("{:<9}not reported", curve.name), names);
        return;
    };
    let text = [
        Line::raw(format!("{:<9}{}", curve.name, shown(last))),
        Line::styled(format!("  {} … {}", shown(low), shown(high)), theme.dim()),
    ];
    frame.render_widget(Paragraph::new(text.to_vec()), names);
    // Progress is drawn relative to 1, other values relative to their maximum.
    let whole = if curve.name == "progress" { 1.0 } else { high };
    let bars = curve.columns(line.width.into()).into_iter().map(|value| {
        // The cast maps NaN to 0.
        Some((value? / whole * HIGHEST) as u64)
    });
    let sparkline = Sparkline::default()
        .data(bars.collect::<Vec<Option<u64>>>())
        .max(HIGHEST as u64)
        .style(theme.bar());
    frame.render_widget(sparkline, line);
}

impl Curve {
    fn values(&self) -> impl Iterator<Item = f64> {
        self.points.iter().map(|(_, value)| *value)
    }

    /// The maximum of each of `columns` equal time intervals; an interval without values repeats the previous one.
    fn columns(&self, columns: usize) -> Vec<Option<f64>> {
        let mut values = vec![None::<f64>; columns];
        let (Some((first, _)), Some((last, _))) = (self.points.first(), self.points.last()) else {
            return values;
        };
        let span = (last - first).max(1) as f64;
        for (at, value) in &self.points {
            let column = ((at - first) as f64 / span * columns as f64) as usize;
            if let Some(greatest) = values.get_mut(column.min(columns.saturating_sub(1))) {
                *greatest = Some(greatest.map_or(*value, |greatest| greatest.max(*value)));
            }
        }
        let mut before = None;
        for value in &mut values {
            before = value.or(before);
            *value = before;
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_keeps_its_peaks_and_continues_between_reports() {
        let curve = |points: &[(i64, f64)]| Curve {
            name: "cores",
            points: points.to_vec(),
        };
        let some = |values: &[f64]| values.iter().copied().map(Some).collect::<Vec<_>>();
        let peak = curve(&[(0, 1.0), (10, 9.0), (11, 2.0), (30, 3.0), (40, 4.0)]);
        assert_eq!(peak.columns(4), some(&[1.0, 9.0, 9.0, 4.0]));
        assert_eq!(peak.columns(1), some(&[9.0]));
        assert_eq!(peak.columns(0), []);
        assert_eq!(curve(&[(5, 2.0)]).columns(3), some(&[2.0, 2.0, 2.0]));
        assert_eq!(curve(&[]).columns(2), [None, None]);
    }
}
