//! Logs on disk → reports, without Kafka.
//!
//! Long because each codec, fault and count of a log has its test here.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use schemas::{MetricValue, TaskRunningInfo, TaskStatus};
use serde_json::Value;

use super::codec::Decoder;
use super::intake::{LINES_BEFORE_EVENT, take};
use super::lines::{LINE_MAX_BYTES, Line, Lines};
use super::replay::{Counts, Ending, Pace, Replay};
use super::*;
use crate::engines::spark::answers::Job;

const EVERY: Pace = Pace::Every(5_000);
const CODECS: [&str; 5] = ["zstd", "lz4", "snappy", "lzf", "gz"];

/// A small log of this repository: `small`, and the same as Spark 4.0 (and gzip) compress it.
pub(super) fn small(suffix: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/event-logs");
    match suffix {
        "" => folder.join("small"),
        suffix => folder.join(format!("small.{suffix}")),
    }
}

/// Logs of real applications, where they are.
fn shared() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/inputs/spark");
    if !folder.is_dir() {
        eprintln!("skipped: {} is absent", folder.display());
        return None;
    }
    Some(folder)
}

pub(super) fn read_with(pace: Pace, paths: &[&Path]) -> (Vec<TaskRunningInfo>, Read) {
    let paths: Vec<PathBuf> = paths.iter().map(|path| path.to_path_buf()).collect();
    let mut reports = Vec::new();
    let read = read_all(
        find(&paths, &|| false).unwrap().logs,
        pace,
        || false,
        |more| {
            reports.extend(more);
            Ok(())
        },
    );
    (reports, read)
}

fn reports(path: &Path) -> Vec<TaskRunningInfo> {
    let (reports, read) = read_with(EVERY, &[path]);
    assert_eq!((read.bad_lines, read.unread), (0, 0), "{}", path.display());
    reports
}

fn last<'r>(reports: &'r [TaskRunningInfo], exec_id: &str) -> &'r TaskRunningInfo {
    let mut of_task = reports.iter().filter(|report| report.exec_id == exec_id);
    of_task.next_back().unwrap()
}

/// The text of a file's bytes, or why there is none, and whether they end in the middle.
fn text(bytes: &[u8], piece: usize) -> (Vec<u8>, Result<bool, String>) {
    let mut decoder = Decoder::default();
    let mut text = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.decode(&mut text) {
                Ok(true) => {}
                Ok(false) => break,
                Err(damage) => return (text, Err(damage.to_string())),
            }
        }
    }
    let cut = decoder.is_cut(&mut text);
    (text, Ok(cut))
}

#[test]
fn every_codec_gives_the_same_text_however_the_bytes_arrive() {
    let plain = fs::read(small("")).unwrap();
    for codec in CODECS {
        let bytes = fs::read(small(codec)).unwrap();
        for piece in [1, 7, 1_000, 1 << 20] {
            assert_eq!(
                text(&bytes, piece),
                (plain.clone(), Ok(false)),
                "{codec} {piece}"
            );
        }
        // Streams follow one another in a file that was appended to.
        let twice = [bytes.clone(), bytes].concat();
        assert_eq!(text(&twice, 512), (plain.repeat(2), Ok(false)), "{codec}");
    }
}

#[test]
fn of_a_log_that_is_cut_anywhere_the_whole_events_are_read_and_no_end_is_made_up() {
    let folder = tempfile::tempdir().unwrap();
    let plain = fs::read(small("")).unwrap();
    let whole = plain.iter().filter(|byte| **byte == b'\n').count() as u64;
    let mut lines = plain.split(|byte| *byte == b'\n');
    let has_time = |line: &[u8]| String::from_utf8_lossy(line).contains("\"Timestamp\"");
    let without_time = lines.position(has_time).unwrap() as u64;
    for codec in ["", "zstd", "lz4", "snappy", "lzf", "gz"] {
        let bytes = fs::read(small(codec)).unwrap();
        let path = folder.path().join("small");
        for length in 1..bytes.len() {
            let cut = &bytes[..length];
            let (read, ends) = text(cut, 1 << 20);
            assert!(plain.starts_with(&read), "{codec} {length}");
            assert!(ends.is_ok(), "{codec} {length}: {ends:?}");
            // The last frame's every byte; of what is before, a part.
            if length + 100 < bytes.len() && length % 101 > 0 {
                continue;
            }
            fs::write(&path, cut).unwrap();
            let (reports, found) = read_with(EVERY, &[&path]);
            let lines = read.iter().filter(|byte| **byte == b'\n').count() as u64;
            let unended = read.ends_with(b"}");
            assert_eq!(found.bad_lines, 0, "{codec} {length}");
            let events = lines + u64::from(unended);
            assert_eq!(found.logs, u64::from(events > without_time));
            for report in reports.iter().filter(|report| report.status.is_final()) {
                // Its end was read; the frame's was not.
                assert!(
                    lines + u64::from(unended) == whole,
                    "{codec} {length}: {report:?}"
                );
            }
        }
    }
}

