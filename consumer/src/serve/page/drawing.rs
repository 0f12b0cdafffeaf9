//! Plots as SVG.
//!
//! The colours are placeholders, which `static/page.css` replaces with its tokens, so one drawing serves light and
//! dark. The SVG contains no text from reports. The axis starts at the first point, which makes it independent of time
//! zones.

use jiff::{SignedDuration, Timestamp};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::status::Status;

pub(super) const LINE: RGBColor = RGBColor(1, 1, 1);
pub(super) const QUIET: RGBColor = RGBColor(2, 2, 2);
const PROGRESS: RGBColor = RGBColor(3, 3, 3);
const MEMORY: RGBColor = RGBColor(4, 4, 4);
const CORES: RGBColor = RGBColor(5, 5, 5);
/// Colours of stacked parts; the last one is for all others.
pub(super) const SERIES: &[RGBColor] = &[
    PROGRESS,
    MEMORY,
    CORES,
    RGBColor(6, 6, 6),
    RGBColor(7, 7, 7),
    QUIET,
];

pub(super) const WIDE: Size = Size {
    width: 1248,
    panel: 92,
    ticks: 10,
    text: 14.0,
};
pub(super) const NARROW: Size = Size {
    width: 366,
    panel: 88,
    ticks: 4,
    text: 15.0,
};
const SPARKLINE: (u32, u32) = (72, 18);
/// Margins left of the plots, for labels, and right of them.
pub(super) const LEFT: u32 = 56;
pub(super) const RIGHT: u32 = 12;
/// Margin above each plot, for its name.
pub(super) const ABOVE: u32 = 28;
/// Margin below the last plot, for the axis.
pub(super) const BELOW: u32 = 22;
/// Minimum distance between the labels of status changes, in pixels.
const WORD_ROOM: i32 = 84;
/// Width reserved for the name of a plot.
const NAME_ROOM: i32 = 96;

/// Candidate distances between labels of the axis, in seconds; the smallest that fits is used.
const STEPS: &[i64] = &[
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200,
    86_400, 172_800, 604_800, 2_592_000, 31_536_000,
];

/// The size of a drawing.
pub(super) struct Size {
    pub(super) width: u32,
    pub(super) panel: u32,
    pub(super) ticks: i64,
    text: f64,
}

/// The values of a plot, each sorted by time.
#[derive(Clone, Debug, Default)]
pub(super) struct PlotData {
    /// 0 to 1.
    pub(super) progress: Vec<(Timestamp, f64)>,
    pub(super) memory_bytes: Vec<(Timestamp, f64)>,
    pub(super) cores: Vec<(Timestamp, f64)>,
    /// The first status, and each change.
    pub(super) marks: Vec<(Timestamp, Status)>,
}

impl PlotData {
    /// All times that have a value.
    pub(super) fn times(&self) -> Vec<Timestamp> {
        let values = [&self.progress, &self.memory_bytes, &self.cores];
        let times = values.into_iter().flatten().map(|(time, _)| *time);
        let mut times: Vec<Timestamp> = times
            .chain(self.marks.iter().map(|(time, _)| *time))
            .collect();
        times.sort_unstable();
        times.dedup();
        times
    }
}

/// SVG, and the x coordinates between which its time axis runs.
pub(super) struct Drawing {
    pub(super) svg: String,
    pub(super) x0: u32,
    pub(super) x1: u32,
}

/// A drawing error.
pub(super) type Failed = DrawingAreaErrorKind<std::io::Error>;

/// A line without an axis.
pub(super) fn sparkline(values: &[(Timestamp, f64)]) -> Option<String> {
    let ([(first, _), .., (last, _)], (width, height)) = (values, SPARKLINE) else {
        return None;
    };
    let least = values
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::INFINITY, f64::min);
    let most = values
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::NEG_INFINITY, f64::max);
    let span = last.duration_since(*first).as_secs_f64();
    let room = f64::from(height) - 3.0;
    let point = |&(time, value): &(Timestamp, f64)| {
        let x = time.duration_since(*first).as_secs_f64() / span * f64::from(width);
        let share = if most > least {
            value / (most - least) - least / (most - least)
        } else {
            0.5
        };
        (
            x.round() as i32,
            (1.0 + room * (1.0 - share)).round() as i32,
        )
    };
    let mut line: Vec<(i32, i32)> = values.iter().map(point).collect();
    line.dedup();
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SPARKLINE).into_drawing_area();
        root.draw(&PathElement::new(line, QUIET)).ok()?;
        root.present().ok()?;
    }
    Some(hidden(&svg))
}

