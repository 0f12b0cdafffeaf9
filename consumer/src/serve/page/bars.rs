//! Bar charts of usage, by period or by the largest users, in the colours of [`drawing`](super::drawing). The SVG
//! contains no text from reports: the legend is HTML.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};
use service::text::shown;

use super::drawing::{
    self, BELOW, Failed, LEFT, LINE, NARROW, QUIET, RIGHT, SERIES, Size, WIDE, hidden, round_up,
    rows, text,
};
use crate::query::{Usage, UsageEvery, UsageItem};

/// With more periods, only totals are drawn: stacked parts would be thinner than a line.
const STACKED: usize = 200;
/// Maximum number of bars if the whole time range is one period.
const RANKED: usize = 20;
const HOUR_SECONDS: i64 = 3_600;
const DAY_SECONDS: i64 = 24 * HOUR_SECONDS;
const GIB: f64 = (1_u64 << 30) as f64;
/// Candidate distances between labels of the axis, in hours; the smallest that fits is used.
const STEPS: &[i64] = &[1, 2, 3, 6, 12, 24, 48, 168, 336, 720, 2_160, 8_760, 87_600];

/// Name of all that have no row or part of their own.
pub(super) const OTHERS: &str = "all others";

/// The name of a key. An application may be reported without a queue.
pub(super) fn named(key: Option<&str>) -> String {
    match key {
        None => OTHERS.to_owned(),
        Some("") => "(none)".to_owned(),
        Some(key) => shown(key),
    }
}

/// The drawings for wide and narrow screens, and the legend.
pub(super) struct Bars {
    pub(super) wide: String,
    pub(super) narrow: String,
    pub(super) legend: Vec<Key>,
    pub(super) caption: String,
}

/// An entry of the legend.
pub(super) struct Key {
    pub(super) color: String,
    pub(super) name: String,
}