#[test]
fn a_damaged_frame_is_told_and_what_was_before_it_is_read() {
    for codec in ["lz4", "lzf", "snappy", "zstd"] {
        let mut bytes = fs::read(small(codec)).unwrap();
        let middle = bytes.len() - 100;
        bytes[middle..middle + 60].fill(0xFF);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small");
        fs::write(&path, bytes).unwrap();
        let (reports, read) = read_with(EVERY, &[&path]);
        assert!(read.unread > 0 || read.bad_lines > 0, "{codec}: {read:?}");
        let made_up = reports
            .iter()
            .find(|report| report.status == TaskStatus::Succeed);
        assert_eq!(made_up, None, "{codec}");
    }
    assert_eq!(
        text(b"PK\x03\x04 a zip", 100).1.unwrap_err(),
        Decoder::default().decode_error(b"PK")
    );
}

impl Decoder {
    fn decode_error(mut self, bytes: &[u8]) -> String {
        self.feed(bytes);
        self.decode(&mut Vec::new()).unwrap_err().to_string()
    }
}

fn cut_up(text: &[u8], piece: usize) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    let mut lines = Lines::default();
    let mut each = |number, line: Line<'_>| {
        let line = match line {
            Line::Whole(line) | Line::Unended(line) => String::from_utf8_lossy(line).into_owned(),
            Line::TooLong(beginning) => format!("too long: {}", beginning.len()),
        };
        found.push((number, line));
        Ok::<(), ()>(())
    };
    for piece in text.chunks(piece.max(1)) {
        lines.text.extend_from_slice(piece);
        lines.take(&mut each).unwrap();
    }
    lines.end(&mut each).unwrap();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lines_are_those_of_the_text_however_it_arrives(text in "[a\n\r]{0,40}", piece in 1..10_usize) {
        let expected: Vec<(u64, String)> = (1..)
            .zip(text.split_inclusive('\n'))
            .filter(|(_, line)| line.ends_with('\n') || !line.trim().is_empty())
            .map(|(number, line)| {
                let line = line.strip_suffix('\n').map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
                (number, line.to_owned())
            })
            .collect();
        prop_assert_eq!(cut_up(text.as_bytes(), piece), expected);
    }

    #[test]
    fn no_bytes_make_a_reader_panic(
        codec in 0..6_usize, at in any::<prop::sample::Index>(),
        bytes in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let codec = ["", "zstd", "lz4", "snappy", "lzf", "gz"][codec];
        let mut log = fs::read(small(codec)).unwrap();
        let at = at.index(log.len());
        for (old, new) in log[at..].iter_mut().zip(&bytes) {
            *old = *new;
        }
        let (text, _) = text(&log, 4_096);
        let mut replay = Replay::new("small", EVERY);
        for line in text.split(|byte| *byte == b'\n') {
            let _ = take(line, &mut replay);
        }
        replay.end(Ending::default());
    }
}

#[test]
fn a_line_of_any_length_is_bounded_and_the_next_is_read() {
    let long = vec![b'x'; LINE_MAX_BYTES + 1];
    let text = [b"a\n".as_slice(), &long, b"\nb\n", &long].concat();
    let expected: Vec<(u64, String)> = [
        (1, "a"),
        (2, "too long: 200"),
        (3, "b"),
        (4, "too long: 200"),
    ]
    .map(|(number, line)| (number, line.to_owned()))
    .into();
    assert_eq!(cut_up(&text, 1 << 20), expected);
}

#[test]
fn a_log_without_a_time_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app");
    let start = r#"{"Event":"SparkListenerLogStart","Spark Version":"3.5.1"}"#;
    fs::write(&path, format!("{start}\n")).unwrap();
    for pace in [EVERY, Pace::AtEnd] {
        let (reports, read) = read_with(pace, &[&path]);
        assert_eq!((reports.len(), read.logs, read.unread), (0, 0, 1));
    }
}