/// A drawing hidden from screen readers.
pub(super) fn hidden(svg: &str) -> String {
    svg.replacen("<svg ", "<svg aria-hidden=\"true\" focusable=\"false\" ", 1)
}

/// A plot of one value.
struct Panel<'a> {
    name: &'static str,
    color: RGBColor,
    /// Whether a value holds until the next point.
    is_stepped: bool,
    /// The divisor of values.
    unit: f64,
    most: f64,
    values: &'a [(Timestamp, f64)],
}

impl<'a> Panel<'a> {
    fn of(name: &'static str, color: RGBColor, unit: f64, values: &'a [(Timestamp, f64)]) -> Self {
        let most = values
            .iter()
            .map(|(_, value)| value / unit)
            .fold(0.0, f64::max);
        Self {
            name,
            color,
            is_stepped: true,
            unit,
            most: round_up(most),
            values,
        }
    }
}

/// Draws all values, one panel above the other.
pub(super) fn draw(
    plotted: &PlotData,
    span: (Timestamp, Timestamp),
    size: &Size,
) -> Result<Drawing, Failed> {
    let progress = Panel {
        is_stepped: false,
        most: 100.0,
        ..Panel::of("Progress, %", PROGRESS, 0.01, &plotted.progress)
    };
    let memory = Panel::of(
        "Memory, GiB",
        MEMORY,
        f64::from(1 << 30),
        &plotted.memory_bytes,
    );
    let cores = Panel::of("Cores", CORES, 1.0, &plotted.cores);
    let panels = [progress, memory, cores];
    let panels: Vec<_> = panels
        .iter()
        .filter(|panel| !panel.values.is_empty())
        .collect();
    let height = (size.panel + ABOVE) * panels.len() as u32 + BELOW;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (size.width, height)).into_drawing_area();
        for (i, panel) in panels.iter().enumerate() {
            let top = (size.panel + ABOVE) * i as u32;
            let last = i + 1 == panels.len();
            let area = root.clone().shrink(
                (0, top),
                (
                    size.width,
                    size.panel + ABOVE + if last { BELOW } else { 0 },
                ),
            );
            draw_panel(&area, panel, span, size)?;
            if last {
                draw_axis(&area, span, size)?;
            }
            draw_marks(&area, &plotted.marks, span, size, i == 0)?;
        }
        root.present()?;
    }
    Ok(Drawing {
        svg: hidden(&svg),
        x0: LEFT,
        x1: size.width - RIGHT,
    })
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(super) fn text(size: &Size, h: HPos, v: VPos) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", size.text).into_font());
    style.color(&QUIET).pos(Pos::new(h, v))
}

/// The y coordinates at which a panel begins and ends.
pub(super) fn rows(size: &Size) -> (i32, i32) {
    (ABOVE as i32, (ABOVE + size.panel) as i32 - 4)
}

/// The x coordinate of a time.
fn column(time: Timestamp, span: (Timestamp, Timestamp), size: &Size) -> i32 {
    let whole = span
        .1
        .duration_since(span.0)
        .as_secs_f64()
        .max(f64::MIN_POSITIVE);
    let share = time.duration_since(span.0).as_secs_f64() / whole;
    let (x0, x1) = (f64::from(LEFT), f64::from(size.width - RIGHT));
    (x0 + (x1 - x0) * share).round() as i32
}

fn draw_panel(
    area: &Area<'_>,
    panel: &Panel<'_>,
    span: (Timestamp, Timestamp),
    size: &Size,
) -> Result<(), Failed> {
    let (top, bottom) = rows(size);
    let (x0, x1) = (LEFT as i32, (size.width - RIGHT) as i32);
    let y = |value: f64| {
        bottom - (f64::from(bottom - top) * (value / panel.most).clamp(0.0, 1.0)).round() as i32
    };
    area.draw(&Text::new(
        panel.name,
        (0, 3),
        text(size, HPos::Left, VPos::Top),
    ))?;
    for share in [0.0, 0.5, 1.0] {
        let value = panel.most * share;
        area.draw(&PathElement::new(
            vec![(x0, y(value)), (x1, y(value))],
            LINE,
        ))?;
        area.draw(&Text::new(
            format!("{value}"),
            (x0 - 6, y(value)),
            text(size, HPos::Right, VPos::Center),
        ))?;
    }
    let mut line: Vec<(i32, i32)> = Vec::new();
    for &(time, value) in panel.values {
        let next = (column(time, span, size), y(value / panel.unit));
        if let Some(&(_, before)) = line.last().filter(|_| panel.is_stepped) {
            line.push((next.0, before));
        }
        line.push(next);
    }
    line.dedup();
    let (Some(&(start, _)), Some(&(end, _))) = (line.first(), line.last()) else {
        return Ok(());
    };
    let below = [(end, bottom), (start, bottom)];
    let below: Vec<_> = line.iter().copied().chain(below).collect();
    area.draw(&Polygon::new(below, panel.color.mix(0.14)))?;
    match line.as_slice() {
        [only] => area.draw(&Circle::new(*only, 2, panel.color.filled())),
        _ => area.draw(&PathElement::new(line, panel.color.stroke_width(2))),
    }
}

