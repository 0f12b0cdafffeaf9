//! `producer publish`: TaskRunningInfo as JSON lines, for engines in any language and for shells.

mod lines;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use service::exit::WrongUsage;
use service::words::counted;
use tokio::io::AsyncRead;
use tokio_util::sync::CancellationToken;

use self::lines::{Foreign, Line, Lines};
use crate::json::{self, Faulty, REPORT_MAX_BYTES, Sequences};
use crate::session::{PacedReports, Session, Setup};

/// What is published.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// File of reports, one JSON object a line; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// What to do at a bad line: stop there, or skip it. Good lines before it are delivered in both cases
    #[arg(long, value_enum, default_value_t = OnError::Stop)]
    pub on_error: OnError,

    /// Publish from this line on. Earlier lines are read, so that omitted sequences go on, but not sent
    #[arg(long, value_name = "N", default_value_t = 1, hide_default_value = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub from_line: u64,
}

/// What happens at a bad line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Publishing ends.
    Stop,
    /// The line is skipped.
    Skip,
}

/// Publishes to the end of the input, to the first bad line, or until `setup.shutdown` is cancelled; then waits for every
/// acknowledgement and prints `sent 98 reports, 2 bad lines`. Returns whether the input was correct.
///
/// # Errors
/// If the file cannot be read to its end, the topic does not exist, reports cannot be delivered, or a signal came before
/// the end of a file. The error names the line to resume from.
pub async fn run(options: Options, setup: Setup) -> anyhow::Result<bool> {
    let shutdown = setup.shutdown.clone();
    let file = &options.file;
    let unsent = || anyhow!("stopped by a signal; nothing of {} was sent", shown(file));
    let opened = tokio::select! {
        biased;
        // Opening a pipe blocks until somebody writes to it.
        () = shutdown.cancelled() => return Err(unsent()),
        opened = open(file) => opened,
    };
    let input = opened.map_err(|error| WrongUsage(format!("{}: {error}", file.display())))?;
    let session = Session::open(&setup).await?;
    let session = session.ok_or_else(unsent)?;
    let reports = session.paced().await?;

    let mut publisher = Publisher {
        from_line: usize::try_from(options.from_line)?,
        options: &options,
        lines: Lines::new(input),
        reports,
        done: usize::try_from(options.from_line)? - 1,
        bad: 0,
    };
    let published = publisher.publish(&shutdown).await;
    publisher.end(published).await
}

/// The file's name as it is shown.
fn shown(file: &Path) -> String {
    match file.as_os_str() {
        name if name == "-" => "standard input".to_owned(),
        name => name.display().to_string(),
    }
}

async fn open(file: &Path) -> std::io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    if file.as_os_str() == "-" {
        return Ok(Box::new(tokio::io::stdin()));
    }
    let input = tokio::fs::File::open(file).await?;
    if input.metadata().await?.is_dir() {
        return Err(std::io::ErrorKind::IsADirectory.into());
    }
    Ok(Box::new(input))
}

struct Publisher<'o> {
    options: &'o Options,
    from_line: usize,
    lines: Lines<Box<dyn AsyncRead + Send + Unpin>>,
    reports: PacedReports,
    /// The last line that was handed over or is bad.
    done: usize,
    /// Bad lines.
    bad: u64,
}

/// Why reading ended.
enum Ended {
    /// The input has ended.
    AtEnd,
    /// At a bad line, because the whole input is unusable, or because it ends before `--from-line`.
    AtFault,
    /// A signal came.
    Stopped,
}

