//! `producer publish`: TaskRunningInfo as JSON lines, for engines in any language and for shells.

mod line;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use schemas::topics;
use service::exit::WrongUsage;
use service::health::Health;
use service::kafka::{KafkaOptions, NewTopic};
use service::output;
use service::words::counted;
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

use self::line::Sequences;
use crate::sender::{Sender, framing};

/// A line of more than this is a bad line: a topic takes 1 MiB by default, and JSON is longer than
/// Avro.
const LINE_MAX_BYTES: usize = 1 << 20;

/// What is published.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// File of reports, one JSON object a line; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    pub file: PathBuf,

    /// What a bad line does: stop there, or be skipped. Good lines before it are delivered either way
    #[arg(long, value_enum, default_value_t = OnError::Stop)]
    pub on_error: OnError,
}

/// What a bad line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OnError {
    /// Ends the reading.
    Stop,
    /// Is left out.
    Skip,
}

/// Publishes to the end of the input, to the first bad line, or until `shutdown` is cancelled; then
/// waits for every acknowledgement and prints `sent 98 reports, 2 bad lines`. Gives the number of
/// bad lines.
///
/// # Errors
/// If the file cannot be read, the topic does not exist, or reports cannot be delivered.
pub async fn run(
    options: Options,
    kafka: &KafkaOptions,
    topic: &str,
    health: Arc<Health>,
    shutdown: CancellationToken,
) -> anyhow::Result<u64> {
    let input: Box<dyn AsyncBufRead + Send + Unpin> = if options.file.as_os_str() == "-" {
        Box::new(BufReader::with_capacity(1 << 16, tokio::io::stdin()))
    } else {
        let file = open(&options.file)
            .await
            .map_err(|error| WrongUsage(format!("{}: {error}", options.file.display())))?;
        Box::new(BufReader::with_capacity(1 << 16, file))
    };
    let unsent = || {
        let file = options.file.display();
        anyhow!("stopped by a signal; nothing of {file} was sent")
    };
    let cluster = kafka.cluster(&shutdown).await?.ok_or_else(unsent)?;
    let make = NewTopic::with(topics::REPORTS_SETTINGS);
    cluster.require_topic(topic, "Write", Some(make)).await?;
    let framing = framing(kafka, topic, &health, &shutdown).await?;
    let framing = framing.ok_or_else(unsent)?;
    let mut sender = Sender::connect(kafka, topic, framing, health)?;

    let mut bad = 0;
    let published = publish(&options, input, &mut sender, &mut bad, &shutdown).await;
    let sent = sender.finish(&shutdown).await;
    if let Ok(sent) = &sent {
        output::account(&format!(
            "sent {}, {}\n",
            counted(sent, "report"),
            counted(bad, "bad line")
        ));
    }
    published?;
    sent?;
    Ok(bad)
}

async fn open(path: &Path) -> std::io::Result<File> {
    let file = File::open(path).await?;
    match file.metadata().await?.is_dir() {
        true => Err(std::io::ErrorKind::IsADirectory.into()),
        false => Ok(file),
    }
}

async fn publish(
    options: &Options,
    input: Box<dyn AsyncBufRead + Send + Unpin>,
    sender: &mut Sender,
    bad: &mut u64,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut lines = Lines::new(input);
    let mut sequences = Sequences::default();
    let stopped_before = |line| {
        let file = options.file.display();
        anyhow!("stopped by a signal before line {line} of {file} was sent")
    };
    loop {
        let line = tokio::select! {
            biased;
            // Of standard input there is always more to come; a file is not sent until its end is.
            () = shutdown.cancelled() => match options.file.as_os_str() == "-" {
                true => return Ok(()),
                false => return Err(stopped_before(lines.number + 1)),
            },
            line = lines.next() => line,
        };
        let Some((number, line)) =
            line.with_context(|| format!("reading {}", options.file.display()))?
        else {
            return Ok(());
        };
        let faults = match line {
            Line::Whole(text) if text.trim_ascii().is_empty() => continue,
            Line::Whole(text) => match line::read(text, &mut sequences) {
                Ok(info) => {
                    let sent = sender
                        .send(&info, shutdown)
                        .await
                        .with_context(|| format!("line {number}"))?;
                    if !sent {
                        return Err(stopped_before(number));
                    }
                    continue;
                }
                Err(faults) => faults.iter().map(ToString::to_string).collect(),
            },
            Line::TooLong => vec![format!("longer than {LINE_MAX_BYTES} bytes")],
        };
        *bad += 1;
        for fault in faults {
            tracing::error!("line {number}: {fault}");
        }
        if options.on_error == OnError::Stop {
            tracing::error!(
                "stopped at line {number}; the good lines before it are sent. Mend it, or leave bad lines out with --on-error skip"
            );
            return Ok(());
        }
    }
}

/// Lines of bounded length.
struct Lines<R> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

#[derive(Debug, PartialEq)]
enum Line<'a> {
    /// Without its end.
    Whole(&'a [u8]),
    /// Longer than [`LINE_MAX_BYTES`]; skipped to its end.
    TooLong,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line and its number, from 1 on; `None` at the end.
    async fn next(&mut self) -> std::io::Result<Option<(u64, Line<'_>)>> {
        self.line.clear();
        let (mut too_long, mut begun) = (false, false);
        loop {
            let chunk = self.input.fill_buf().await?;
            if chunk.is_empty() && !begun {
                return Ok(None);
            }
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            too_long |= self.line.len() + part.len() > LINE_MAX_BYTES;
            if !too_long {
                self.line.extend_from_slice(part);
            }
            begun = true;
            let at_end_of_input = chunk.is_empty();
            let used = end.map_or(chunk.len(), |end| end + 1);
            self.input.consume(used);
            if end.is_some() || at_end_of_input {
                self.number += 1;
                let line = match too_long {
                    true => Line::TooLong,
                    false => Line::Whole(&self.line),
                };
                return Ok(Some((self.number, line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lengths(input: &[u8]) -> Vec<(u64, Option<usize>)> {
        let mut lines = Lines::new(BufReader::with_capacity(64, input));
        let mut lengths = Vec::new();
        while let Some((number, line)) = lines.next().await.unwrap() {
            let length = match line {
                Line::Whole(line) => Some(line.len()),
                Line::TooLong => None,
            };
            lengths.push((number, length));
        }
        lengths
    }

    #[tokio::test]
    async fn lines_are_counted_and_one_that_is_too_long_is_skipped_to_its_end() {
        assert_eq!(lengths(b"").await, []);
        assert_eq!(
            lengths(b"a\n\nbc").await,
            [(1, Some(1)), (2, Some(0)), (3, Some(2))]
        );
        let mut input = b"a\n".to_vec();
        input.extend(std::iter::repeat_n(b'x', LINE_MAX_BYTES));
        input.push(b'\n');
        input.extend(std::iter::repeat_n(b'x', LINE_MAX_BYTES + 1));
        input.extend(b"\nb\n");
        assert_eq!(
            lengths(&input).await,
            [
                (1, Some(1)),
                (2, Some(LINE_MAX_BYTES)),
                (3, None),
                (4, Some(1))
            ]
        );
    }
}
