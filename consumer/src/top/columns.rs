//! The list's columns: as many as the screen has room for.

use jiff::Timestamp;
use ratatui::style::Style;
use ratatui::text::Span;
use service::text::shown;

use super::answer::Sort;
use super::theme::{Theme, bar, fit, shape, width};
use crate::query::{TaskItem, TaskOrder};
use crate::tasks::{gib, lasting, percent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Task,
    Status,
    Progress,
    Bar,
    Running,
    Reported,
    Mark,
    Memory,
    Cores,
    User,
    Engine,
    Job,
}

use Column::{
    Bar, Cores, Engine, Job, Mark, Memory, Progress, Reported, Running, Status, Task, User,
};

/// From left to right.
const SHOWN: [Column; 12] = [
    Task, Status, Mark, Progress, Bar, Running, Reported, Memory, Cores, User, Engine, Job,
];
/// Most important first: a narrow screen drops columns from the end.
const RANKED: [Column; 12] = [
    Task, Status, Progress, Running, Reported, Mark, Memory, Cores, User, Engine, Bar, Job,
];
/// Maximum width of the exec id, which takes the remaining space.
const TASK_MAX: usize = 48;

impl Column {
    fn width(self) -> usize {
        match self {
            Task => 14,
            Status => 14,
            Mark => 17,
            Progress | Reported => 9,
            Bar | Memory => 10,
            Running => 8,
            Cores => 6,
            User => 12,
            Engine => 24,
            Job => 16,
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Task => "exec task",
            Status => "status",
            Mark => "mark",
            Progress => "progress",
            Bar => "",
            Running => "running",
            Reported => "reported",
            Memory => "memory",
            Cores => "cores",
            User => "user",
            Engine => "engine",
            Job => "job",
        }
    }

    fn order(self) -> Option<TaskOrder> {
        match self {
            Progress => Some(TaskOrder::Progress),
            Running => Some(TaskOrder::Duration),
            Reported => Some(TaskOrder::Reported),
            Memory => Some(TaskOrder::Memory),
            Cores => Some(TaskOrder::Cores),
            _ => None,
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Progress | Running | Reported | Memory | Cores)
    }
}

/// The columns that fit into this width, with their widths.
fn layout(columns: usize) -> Vec<(Column, usize)> {
    let mut used = 0;
    let chosen: Vec<Column> = RANKED
        .into_iter()
        .take_while(|column| {
            used += column.width() + usize::from(used > 0);
            // The first column is always shown, truncated if necessary.
            used <= columns || *column == Task
        })
        .collect();
    let taken: usize = chosen.iter().map(|column| column.width() + 1).sum();
    let left = (columns + 1).saturating_sub(taken);
    SHOWN
        .into_iter()
        .filter(|column| chosen.contains(column))
        .map(|column| match column {
            Task => (Task, (Task.width() + left).min(TASK_MAX)),
            _ => (column, column.width()),
        })
        .collect()
}

/// The text, padded to this width.
fn padded(text: &str, columns: usize, is_number: bool) -> String {
    let text = fit(text, columns);
    let space = " ".repeat(columns - width(&text));
    match is_number {
        true => space + &text,
        false => text + &space,
    }
}

/// The headings, with an arrow at the sort column.
pub(super) fn headings(columns: usize, sort: Option<Sort>) -> String {
    let headings = layout(columns).into_iter().map(|(column, width)| {
        let arrow = match sort {
            Some(sort) if column.order() == Some(sort.order) => match sort.descending {
                true => "↓",
                false => "↑",
            },
            _ => "",
        };
        let heading = format!("{}{arrow}", column.heading());
        padded(&heading, width, column.is_number())
    });
    headings.collect::<Vec<_>>().join(" ")
}

/// A task's row.
pub(super) fn cells(
    task: &TaskItem,
    columns: usize,
    now: Timestamp,
    theme: Theme,
) -> Vec<Span<'static>> {
    let layout = layout(columns);
    let has_marks = layout.iter().any(|(column, _)| *column == Mark);
    let mut cells = Vec::with_capacity(2 * layout.len());
    for (column, width) in layout {
        if !cells.is_empty() {
            cells.push(Span::raw(" "));
        }
        let (text, style) = cell(task, column, width, has_marks, now, theme);
        cells.push(Span::styled(
            padded(&text, width, column.is_number()),
            style,
        ));
    }
    cells
}

fn cell(
    task: &TaskItem,
    column: Column,
    width: usize,
    has_marks: bool,
    now: Timestamp,
    theme: Theme,
) -> (String, Style) {
    let unknown = || "?".to_owned();
    let text = match column {
        Task => shown(&task.exec_id),
        // A mark replaces the status: a marked task has no final status.
        Status => match mark(task) {
            Some(mark) if !has_marks => return (mark, theme.warning()),
            _ => {
                let text = format!("{} {}", shape(&task.status), shown(&task.status));
                return (text, theme.status(&task.status));
            }
        },
        Mark => return (mark(task).unwrap_or_default(), theme.warning()),
        Progress => percent(task.progress),
        Bar => {
            let bar = task.progress.map(|progress| bar(progress, width));
            return (bar.unwrap_or_default(), theme.bar());
        }
        Running => task.running_seconds.map_or_else(unknown, lasting),
        Reported => match task.reported_at.parse::<Timestamp>() {
            Ok(at) => lasting(now.duration_since(at).as_secs_f64()),
            Err(_) => unknown(),
        },
        Memory => task.memory_bytes.map_or_else(unknown, gib),
        Cores => task.cores.map_or_else(unknown, |cores| cores.to_string()),
        User => shown(&task.engine_user),
        Engine => format!(
            "{} {}",
            shown(&task.engine_type),
            shown(&task.engine_instance)
        ),
        Job => shown(&task.job_id),
    };
    (text, Style::new())
}

/// The mark of a silent or stalled task: a shape and a word.
fn mark(task: &TaskItem) -> Option<String> {
    match (task.silent_seconds, task.stalled_seconds) {
        (Some(silent), _) => Some(format!("! silent {}", lasting(silent))),
        (None, Some(stalled)) => Some(format!("= stalled {}", lasting(stalled))),
        (None, None) => None,
    }
}