fn draw_axis(area: &Area<'_>, span: (Timestamp, Timestamp), size: &Size) -> Result<(), Failed> {
    let (_, bottom) = rows(size);
    let whole = span.1.duration_since(span.0).as_secs();
    let step = STEPS
        .iter()
        .copied()
        .find(|step| whole <= step * size.ticks);
    let last = (size.width - RIGHT) as i32;
    let mut second = 0_i64;
    while second <= whole {
        let Ok(time) = span.0.checked_add(SignedDuration::from_secs(second)) else {
            break;
        };
        let x = column(time, span, size);
        let h = match x {
            x if x == LEFT as i32 => HPos::Left,
            x if x > last - 24 => HPos::Right,
            _ => HPos::Center,
        };
        area.draw(&PathElement::new(vec![(x, bottom), (x, bottom + 4)], QUIET))?;
        area.draw(&Text::new(
            axis(second),
            (x, bottom + 8),
            text(size, h, VPos::Top),
        ))?;
        let Some(next) = step.and_then(|step| second.checked_add(step)) else {
            break;
        };
        second = next;
    }
    Ok(())
}

/// A line at each status change, with the status in the first panel if there is room.
fn draw_marks(
    area: &Area<'_>,
    marks: &[(Timestamp, Status)],
    span: (Timestamp, Timestamp),
    size: &Size,
    has_words: bool,
) -> Result<(), Failed> {
    let (top, bottom) = rows(size);
    let end = (size.width - RIGHT) as i32;
    for (i, &(time, status)) in marks.iter().enumerate() {
        let x = column(time, span, size);
        area.draw(&PathElement::new(
            vec![(x, top - 6), (x, bottom)],
            QUIET.mix(0.6),
        ))?;
        let next = marks
            .get(i + 1)
            .map_or(end, |&(next, _)| column(next, span, size));
        // At the right edge, the label is on the left.
        let is_at_end = i + 1 == marks.len() && x + WORD_ROOM > end;
        let (h, at) = if is_at_end {
            (HPos::Right, x - 4)
        } else {
            (HPos::Left, x.max(NAME_ROOM) + 4)
        };
        if has_words && (is_at_end || at + WORD_ROOM <= next) {
            area.draw(&Text::new(status.word, (at, 3), text(size, h, VPos::Top)))?;
        }
    }
    Ok(())
}

/// Rounds up to 1, 2, 4, 6, 8 or 10 times a power of ten.
pub(super) fn round_up(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let unit = 10_f64.powf(value.log10().floor());
    let fits = [1.0, 2.0, 4.0, 6.0, 8.0]
        .into_iter()
        .find(|n| n * unit >= value);
    fits.unwrap_or(10.0) * unit
}

fn axis(seconds: i64) -> String {
    match seconds {
        0 => "0".to_owned(),
        s if s % 86_400 == 0 => format!("{} d", s / 86_400),
        s if s >= 86_400 => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
        s if s % 3_600 == 0 => format!("{} h", s / 3_600),
        s if s >= 3_600 => format!("{} h {:02} m", s / 3_600, s % 3_600 / 60),
        s if s % 60 == 0 => format!("{} m", s / 60),
        s if s >= 60 => format!("{} m {:02} s", s / 60, s % 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_round_numbers() {
        for (value, end) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (3.0, 4.0),
            (12.0, 20.0),
            (61.0, 80.0),
            (95.0, 100.0),
            (0.3, 0.4),
        ] {
            assert!(
                (round_up(value) - end).abs() < 1e-9,
                "{value}: {}",
                round_up(value)
            );
        }
        assert_eq!(
            (axis(90), axis(3_600), axis(90_000)),
            ("1 m 30 s".into(), "1 h".into(), "1 d 1 h".into())
        );
    }
}