impl Publisher<'_> {
    async fn publish(&mut self, shutdown: &CancellationToken) -> anyhow::Result<Ended> {
        let mut sequences = Sequences::default();
        let mut handed_over = false;
        let file = self.file();
        loop {
            let next = self.lines.next_number();
            let line = tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(Ended::Stopped),
                line = self.lines.next() => line.with_context(|| format!("reading line {next} of {}", file))?,
            };
            let Some((number, line)) = line else {
                if next <= self.from_line && self.from_line > 1 {
                    tracing::error!(
                        "{file} has only {}: nothing is left to publish from line {} on",
                        counted(next - 1, "line"),
                        self.from_line
                    );
                    return Ok(Ended::AtFault);
                }
                if handed_over {
                    self.warn_of_unfinished(&sequences);
                }
                return Ok(Ended::AtEnd);
            };
            let read = match line {
                Line::Whole(text) if text.trim_ascii().is_empty() => continue,
                Line::Whole(text) => json::read(&text, Some(&mut sequences)),
                Line::TooLong => {
                    let reason = format!("longer than {REPORT_MAX_BYTES} bytes");
                    Err(Faulty::whole(reason))
                }
                Line::Foreign(foreign) => {
                    tracing::error!("{}", self.how_to_convert(foreign));
                    self.bad += 1;
                    return Ok(Ended::AtFault);
                }
            };
            if number < self.from_line {
                continue;
            }
            let bad_before = self.bad;
            match read {
                Ok(info) => {
                    let sent = self.reports.send(&info, number).await;
                    if !sent.with_context(|| format!("line {number}"))? {
                        return Ok(Ended::Stopped);
                    }
                    handed_over = true;
                }
                Err(faulty) => self.bad_line(number, &faulty),
            }
            self.done = number;
            let mut is_bad = self.bad > bad_before;
            let mut late = self.name_too_large();
            is_bad |= late.contains(&number);
            late.retain(|refused| *refused < number);
            if self.bad > bad_before && self.options.on_error == OnError::Stop {
                let sent = match self.reports.is_dry_run() {
                    true => "printed",
                    false => "sent",
                };
                let go_on = match is_bad {
                    true => format!(
                        "the good lines before it are {sent}. To go on, correct it and {}",
                        self.how_to_go_on(number)
                    ),
                    false => format!(
                        "the good lines up to it are {sent}. To go on, {}",
                        self.how_to_go_on(number + 1)
                    ),
                };
                tracing::error!(
                    "stopped at line {number}; {go_on}; --on-error skip leaves bad lines out"
                );
                self.warn_of_late(&late);
                return Ok(Ended::AtFault);
            }
        }
    }

    /// Counts reports that were refused for their size as bad lines. Returns their numbers.
    fn name_too_large(&mut self) -> Vec<usize> {
        let mut lines = Vec::new();
        for refused in self.reports.take_too_large() {
            self.bad_line(refused.number, &Faulty::whole(refused.reason));
            lines.push(refused.number);
        }
        lines
    }

    /// Logs lines that were refused after later ones were sent: resuming from them would send the later ones twice.
    fn warn_of_late(&self, late: &[usize]) {
        let Some(first) = late.iter().min() else {
            return;
        };
        let others = match late.len() - 1 {
            0 => String::new(),
            others => format!(" and {}, named above", counted(others, "other line")),
        };
        tracing::error!(
            "refused after later lines were sent: line {first}{others}. Publish what was refused by itself once it is \
             corrected, with its `sequence`"
        );
    }

    fn bad_line(&mut self, number: usize, Faulty { faults, more }: &Faulty) {
        self.bad += 1;
        for fault in faults {
            tracing::error!("line {number}: {fault}");
        }
        if *more > 0 {
            tracing::error!("line {number}: and {}", counted(*more, "fault"));
        }
    }

    /// Waits for the acknowledgements and reports the outcome.
    async fn end(mut self, published: anyhow::Result<Ended>) -> anyhow::Result<bool> {
        let finished = self.reports.finish().await;
        let mut late = self.name_too_large();
        late.retain(|refused| *refused < self.done);
        if self.options.on_error == OnError::Stop {
            self.warn_of_late(&late);
        }
        let (sent, bad) = (self.reports.acknowledged(), self.bad);
        self.reports
            .account(&format!(", {}", counted(bad, "bad line")));

        let error = match (published, finished) {
            (Err(error), _) | (Ok(_), Err(error)) => Some(error),
            (Ok(Ended::Stopped), Ok(_)) if self.reports.reader_has_gone() => return Ok(bad == 0),
            (Ok(Ended::Stopped), Ok(_)) => None,
            (Ok(Ended::AtFault), Ok(_)) => return Ok(false),
            (Ok(Ended::AtEnd), Ok(_)) => return Ok(bad == 0),
        };
        let stopped_at = self.done + 1;
        // Standard input can always go on; a file has an end that was not reached.
        let is_stdin = self.options.file.as_os_str() == "-";
        let resume_at = self.reports.first_failed().unwrap_or(stopped_at);
        // An earlier run sent the lines before that.
        let from = match self.from_line {
            1 => String::new(),
            line => format!(" from line {line} on"),
        };
        let acknowledged = match self.reports.is_dry_run() {
            true => "printed",
            false => "acknowledged",
        };
        let mut summary = format!(
            "{acknowledged}: {} of {}{from}, among them those of all good lines before line {resume_at}",
            counted(sent, "report"),
            self.file()
        );
        if resume_at < stopped_at {
            summary += &format!(
                "; of lines {resume_at} to {} some may have arrived, and will have arrived twice if they are sent again",
                stopped_at - 1
            );
        }
        summary += &format!(". To go on, {}", self.how_to_go_on(resume_at));
        match error {
            Some(error) => {
                tracing::error!("{summary}");
                Err(error)
            }
            None if is_stdin => {
                tracing::info!("stopped by a signal before line {stopped_at}: {summary}");
                Ok(bad == 0)
            }
            None => Err(anyhow!(
                "stopped by a signal before line {stopped_at}: {summary}"
            )),
        }
    }

    fn file(&self) -> String {
        shown(&self.options.file)
    }

    /// The file's name, quoted for a shell.
    fn shell_word(&self) -> String {
        let file = self.file();
        let is_plain = |c: char| c.is_alphanumeric() || "/._-+:,@%".contains(c);
        match file.chars().all(is_plain) {
            true => file,
            false => format!("'{}'", file.replace('\'', r"'\''")),
        }
    }

    fn how_to_go_on(&self, line: usize) -> String {
        match self.options.file.as_os_str() {
            name if name == "-" => format!("give the same input with --from-line {line}"),
            _ => {
                let dry_run = match self.reports.is_dry_run() {
                    true => "--dry-run ",
                    false => "",
                };
                let file = self.shell_word();
                format!("run: producer publish {dry_run}--from-line {line} {file}")
            }
        }
    }

    fn how_to_convert(&self, foreign: Foreign) -> String {
        let Foreign { format, convert } = foreign;
        let (file, from) = match self.options.file.as_os_str() {
            name if name == "-" => (self.file(), "… | ".to_owned()),
            _ => (self.file(), format!("< {} ", self.shell_word())),
        };
        format!("{file} is {format}, not UTF-8 text: {from}{convert} | producer publish")
    }

    /// Warns of tasks whose sequence another run would count from 0 again.
    fn warn_of_unfinished(&self, sequences: &Sequences) {
        let Some((count, exec_id)) = sequences.unfinished() else {
            return;
        };
        let and_others = match count {
            1 => String::new(),
            count => format!(" and {} other tasks", count - 1),
        };
        tracing::warn!(
            "{exec_id:?}{and_others} had no final status, and `sequence` was left out: another run would count from 0 \
             again, and its reports would show as repeated. Give a task's reports to one run, as in `while …; do echo …; \
             done | producer publish`, or write their `sequence`"
        );
    }
}