/// Panels of slots; each slot is a stack of parts.
struct Chart {
    /// For each panel, the parts of each slot.
    panels: [(&'static str, Vec<Vec<f64>>); 3],
    /// The labels below the slots.
    labels: Labels,
}

enum Labels {
    /// The slot's number.
    Ranks,
    /// The slot's time.
    Times { first_second: i64, period: i64 },
}

/// `None` if there is nothing to draw.
pub(super) fn bars(usage: &Usage) -> Option<Bars> {
    if usage.items.is_empty() {
        return None;
    }
    let (chart, keys) = match usage.every {
        UsageEvery::Whole => (ranked(&usage.items), Vec::new()),
        UsageEvery::Hour => over_time(usage, HOUR_SECONDS)?,
        UsageEvery::Day => over_time(usage, DAY_SECONDS)?,
    };
    let drawn = |size: &Size| {
        draw(&chart, size)
            .inspect_err(|error| tracing::error!("cannot draw the usage: {error}"))
            .ok()
    };
    let caption = match usage.every {
        UsageEvery::Whole => "The number below a bar is that of its row in the table.".to_owned(),
        UsageEvery::Hour => "One bar per hour (UTC); the table has the values.".to_owned(),
        UsageEvery::Day => "One bar per day (UTC); the table has the values.".to_owned(),
    };
    let legend = keys.into_iter().zip(SERIES).map(|(name, color)| {
        let RGBColor(r, g, b) = *color;
        Key {
            color: format!("#{r:02X}{g:02X}{b:02X}"),
            name,
        }
    });
    Some(Bars {
        wide: drawn(&WIDE)?,
        narrow: drawn(&NARROW)?,
        legend: legend.collect(),
        caption,
    })
}

fn amounts(item: &UsageItem) -> [f64; 3] {
    let hours = |seconds: f64| seconds / HOUR_SECONDS as f64;
    [
        hours(item.core_seconds),
        hours(item.memory_byte_seconds / GIB),
        hours(item.instance_seconds),
    ]
}

const NAMES: [&str; 3] = ["Core hours", "Memory, GiB hours", "Instance hours"];

fn ranked(items: &[UsageItem]) -> Chart {
    let mut panels = NAMES.map(|name| (name, Vec::new()));
    for item in items.iter().take(RANKED) {
        for ((_, slots), amount) in panels.iter_mut().zip(amounts(item)) {
            slots.push(vec![amount]);
        }
    }
    Chart {
        panels,
        labels: Labels::Ranks,
    }
}

/// Periods, each with the parts of the largest users and of all others; and the names of the parts.
fn over_time(usage: &Usage, period: i64) -> Option<(Chart, Vec<String>)> {
    let slot = |time: Timestamp| time.as_second().div_euclid(period);
    let first = slot(usage.from);
    // The end is exclusive.
    let last = slot(usage.to.checked_sub(SignedDuration::from_nanos(1)).ok()?);
    let slots = usize::try_from(last - first + 1).ok()?;
    let mut sums: BTreeMap<Option<&str>, f64> = BTreeMap::new();
    for item in &usage.items {
        *sums.entry(item.key.as_deref()).or_default() += item.core_seconds;
    }
    sums.remove(&None);
    let mut keys: Vec<(Option<&str>, f64)> = sums.into_iter().collect();
    keys.sort_by(|a, b| b.1.total_cmp(&a.1));
    let own = match slots {
        ..=STACKED => SERIES.len() - 1,
        _ => 0,
    };
    keys.truncate(own);
    let mut panels = NAMES.map(|name| (name, vec![vec![0.0; keys.len() + 1]; slots]));
    let mut has_others = false;
    for item in &usage.items {
        let key = item.key.as_deref();
        let part = keys.iter().position(|(own, _)| *own == key);
        has_others |= part.is_none();
        let place = usize::try_from(slot(item.from) - first).ok()?;
        for ((_, slots), amount) in panels.iter_mut().zip(amounts(item)) {
            let parts = slots.get_mut(place)?;
            *parts.get_mut(part.unwrap_or(keys.len()))? += amount;
        }
    }
    let mut names: Vec<String> = keys.iter().map(|(key, _)| named(*key)).collect();
    if names.is_empty() {
        names.push("all together".to_owned());
    } else if has_others {
        names.push(OTHERS.to_owned());
    }
    let labels = Labels::Times {
        first_second: first * period,
        period,
    };
    Some((Chart { panels, labels }, names))
}

fn draw(chart: &Chart, size: &Size) -> Result<String, Failed> {
    let panel_height = size.panel + drawing::ABOVE;
    let height = panel_height * chart.panels.len() as u32 + BELOW;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (size.width, height)).into_drawing_area();
        for (i, (name, slots)) in chart.panels.iter().enumerate() {
            let top = panel_height * i as u32;
            let is_last = i + 1 == chart.panels.len();
            let below = if is_last { BELOW } else { 0 };
            let area = root
                .clone()
                .shrink((0, top), (size.width, panel_height + below));
            draw_panel(&area, name, slots, size)?;
            if is_last {
                draw_labels(&area, &chart.labels, slots.len(), size)?;
            }
        }
        root.present()?;
    }
    Ok(hidden(&svg))
}

/// The x coordinate at which a slot begins and the previous one ends.
fn column(slot: usize, slots: usize, size: &Size) -> i32 {
    let (x0, x1) = (f64::from(LEFT), f64::from(size.width - RIGHT));
    (x0 + (x1 - x0) * slot as f64 / slots.max(1) as f64).round() as i32
}