#[test]
fn a_loop_of_symbolic_links_lists_each_log_once() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::copy(small(""), inner.join("app")).unwrap();
    for (to, link) in [(".", "self"), ("..", "inner/up"), ("inner", "same")] {
        std::os::unix::fs::symlink(to, folder.path().join(link)).unwrap();
    }
    let logs = files::logs(folder.path(), &|| false).unwrap().logs;
    assert_eq!(logs.len(), 1, "{logs:?}");
}

#[test]
fn what_cannot_be_searched_is_counted_and_the_rest_is_read() {
    use std::os::unix::ffi::OsStrExt;

    let folder = tempfile::tempdir().unwrap();
    fs::copy(small(""), folder.path().join("app")).unwrap();
    let no_text = folder.path().join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&no_text).unwrap();
    fs::copy(small(""), no_text.join("app")).unwrap();
    let deep = (0..12).fold(folder.path().join("deep"), |path, _| path.join("deep"));
    fs::create_dir_all(&deep).unwrap();
    fs::copy(small(""), deep.join("app")).unwrap();
    let found = files::logs(folder.path(), &|| false).unwrap();
    assert_eq!(
        (found.logs.len(), found.left_out.len()),
        (1, 2),
        "{found:?}"
    );
}

#[test]
fn files_whose_number_is_the_largest_have_none_after_them() {
    let folder = tempfile::tempdir().unwrap();
    for attempt in ["a", "b"] {
        let name = format!("events_{}_{attempt}", u64::MAX);
        fs::copy(small(""), folder.path().join(name)).unwrap();
    }
    let logs = files::logs(folder.path(), &|| false).unwrap().logs;
    let [log] = logs.as_slice() else {
        panic!("{logs:?}");
    };
    assert_eq!((log.files.len(), log.gaps), (2, true));
}

#[test]
fn a_signal_ends_the_search_for_logs_and_their_identification() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..5 {
        let name = format!("app-{number}");
        fs::copy(small(""), folder.path().join(name)).unwrap();
    }
    let asked = std::cell::Cell::new(0);
    let after = |times| {
        asked.set(0);
        let asked = &asked;
        move || asked.replace(asked.get() + 1) >= times
    };
    let logs = files::logs(folder.path(), &after(2)).unwrap().logs;
    assert_eq!((logs.len(), asked.get()), (2, 3));

    let logs = files::logs(folder.path(), &|| false).unwrap().logs;
    for times in 0..3 {
        let read = read_all(logs.clone(), EVERY, after(times), |_| {
            panic!("a log is read after the signal")
        });
        assert_eq!(read, Read::default());
        // Once more within a log, at most.
        assert!(asked.get() <= times + 2, "{}", asked.get());
    }
}

