//! A task's progress, memory and cores on one time axis: as a plot and as a table.

use jiff::Timestamp;

use super::drawing::{Drawing, NARROW, PlotData, Size, WIDE, draw};
use super::format::{self, or_absent};

/// The drawings for wide and narrow screens, and the values.
pub(super) struct Plot {
    pub(super) from_ms: i64,
    pub(super) to_ms: i64,
    pub(super) wide: Drawing,
    pub(super) narrow: Drawing,
    pub(super) caption: String,
    pub(super) values: Vec<Value>,
}

/// A point, formatted.
pub(super) struct Value {
    pub(super) ms: i64,
    pub(super) time: String,
    pub(super) progress: String,
    pub(super) memory: String,
    pub(super) cores: String,
    pub(super) status: &'static str,
}

/// `None` if there is nothing to draw.
pub(super) fn plot(plotted: &PlotData) -> Option<Plot> {
    let times = plotted.times();
    if plotted.progress.is_empty() && plotted.memory_bytes.is_empty() && plotted.cores.is_empty() {
        return None;
    }
    let span = (*times.first()?, *times.last()?);
    let drawn = |size: &Size| {
        draw(plotted, span, size)
            .inspect_err(|error| tracing::error!("cannot draw a plot: {error}"))
            .ok()
    };
    Some(Plot {
        from_ms: span.0.as_millisecond(),
        to_ms: span.1.as_millisecond(),
        wide: drawn(&WIDE)?,
        narrow: drawn(&NARROW)?,
        caption: "Times are relative to the first report. To read values, point at a plot, or focus it and press the arrow keys.".to_owned(),
        values: values(plotted, &times),
    })
}

/// The last values reported by each time.
fn values(plotted: &PlotData, times: &[Timestamp]) -> Vec<Value> {
    let by = |values: &[(Timestamp, f64)], time: Timestamp| {
        let plotted = values.partition_point(|(plotted, _)| *plotted <= time);
        plotted
            .checked_sub(1)
            .and_then(|last| values.get(last))
            .map(|(_, value)| *value)
    };
    times
        .iter()
        .map(|&time| {
            let mark = plotted.marks.iter().find(|(mark, _)| *mark == time);
            Value {
                ms: time.as_millisecond(),
                time: time.to_string(),
                progress: or_absent(by(&plotted.progress, time), format::percent),
                memory: or_absent(by(&plotted.memory_bytes, time), |bytes| {
                    format::gib(bytes as i64)
                }),
                cores: or_absent(by(&plotted.cores, time), |cores| cores.to_string()),
                status: mark.map_or("", |(_, status)| status.word),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::drawing::sparkline;
    use super::super::status::Status;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_764_079_200 + second).unwrap()
    }

    fn plotted(seconds: &[i64]) -> PlotData {
        let of = |value: fn(f64) -> f64| {
            seconds
                .iter()
                .map(|&second| (at(second), value(second as f64)))
                .collect()
        };
        PlotData {
            progress: of(|second| second / 60.0),
            memory_bytes: of(|second| second * 1e8),
            cores: of(|second| second),
            marks: vec![
                (at(0), Status::of("Inited")),
                (at(20), Status::of("Running")),
            ],
        }
    }

    #[test]
    fn a_plot_has_no_style_of_its_own_and_every_value() {
        let seconds: Vec<i64> = (0..60).collect();
        let plot = plot(&plotted(&seconds)).unwrap();
        for drawing in [&plot.wide, &plot.narrow] {
            assert!(
                drawing.svg.starts_with("<svg aria-hidden"),
                "{}",
                drawing.svg
            );
            assert!(drawing.svg.trim_end().ends_with("</svg>"));
            assert!(!drawing.svg.contains("style="), "{}", drawing.svg);
            assert!(!drawing.svg.contains("NaN"));
        }
        assert_eq!(plot.values.len(), 60);
        assert_eq!(
            (plot.values[20].progress.as_str(), plot.values[20].status),
            ("33.3 %", "Running")
        );
        let line = sparkline(&plotted(&seconds).cores).unwrap();
        assert!(
            line.contains("polyline") && !line.contains("style="),
            "{line}"
        );
    }

    #[test]
    fn a_value_is_the_last_one_that_was_told() {
        let plotted = PlotData {
            progress: vec![(at(0), 0.25), (at(10), 0.5)],
            memory_bytes: vec![(at(5), 1_073_741_824.0)],
            ..PlotData::default()
        };
        let values = plot(&plotted).unwrap().values;
        let rows: Vec<_> = values
            .iter()
            .map(|value| {
                (
                    value.progress.as_str(),
                    value.memory.as_str(),
                    value.cores.as_str(),
                )
            })
            .collect();
        assert_eq!(
            rows,
            [
                ("25.0 %", "—", "—"),
                ("25.0 %", "1.00 GiB", "—"),
                ("50.0 %", "1.00 GiB", "—")
            ]
        );
    }

    #[test]
    fn one_point_and_no_time_between_two_are_drawn() {
        assert!(plot(&PlotData::default()).is_none());
        assert!(
            plot(&PlotData {
                marks: plotted(&[]).marks,
                ..PlotData::default()
            })
            .is_none()
        );
        assert!(plot(&plotted(&[0])).is_some());
        assert!(plot(&plotted(&[7, 7])).is_some());
        let mut years = plotted(&[0]);
        years.progress.push((Timestamp::MAX, 1.0));
        assert!(plot(&years).is_some());
        assert!(sparkline(&years.progress).is_some());
        assert!(sparkline(&[(at(0), f64::MAX), (at(0), f64::MIN)]).is_some());
        assert!(sparkline(&[(at(0), 1.0)]).is_none());
    }
}