fn draw_panel(
    area: &drawing::Area<'_>,
    name: &str,
    slots: &[Vec<f64>],
    size: &Size,
) -> Result<(), Failed> {
    let (top, bottom) = rows(size);
    let (x0, x1) = (LEFT as i32, (size.width - RIGHT) as i32);
    let sums = slots.iter().map(|parts| parts.iter().sum::<f64>());
    let most = round_up(sums.fold(0.0, f64::max));
    let y = |value: f64| {
        bottom - (f64::from(bottom - top) * (value / most).clamp(0.0, 1.0)).round() as i32
    };
    area.draw(&Text::new(name, (0, 3), text(size, HPos::Left, VPos::Top)))?;
    for share in [0.0, 0.5, 1.0] {
        let value = most * share;
        area.draw(&PathElement::new(
            vec![(x0, y(value)), (x1, y(value))],
            LINE,
        ))?;
        area.draw(&Text::new(
            label(value),
            (x0 - 6, y(value)),
            text(size, HPos::Right, VPos::Center),
        ))?;
    }
    for (i, parts) in slots.iter().enumerate() {
        let (left, right) = (
            column(i, slots.len(), size),
            column(i + 1, slots.len(), size),
        );
        // Leaves a gap between bars if there is room.
        let gap = match right - left {
            ..4 => 0,
            4..12 => 1,
            wide => (wide / 8).min(8),
        };
        let mut below = 0.0;
        for (part, color) in parts.iter().zip(SERIES) {
            let (from, to) = (y(below), y(below + part));
            below += part;
            if from > to {
                let corners = [(left + gap, to), ((right - gap).max(left + gap + 1), from)];
                area.draw(&Rectangle::new(corners, color.filled()))?;
            }
        }
    }
    Ok(())
}

/// A number on an axis, rounded to a few characters.
fn label(value: f64) -> String {
    const PREFIXES: [(f64, &str); 4] = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    match value {
        0.0 => "0".to_owned(),
        value if value >= 1e15 => format!("{value:.0e}"),
        value if value >= 1e4 => {
            let prefix = PREFIXES.iter().find(|(least, _)| value >= *least);
            let (of, name) = prefix.unwrap_or(&(1.0, ""));
            format!("{}{name}", (value / of * 100.0).round() / 100.0)
        }
        value if value.abs() < 1e-3 => format!("{value:.0e}"),
        value => ((value * 1e6).round() / 1e6).to_string(),
    }
}

fn draw_labels(
    area: &drawing::Area<'_>,
    labels: &Labels,
    slots: usize,
    size: &Size,
) -> Result<(), Failed> {
    let (_, bottom) = rows(size);
    let write = |x: i32, h: HPos, words: String| {
        area.draw(&Text::new(words, (x, bottom + 8), text(size, h, VPos::Top)))
    };
    match *labels {
        Labels::Ranks => {
            for slot in 0..slots {
                let middle =
                    i32::midpoint(column(slot, slots, size), column(slot + 1, slots, size));
                write(middle, HPos::Center, (slot + 1).to_string())?;
            }
        }
        Labels::Times {
            first_second,
            period,
        } => {
            let hours = slots as i64 * period / HOUR_SECONDS;
            let step = STEPS.iter().find(|step| hours <= *step * size.ticks);
            let step = step.copied().unwrap_or(i64::MAX / HOUR_SECONDS) * HOUR_SECONDS;
            for slot in 0..slots {
                let second = first_second + slot as i64 * period;
                let x = column(slot, slots, size);
                if second.rem_euclid(step) != 0 {
                    continue;
                }
                area.draw(&PathElement::new(vec![(x, bottom), (x, bottom + 4)], QUIET))?;
                let is_at_end = x > (size.width - RIGHT) as i32 - 40;
                let h = match x {
                    x if x < LEFT as i32 + 24 => HPos::Left,
                    _ if is_at_end => HPos::Right,
                    _ => HPos::Center,
                };
                let Ok(time) = Timestamp::from_second(second) else {
                    continue;
                };
                let form = match second.rem_euclid(DAY_SECONDS) {
                    0 => "%m-%d",
                    _ => "%H:%M",
                };
                write(x, h, time.strftime(form).to_string())?;
            }
        }
    }
    Ok(())
}