#[test]
fn a_bad_line_is_counted_and_an_outcome_that_it_may_have_told_is_unknown() {
    let plain = fs::read_to_string(small("")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small");
    let with = |broken: &str| {
        let lines = plain.lines().map(|line| match line.contains(broken) {
            true => &line[..line.len() / 2],
            false => line,
        });
        let lines: Vec<&str> = lines.collect();
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        read_with(EVERY, &[&path])
    };
    let nightly = "application_1700000000000_0001/1/nightly";

    let (reports, read) = with("SparkListenerExecutorAdded");
    assert_eq!((read.bad_lines, read.unread, read.logs), (1, 0, 1));
    let report = last(&reports, nightly);
    assert_eq!(report.status, TaskStatus::Succeed);
    let metrics = report.metrics.as_ref().unwrap();
    assert_eq!(metrics["brokenLines"], MetricValue::Long(1));

    // The end of the job of another group looks like this one's.
    let (reports, read) = with(r#"JobEnd","Job ID":1"#);
    assert_eq!(read.bad_lines, 1);
    assert_eq!(last(&reports, nightly).status, TaskStatus::Unknown);

    // Tasks end whose starts are lost.
    let (reports, read) = with("SparkListenerTaskStart");
    assert!(read.bad_lines > 0);
    for report in &reports {
        let jobs = report.progress.iter().flat_map(|it| &it.progress_info);
        let running = jobs.map(|job| job.running_tasks);
        let least = running.chain([report.engine.running_tasks]).min();
        assert!(least >= Some(0), "{report:?}");
    }
}

#[test]
fn a_replay_has_the_logs_times_and_counts_and_holds_no_secrets() {
    let reports = reports(&small("zstd"));
    let id = "application_1700000000000_0001/1";
    let exec_ids = [
        id.to_owned(),
        format!("{id}/00000000-0000-4000-8000-000000000002"),
        format!("{id}/nightly"),
    ];
    for exec_id in &exec_ids {
        let of_task = reports.iter().filter(|report| report.exec_id == *exec_id);
        let of_task: Vec<&TaskRunningInfo> = of_task.collect();
        assert!(of_task.len() > 1, "{exec_id}");
        assert!(
            of_task
                .iter()
                .zip(0..)
                .all(|(report, n)| report.sequence == n)
        );
        let (end, before) = of_task.split_last().unwrap();
        assert!(
            before
                .iter()
                .all(|report| report.status == TaskStatus::Running)
        );
        assert!(of_task.is_sorted_by_key(|report| report.reported_at));
        assert_eq!(end.reported_at, 1_700_000_012_500_000);
        assert_eq!(end.engine.instance, "node-0:7078");
        assert_eq!(
            (end.engine.user.as_str(), end.engine.ticket_id.as_str()),
            ("ada", id)
        );
        assert_eq!(end.job_id, "application_1700000000000_0001");
        let held = &end.resource.as_ref().unwrap().applications[&end.job_id];
        assert_eq!(
            (held.queue_cores, held.job_status.as_str()),
            (0, "COMPLETED")
        );
        assert_eq!(held.queue, "etl");
    }
    let held =
        &reports[0].resource.as_ref().unwrap().applications["application_1700000000000_0001"];
    assert_eq!((held.queue_cores, held.queue_instances), (4, 1));
    assert_eq!(held.queue_memory, (2_048 + 384) << 20);

    let nightly = last(&reports, &exec_ids[2]);
    assert_eq!(nightly.status, TaskStatus::Succeed);
    let progress = nightly.progress.as_ref().unwrap();
    assert_eq!(progress.progress, 1.0);
    let job = &progress.progress_info[0];
    assert_eq!(
        (job.total_tasks, job.succeed_tasks, job.failed_tasks),
        (6, 2, 0)
    );
    let metrics = nightly.metrics.as_ref().unwrap();
    let long = |name: &str| match metrics.get(name) {
        Some(MetricValue::Long(value)) => *value,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(
        (
            long("skippedTasks"),
            long("inputBytes"),
            long("outputBytes")
        ),
        (4, 2_000, 1_000)
    );
    assert_eq!(
        (long("shuffleReadBytes"), long("shuffleWriteBytes")),
        (60, 80)
    );
    assert_eq!((long("runTimeMs"), long("gcTimeMs")), (200, 10));
    assert_eq!(
        (long("memorySpilledBytes"), long("diskSpilledBytes")),
        (2, 4)
    );
    assert_eq!(long("application.completedTasks"), 4);
    assert_eq!(long("application.sqlExecutionsSucceeded"), 1);
    assert_eq!(long("application.exitCode"), 0);
    assert!(!metrics.contains_key("application.storageMemoryUsedBytes"));
    assert!(!metrics.contains_key("incomplete"));

    let ungrouped = last(&reports, &exec_ids[0]);
    assert_eq!(ungrouped.status, TaskStatus::Failed);
    let job = &ungrouped.progress.as_ref().unwrap().progress_info[0];
    assert_eq!(
        (job.total_tasks, job.succeed_tasks, job.failed_tasks),
        (3, 1, 1)
    );

    let stream = last(&reports, &exec_ids[1]);
    assert_eq!(
        (stream.status, &stream.progress),
        (TaskStatus::Succeed, &None)
    );
    let metrics = stream.metrics.as_ref().unwrap();
    for (name, value) in [
        ("batchId", 0),
        ("inputRows", 20),
        ("inputRowsTotal", 20),
        ("outputRows", 2),
        ("triggerMs", 350),
        ("watermarkLagMs", 284_500),
        ("stateRows", 3),
        ("stateBytes", 2_144),
        ("rowsDroppedByWatermark", 1),
        ("offsetsBehindMax", 5),
    ] {
        let name = format!("stream.{name}");
        let expected = match name.as_str() {
            "stream.watermarkLagMs" => 4_500,
            _ => value,
        };
        assert_eq!(metrics[&name], MetricValue::Long(expected), "{name}");
    }
    assert_eq!(
        metrics["stream.processedRowsPerSecond"],
        MetricValue::Double(57.1)
    );
    assert!(!metrics.contains_key("stream.inputRowsPerSecond"));
    assert_eq!(metrics["stream.active"], MetricValue::Boolean(false));

    let all = format!("{reports:?}");
    assert!(!all.contains("SECRET"), "{all}");
}

#[test]
fn at_the_end_only_each_task_is_reported_once_with_the_same_last_state() {
    let mut every = reports(&small(""));
    let (at_end, _) = read_with(Pace::AtEnd, &[&small("")]);
    every.drain(..every.len() - at_end.len());
    every.iter_mut().for_each(|report| report.sequence = 0);
    assert_eq!(every, at_end);
}

#[test]
fn a_log_without_an_end_is_unknown_unless_a_newer_attempt_or_a_failed_job_says_more() {
    let plain = fs::read_to_string(small("")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let without_end = plain
        .lines()
        .filter(|line| !line.contains("ApplicationEnd"));
    let first: Vec<&str> = without_end.collect();
    let first = first.join("\n") + "\n";
    let second = plain.replace(r#""App Attempt ID":"1""#, r#""App Attempt ID":"2""#);
    let second = second.replace("1700000000500", "1700000020500");
    fs::write(folder.path().join("a_1.inprogress"), &first).unwrap();
    let id = "application_1700000000000_0001";
    let (alone, _) = read_with(EVERY, &[folder.path()]);
    let ungrouped = last(&alone, &format!("{id}/1"));
    assert_eq!(ungrouped.status, TaskStatus::Unknown);
    let metrics = ungrouped.metrics.as_ref().unwrap();
    assert_eq!(metrics["incomplete"], MetricValue::Boolean(true));

    fs::write(folder.path().join("a_2"), second).unwrap();
    let (both, read) = read_with(EVERY, &[folder.path()]);
    assert_eq!((read.logs, read.unread), (2, 0));
    assert_eq!(last(&both, &format!("{id}/1")).status, TaskStatus::Failed);
    assert_eq!(
        last(&both, &format!("{id}/1/nightly")).status,
        TaskStatus::Unknown
    );
    assert_eq!(
        last(&both, &format!("{id}/2/nightly")).status,
        TaskStatus::Succeed
    );

    fs::copy(folder.path().join("a_2"), folder.path().join("copy")).unwrap();
    let (again, read) = read_with(EVERY, &[folder.path()]);
    assert_eq!((again, read.unread), (both, 1));
}

#[test]
fn a_rolled_log_is_one_log_with_its_files_in_order() {
    let plain = fs::read(small("")).unwrap();
    let expected = reports(&small(""));
    let parts: Vec<&[u8]> = plain.split_inclusive(|byte| *byte == b'\n').collect();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("eventlog_v2_app");
    fs::create_dir(&log).unwrap();
    fs::write(log.join("appstatus_app"), "").unwrap();
    fs::write(log.join(".events_1_app.crc"), "crc").unwrap();
    for (part, number) in parts.chunks(4).zip(1..) {
        fs::write(log.join(format!("events_{number}_app")), part.concat()).unwrap();
    }
    // Ten files: `10` is after `9`.
    assert_eq!(reports(folder.path()), expected);
    assert_eq!(reports(&log), expected);

    fs::remove_file(log.join("events_5_app")).unwrap();
    let (gap, read) = read_with(EVERY, &[&log]);
    assert_eq!(read.logs, 1);
    let incomplete = |report: &TaskRunningInfo| {
        let metrics = report.metrics.as_ref().unwrap();
        (
            metrics.contains_key("incomplete"),
            metrics.contains_key("compacted"),
        )
    };
    assert_eq!(incomplete(gap.last().unwrap()), (true, false));

    fs::rename(log.join("events_4_app"), log.join("events_5_app.compact")).unwrap();
    let (compacted, _) = read_with(EVERY, &[&log]);
    assert_eq!(incomplete(compacted.last().unwrap()), (false, true));

    let databricks = folder.path().join("databricks");
    fs::create_dir(&databricks).unwrap();
    let gz = |name: &str, part: &[&[u8]]| {
        let file = fs::File::create(databricks.join(name)).unwrap();
        let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &part.concat()).unwrap();
        encoder.finish().unwrap();
    };
    gz("eventlog-2023-11-14--22-00.gz", &parts[..10]);
    gz("eventlog-2023-11-14--23-00.gz", &parts[10..20]);
    fs::write(databricks.join("eventlog"), parts[20..].concat()).unwrap();
    assert_eq!(reports(&databricks), expected);
}

/// Log, Spark version, events, jobs started, succeeded, failed, completed stages, task ends, from the logs' SOURCES.md.
type Counted = (
    &'static str,
    &'static str,
    [u64; 5],
    &'static [(&'static str, i64)],
);

const COUNTED: &[Counted] = &[
    (
        "app-20161116163331-0000",
        "2.1.0-SNAPSHOT",
        [68, 1, 1, 0, 1],
        &[("ExceptionFailure", 8), ("Success", 16)],
    ),
    (
        "app-20200706201101-0003",
        "3.1.0-SNAPSHOT",
        [124, 3, 3, 0, 3],
        &[("Success", 48)],
    ),
    (
        "application_1553914137147_0018",
        "3.0.0-SNAPSHOT",
        [44, 3, 3, 0, 3],
        &[("Success", 6)],
    ),
    (
        "application_1628109047826_1317105",
        "3.1.1.119",
        [52, 1, 1, 0, 1],
        &[("Success", 4), ("TaskKilled", 1)],
    ),
    (
        "eventlog_4nodes_8cores_dynamic_alloc.zstd",
        "3.2.1",
        [665, 20, 20, 0, 20],
        &[("Success", 235)],
    ),
    (
        "local-1422981780767",
        "",
        [82, 3, 2, 1, 4],
        &[("ExceptionFailure", 1), ("Success", 31)],
    ),
    (
        "local-1426533911241",
        "",
        [24, 1, 1, 0, 1],
        &[("Success", 8)],
    ),
    (
        "local-1426633911242",
        "",
        [24, 1, 1, 0, 1],
        &[("Success", 8)],
    ),
    (
        "local-1430917381534",
        "1.4.0-SNAPSHOT",
        [231, 1, 1, 0, 2],
        &[("Success", 110)],
    ),
    (
        "local-1642039451826",
        "3.3.0-SNAPSHOT",
        [115, 6, 6, 0, 6],
        &[("Success", 35)],
    ),
    (
        "local-1776286786993.zstd",
        "4.1.0",
        [274, 23, 22, 1, 23],
        &[("ExceptionFailure", 11), ("Success", 40), ("TaskKilled", 1)],
    ),
    (
        "eventlog_v2_spark-bcec39f6201b42b9925124595baad260",
        "3.5.3",
        [16, 1, 1, 0, 1],
        &[("Success", 2)],
    ),
];

#[test]
fn logs_of_real_applications_give_their_counts() {
    let Some(shared) = shared() else {
        return;
    };
    for (name, version, [events, started, succeeded, failed, stages], task_ends) in COUNTED {
        let logs = files::logs(&shared.join("event-logs").join(name), &|| false)
            .unwrap()
            .logs;
        let [log] = logs.as_slice() else {
            panic!("{name}: {logs:?}");
        };
        let mut replay = Replay::new(&log.name(), EVERY);
        for file in &log.files {
            let cut = read_file(&file.path, &mut replay, &mut |_| Ok(())).unwrap();
            assert!(!cut, "{name}");
        }
        let task_ends = task_ends.iter();
        let expected = Counts {
            events: *events,
            jobs_started: *started,
            jobs_succeeded: *succeeded,
            jobs_failed: *failed,
            stages_completed: *stages,
            task_ends: task_ends
                .map(|(reason, n)| ((*reason).to_owned(), *n))
                .collect(),
        };
        assert_eq!(replay.counts, expected, "{name}");
        assert_eq!(
            replay.version.as_deref().unwrap_or_default(),
            *version,
            "{name}"
        );
        assert!(replay.ended && replay.broken_lines == 0, "{name}");

        // What is reported adds up to the same.
        let reports = replay.end(Ending::default());
        let sum = |metric: &str| {
            let metrics = reports.iter().filter_map(|report| report.metrics.as_ref());
            metrics.fold(0, |sum, metrics| match metrics[metric] {
                MetricValue::Long(n) => sum + n as u64,
                _ => sum,
            })
        };
        assert_eq!(sum("jobsSucceeded"), *succeeded, "{name}");
        assert_eq!(sum("jobsFailed") + sum("jobsCancelled"), *failed, "{name}");
        let jobs = reports.iter().filter_map(|report| report.progress.as_ref());
        let jobs: Vec<_> = jobs.flat_map(|progress| &progress.progress_info).collect();
        assert_eq!(jobs.len() as u64, *started, "{name}");
        assert!(
            reports.iter().all(|report| report.status.is_final()),
            "{name}"
        );
    }
}

/// What a History Server answers about the same logs (Spark's own expectations).
#[test]
fn jobs_are_what_a_history_server_answers_for_the_same_log() {
    let Some(shared) = shared() else {
        return;
    };
    for (log, answer) in [
        ("local-1422981780767", "job_list_json_expectation.json"),
        (
            "local-1426533911241",
            "job_list_from_multi_attempt_app_json_1__expectation.json",
        ),
    ] {
        let answer = fs::read(shared.join("rest").join(answer)).unwrap();
        let mut jobs: Vec<Job> = serde_json::from_slice(&answer).unwrap();
        jobs.sort_by_key(|job| job.job_id);
        let reports = reports(&shared.join("event-logs").join(log));
        let end = reports.last().unwrap();
        let told = end.progress.as_ref().unwrap().progress_info.iter();
        let told: Vec<_> = told
            .map(|job| {
                let counts = [
                    job.total_tasks,
                    job.running_tasks,
                    job.failed_tasks,
                    job.succeed_tasks,
                ];
                (job.id.clone(), counts.map(i64::from))
            })
            .collect();
        let answered: Vec<_> = jobs
            .iter()
            .map(|job| {
                let counts = [
                    job.num_tasks,
                    job.num_active_tasks,
                    job.num_failed_tasks,
                    job.num_completed_tasks,
                ];
                (job.job_id.to_string(), counts)
            })
            .collect();
        assert_eq!(told, answered, "{log}");
        let skipped: i64 = jobs.iter().map(|job| job.num_skipped_tasks).sum();
        let metrics = end.metrics.as_ref().unwrap();
        assert_eq!(metrics["skippedTasks"], MetricValue::Long(skipped), "{log}");
    }

    let answer = fs::read(shared.join("rest/stage_list_json_expectation.json")).unwrap();
    let stages: Vec<Value> = serde_json::from_slice(&answer).unwrap();
    let sum = |name: &str| {
        stages
            .iter()
            .filter_map(|stage| stage[name].as_i64())
            .sum::<i64>()
    };
    let reports = reports(&shared.join("event-logs/local-1422981780767"));
    let metrics = reports.last().unwrap().metrics.as_ref().unwrap();
    for (metric, field) in [
        ("inputBytes", "inputBytes"),
        ("outputBytes", "outputBytes"),
        ("shuffleReadBytes", "shuffleReadBytes"),
        ("shuffleWriteBytes", "shuffleWriteBytes"),
        ("runTimeMs", "executorRunTime"),
        ("memorySpilledBytes", "memoryBytesSpilled"),
    ] {
        assert_eq!(metrics[metric], MetricValue::Long(sum(field)), "{metric}");
    }
}

/// A log of `jobs` jobs without tasks, each in a group of its own, or in one that all have.
fn many_jobs(jobs: i64, group: impl Fn(i64) -> String) -> String {
    let mut log = String::new();
    let mut add = |line: Value| log += &format!("{line}\n");
    // serde_json sorts the fields: the event's name is not the first, as in Spark's logs.
    add(serde_json::json!({
        "Event": "SparkListenerApplicationStart", "App ID": "app", "Timestamp": 1, "User": "ada",
    }));
    for id in 0..jobs {
        let time = 1_000 * id + 1;
        add(serde_json::json!({
            "Event": "SparkListenerJobStart", "Job ID": id, "Submission Time": time, "Stage Infos": [],
            "Stage IDs": [], "Properties": {"spark.jobGroup.id": group(id)},
        }));
        add(serde_json::json!({
            "Event": "SparkListenerJobEnd", "Job ID": id, "Completion Time": time + 500,
            "Job Result": {"Result": "JobSucceeded"},
        }));
    }
    log
}

fn replayed(log: &str) -> (Replay, Vec<TaskRunningInfo>) {
    let mut replay = Replay::new("app", EVERY);
    let mut reports = Vec::new();
    for line in log.lines() {
        reports.extend(take(line.as_bytes(), &mut replay).unwrap());
    }
    (replay, reports)
}

#[test]
fn reports_stay_few_beside_the_log_however_many_jobs_and_groups_it_has() {
    for groups in [1, 3_000] {
        let log = many_jobs(3_000, |id| format!("group-{}", id % groups));
        let (mut replay, reports) = replayed(&log);
        assert!(reports.len() > 5, "{}", reports.len());
        let entries = reports.iter().filter_map(|report| report.progress.as_ref());
        let entries: usize = entries.map(|progress| progress.progress_info.len()).sum();
        // What the last reports cost may be more than what is left of the log.
        let paid = reports.len().saturating_sub(groups as usize);
        assert!(paid * 2_048 < log.len(), "{}", reports.len());
        assert!(entries.saturating_sub(3_000) * 512 < log.len(), "{entries}");
        let end = replay.end(Ending::default());
        assert_eq!(end.len() as i64, groups);
    }
}

#[test]
fn a_stream_lasts_though_the_jobs_of_others_displace_its_own() {
    let run = "00000000-0000-4000-8000-000000000003";
    let started = format!(
        r#"{{"Event":"org.apache.spark.sql.streaming.StreamingQueryListener$QueryStartedEvent","id":"q","runId":"{run}","name":null,"timestamp":""}}"#
    );
    let log = many_jobs(12_000, |id| match id {
        0 => run.to_owned(),
        _ => "statement".to_owned(),
    });
    let (start, rest) = log.split_once('\n').unwrap();
    let log = format!("{start}\n{started}\n{rest}");
    let (mut replay, reports) = replayed(&log);
    let stream = format!("app/{run}");
    let of_stream = |report: &&TaskRunningInfo| report.exec_id == stream;
    let before: Vec<_> = reports.iter().filter(of_stream).collect();
    assert!(
        before
            .iter()
            .all(|report| report.status == TaskStatus::Running)
    );
    let end = replay.end(Ending::default());
    let last = end.iter().find(of_stream).unwrap();
    assert_eq!(last.sequence as usize, before.len());
    let metrics = last.metrics.as_ref().unwrap();
    assert_eq!(metrics["stream.active"], MetricValue::Boolean(true));
    assert_eq!(metrics["jobsSucceeded"], MetricValue::Long(1));
}

#[test]
fn of_a_file_with_two_applications_the_first_is_read_and_the_second_refused_by_name() {
    let first = fs::read_to_string(small("")).unwrap();
    let second = first.replace("application_1700000000000_0001", "application_2");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("both");
    fs::write(&path, first + &second).unwrap();
    let (both, read) = read_with(EVERY, &[&path]);
    assert_eq!(both, reports(&small("")));
    assert_eq!((read.logs, read.unread), (1, 1));

    let mut replay = Replay::new("both", EVERY);
    let read = read_file(&path, &mut replay, &mut |_| Ok(()));
    let fault = read.unwrap_err().to_string();
    assert!(
        fault.contains("begins another application, application_2/1"),
        "{fault}"
    );
}

#[test]
fn negative_amounts_are_left_out_and_the_others_stay() {
    let plain = fs::read_to_string(small("")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small");
    let with = |from: &str, to: &str| {
        let changed = plain.replace(from, to);
        assert_ne!(changed, plain, "{from}");
        fs::write(&path, changed).unwrap();
        reports(&path)
    };
    for (field, metrics) in [
        (r#""Bytes Read":"#, ["inputBytes", "application.inputBytes"]),
        (r#""JVM GC Time":"#, ["gcTimeMs", "application.gcTimeMs"]),
        (
            r#""Local Bytes Read":"#,
            ["shuffleReadBytes", "application.shuffleReadBytes"],
        ),
    ] {
        let reports = with(field, &format!("{field}-"));
        let nightly = last(&reports, "application_1700000000000_0001/1/nightly");
        let found = nightly.metrics.as_ref().unwrap();
        for metric in metrics {
            assert_eq!(found.get(metric), None, "{metric}");
        }
        assert_eq!(found["runTimeMs"], MetricValue::Long(200));
    }
}

#[test]
fn what_is_not_a_log_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    for (text, expected) in [
        ("", "holds no event: Spark has not written one yet"),
        (
            "{\n  \"name\": \"a package\"\n}\n",
            "is not a Spark event log: no event is among its first lines",
        ),
        (
            "{\"Event\":\"SparkListenerLogStart\",\"Spark Version\":\"4.0.0\"}\n",
            "holds no event with a time",
        ),
    ] {
        fs::write(&path, text).unwrap();
        let mut replay = Replay::new("file", EVERY);
        read_file(&path, &mut replay, &mut |_| Ok(())).unwrap();
        let why = why_no_report(&replay);
        assert!(why.starts_with(expected), "{why}");
        let (reports, read) = read_with(EVERY, &[&path]);
        assert_eq!((reports.len(), read.logs, read.unread), (0, 0, 1));
    }

    // Of a long one, the first lines are enough to know.
    let line = "{\"level\":\"info\",\"message\":\"started\"}\n";
    fs::write(&path, line.repeat(100_000)).unwrap();
    let mut replay = Replay::new("file", EVERY);
    let read = read_file(&path, &mut replay, &mut |_| Ok(()));
    assert!(matches!(read, Err(Fault::Stopped(Halt::NotALog))));
    assert_eq!(replay.broken_lines, LINES_BEFORE_EVENT as u64);
}
