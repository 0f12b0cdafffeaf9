//! Logs that grow → reports, without Kafka.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use schemas::TaskRunningInfo;

use super::checkpoint::Checkpoint;
use super::index::Index;
use super::reading::{Reading, Step, Turn};
use super::source::{Manner, Source};
use crate::engines::spark_log::files;
use crate::engines::spark_log::reader;
use crate::engines::spark_log::replay::Pace;
use crate::engines::spark_log::tests::{read_with, small};
use crate::engines::spark_log::{BYTES_BEFORE_START, Stopped, identify};

const PACE: Pace = Pace::Every(1_000);

/// What reached the topic, and the checkpoint beside it.
#[derive(Default)]
struct Topic {
    reports: Vec<TaskRunningInfo>,
    checkpoint: Option<Checkpoint>,
}

impl Topic {
    fn take(&mut self, step: Step) {
        let checkpoint = step.checkpoint.map(|checkpoint| {
            // As it is stored.
            Checkpoint::from_bytes(&checkpoint.to_bytes()).unwrap()
        });
        self.checkpoint = checkpoint;
        self.reports.extend(step.reports);
    }

    fn start(&self, folder: &Path) -> Reading {
        Reading::new("app", &log(folder), PACE, self.checkpoint.clone(), true)
    }

    fn read(&mut self, reading: &mut Reading, folder: &Path) -> Turn {
        let mut buffer = reader::buffer();
        loop {
            let turned = reading.turn(&log(folder), 1, &mut buffer, &mut |step| {
                self.take(step);
                Ok(())
            });
            match turned.unwrap() {
                Turn::More => {}
                turn => return turn,
            }
        }
    }

    fn conclude(&mut self, reading: Reading) {
        reading
            .conclude(false, false, &mut |step| {
                self.take(step);
                Ok(())
            })
            .unwrap();
    }

    fn give_up(&mut self, reading: &mut Reading) {
        reading
            .give_up(false, &mut |step| {
                self.take(step);
                Ok(())
            })
            .unwrap();
    }

    fn assert_no_number_twice(&self) {
        let mut numbers: Vec<(&str, i64)> = self
            .reports
            .iter()
            .map(|report| (report.exec_id.as_str(), report.sequence))
            .collect();
        let all = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}

fn log(folder: &Path) -> files::Log {
    let mut logs = files::logs(folder, &|| false).unwrap().logs;
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs.remove(0)
}

fn whole(path: &Path) -> Vec<TaskRunningInfo> {
    read_with(PACE, &[path]).0
}

/// The lines of a log, of `jobs` jobs of two tasks in two groups.
fn lines(jobs: usize) -> Vec<String> {
    let plain = fs::read_to_string(small("")).unwrap();
    let (end, start): (Vec<&str>, Vec<&str>) = plain
        .lines()
        .partition(|line| line.contains("ApplicationEnd"));
    let mut lines: Vec<String> = start.iter().map(|line| format!("{line}\n")).collect();
    for job in 0..jobs {
        let at = 1_700_000_012_000 + 100 * job;
        let id = 1_000 + job;
        lines.push(format!(
            r#"{{"Event":"SparkListenerJobStart","Job ID":{id},"Submission Time":{at},"Stage Infos":[],"Stage IDs":[],"Properties":{{"spark.jobGroup.id":"group-{}"}}}}"#,
            job % 2
        ) + "\n");
        lines.push(format!(
            r#"{{"Event":"SparkListenerJobEnd","Job ID":{id},"Completion Time":{},"Job Result":{{"Result":"JobSucceeded"}}}}"#,
            at + 50
        ) + "\n");
    }
    lines.extend(end.iter().map(|line| format!("{line}\n")));
    lines
}

/// Writes the log's files as they are after this many lines, rolled after each `per_file`.
fn roll(folder: &Path, lines: &[String], per_file: usize) {
    for (number, lines) in (1..).zip(lines.chunks(per_file)) {
        fs::write(folder.join(format!("events_{number}_app")), lines.concat()).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn however_a_log_grows_and_whenever_it_is_read_again_the_reports_are_those_of_the_whole_log(
        codec in 0..6_usize,
        sizes in proptest::collection::vec((1..900_usize, any::<bool>()), 1..12),
    ) {
        let codec = ["", "zstd", "lz4", "snappy", "lzf", "gz"][codec];
        let bytes = fs::read(small(codec)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.inprogress");
        let mut topic = Topic::default();
        fs::write(&path, "").unwrap();
        let mut written = 0;
        fs::write(&path, &bytes[..1]).unwrap();
        let mut reading = topic.start(folder.path());
        for (size, restarts) in sizes.iter().cycle() {
            written = (written + size).min(bytes.len());
            let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
            let before = file.metadata().unwrap().len() as usize;
            std::io::Write::write_all(&mut file, &bytes[before..written.max(before)]).unwrap();
            if *restarts {
                reading = topic.start(folder.path());
            }
            prop_assert_eq!(topic.read(&mut reading, folder.path()), Turn::AtEnd);
            if written == bytes.len() {
                break;
            }
        }
        fs::rename(&path, folder.path().join("app")).unwrap();
        prop_assert_eq!(topic.read(&mut reading, folder.path()), Turn::AtEnd);
        prop_assert!(reading.has_ended());
        topic.conclude(reading);
        prop_assert_eq!(&topic.reports, &whole(&small(codec)), "{}", codec);
        prop_assert!(topic.checkpoint.unwrap().concluded);
    }

    #[test]
    fn a_rolled_log_gives_the_reports_of_the_whole_however_it_grows(
        per_file in 1..40_usize,
        steps in proptest::collection::vec((1..30_usize, any::<bool>()), 1..12),
    ) {
        let lines = lines(60);
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("eventlog_v2_app");
        fs::create_dir(&log).unwrap();
        let mut topic = Topic::default();
        let mut written = 1;
        roll(&log, &lines[..1], per_file);
        let mut reading = topic.start(&log);
        for (more, restarts) in steps.iter().cycle() {
            written = (written + more).min(lines.len());
            // A file that has been read has to keep its inode.
            for (number, lines) in (1..).zip(lines[..written].chunks(per_file)) {
                let path = log.join(format!("events_{number}_app"));
                let text = lines.concat();
                let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
                let before = file.metadata().unwrap().len() as usize;
                std::io::Write::write_all(&mut file, &text.as_bytes()[before..]).unwrap();
            }
            if *restarts {
                reading = topic.start(&log);
            }
            prop_assert_eq!(topic.read(&mut reading, &log), Turn::AtEnd);
            if written == lines.len() {
                break;
            }
        }
        topic.conclude(reading);
        prop_assert_eq!(&topic.reports, &whole(&log));
    }
}

fn grown(folder: &Path, lines: &[String]) -> PathBuf {
    let path = folder.join("app");
    fs::write(&path, lines.concat()).unwrap();
    path
}

#[test]
fn an_application_that_was_given_up_goes_on_with_the_next_numbers_also_after_a_restart() {
    let lines = lines(40);
    let folder = tempfile::tempdir().unwrap();
    let mut topic = Topic::default();
    grown(folder.path(), &lines[..60]);
    let mut reading = topic.start(folder.path());
    topic.read(&mut reading, folder.path());
    topic.give_up(&mut reading);
    let given_up = topic.reports.len();
    // Once only.
    topic.give_up(&mut reading);
    let mut again = topic.start(folder.path());
    topic.read(&mut again, folder.path());
    topic.give_up(&mut again);
    assert_eq!(topic.reports.len(), given_up);

    grown(folder.path(), &lines);
    let mut again = topic.start(folder.path());
    topic.read(&mut again, folder.path());
    topic.conclude(again);
    let mut by_task: BTreeMap<&str, Vec<&TaskRunningInfo>> = BTreeMap::new();
    for report in &topic.reports {
        by_task.entry(&report.exec_id).or_default().push(report);
    }
    for (exec_id, reports) in by_task {
        let numbers = reports.iter().map(|report| report.sequence);
        assert!(numbers.eq(0..reports.len() as i64), "{exec_id}");
        let (last, before) = reports.split_last().unwrap();
        assert!(last.status.is_final(), "{exec_id}");
        assert!(before.iter().all(|report| !report.status.is_final()));
    }
    let unknown = |report: &&TaskRunningInfo| report.status == schemas::TaskStatus::Unknown;
    assert!(
        topic.reports[..given_up]
            .iter()
            .any(|report| unknown(&report))
    );
}

#[test]
fn of_a_log_that_is_compacted_meanwhile_no_number_comes_twice_and_the_end_comes() {
    let lines = lines(60);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("eventlog_v2_app");
    fs::create_dir(&log).unwrap();
    let mut topic = Topic::default();
    let half = lines.len() / 2;
    roll(&log, &lines[..half], 20);
    let mut reading = topic.start(&log);
    assert_eq!(topic.read(&mut reading, &log), Turn::AtEnd);
    let before = topic.reports.len();
    assert!(before > 5);

    // The first two files become one, without the jobs that have ended.
    let kept = lines[..40].iter().filter(|line| !line.contains("Job"));
    let kept: Vec<&str> = kept.map(String::as_str).collect();
    fs::write(log.join("events_2_app.compact"), kept.concat()).unwrap();
    fs::write(log.join("events_1_app.compact.inprogress"), "{").unwrap();
    fs::remove_file(log.join("events_1_app")).unwrap();
    fs::remove_file(log.join("events_2_app")).unwrap();
    // A reader that is behind them goes on; another one begins again.
    assert_eq!(topic.read(&mut reading, &log), Turn::AtEnd);
    assert_eq!(topic.reports.len(), before);
    let mut again = topic.start(&log);
    assert_eq!(topic.read(&mut again, &log), Turn::AtEnd);
    topic.assert_no_number_twice();

    roll(&log, &lines, 20);
    fs::remove_file(log.join("events_1_app")).unwrap();
    fs::remove_file(log.join("events_2_app")).unwrap();
    assert_eq!(topic.read(&mut again, &log), Turn::AtEnd);
    assert!(again.has_ended());
    topic.conclude(again);
    topic.assert_no_number_twice();
    assert!(topic.reports.len() > before);
    assert!(topic.reports.last().unwrap().status.is_final());
}

#[test]
fn a_log_that_is_shorter_than_before_repeats_nothing_and_goes_on_once_it_is_longer() {
    let lines = lines(40);
    let folder = tempfile::tempdir().unwrap();
    let mut topic = Topic::default();
    grown(folder.path(), &lines[..80]);
    let mut reading = topic.start(folder.path());
    topic.read(&mut reading, folder.path());
    let before = topic.reports.len();

    grown(folder.path(), &lines[..20]);
    assert_eq!(topic.read(&mut reading, folder.path()), Turn::Again(None));
    let mut again = topic.start(folder.path());
    assert_eq!(topic.read(&mut again, folder.path()), Turn::AtEnd);
    topic.give_up(&mut again);
    assert_eq!(topic.reports.len(), before);

    // The same log again.
    let path = grown(folder.path(), &lines);
    let mut again = topic.start(folder.path());
    topic.read(&mut again, folder.path());
    topic.conclude(again);
    assert_eq!(topic.reports, whole(&path));
}

#[test]
fn other_options_after_a_restart_use_no_number_twice() {
    let lines = lines(40);
    let folder = tempfile::tempdir().unwrap();
    let mut topic = Topic::default();
    grown(folder.path(), &lines[..60]);
    let mut reading = topic.start(folder.path());
    topic.read(&mut reading, folder.path());
    grown(folder.path(), &lines);
    let log = log(folder.path());
    let sent = topic.checkpoint.clone();
    let mut other = Reading::new("app", &log, Pace::Every(50), sent, true);
    topic.read(&mut other, folder.path());
    topic.conclude(other);
    topic.assert_no_number_twice();
}

/// Follows the logs at these paths until all applications have ended; of so many sources, which share the memory, this is
/// one. `each` gets every step.
fn follow_to_the_end(
    index: &Arc<Index>,
    paths: Vec<PathBuf>,
    sources: usize,
    mut each: impl FnMut(&Step) + Send + 'static,
) -> Vec<TaskRunningInfo> {
    let manner = Manner {
        pace: PACE,
        poll_interval: Duration::from_millis(50),
        give_up_after: Duration::from_secs(3_600),
        until_ended: true,
        sources,
    };
    let source = Source::new(0, paths, manner, index.clone());
    let (stop, stopped) = mpsc::channel();
    let (give, given) = mpsc::channel();
    let thread = thread::spawn(move || {
        source.follow(&stopped, &mut |step| {
            each(&step);
            give.send(step).map_err(|_| Stopped)
        });
    });
    let mut reports = Vec::new();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match given.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(step) => reports.extend(step.reports),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                drop(stop);
                thread.join().unwrap();
                panic!("goes on, after {reports:?}");
            }
        }
    }
    thread.join().unwrap();
    reports
}

/// Writes the small log as another application's.
fn application(path: &Path, id: &str) {
    let text = fs::read_to_string(small("")).unwrap();
    fs::write(path, text.replace("application_1700000000000_0001", id)).unwrap();
}

fn ended(reports: &[TaskRunningInfo]) -> usize {
    let is_final = |report: &&TaskRunningInfo| report.status.is_final();
    reports.iter().filter(is_final).count()
}

#[test]
fn logs_that_had_to_make_room_before_their_ends_were_certain_are_concluded_too() {
    let folder = tempfile::tempdir().unwrap();
    application(&folder.path().join("a"), "application_1");
    let index = Arc::new(Index::default());
    let alone = ended(&follow_to_the_end(
        &index,
        vec![folder.path().join("a")],
        1,
        |_| (),
    ));
    assert!(alone > 0);

    for number in 2..6 {
        application(
            &folder.path().join(format!("log-{number}")),
            &format!("application_{number}"),
        );
    }
    // With so many sources, each has one log in memory.
    let reports = follow_to_the_end(&index, vec![folder.path().to_owned()], 512, |_| ());
    assert_eq!(ended(&reports), 4 * alone);
}

#[test]
fn a_log_whose_application_has_an_id_that_is_no_identifier_is_left_out_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(3_000_000);
    application(&folder.path().join("a"), &long);
    application(&folder.path().join("b"), "application_1");
    let index = Arc::new(Index::default());
    let reports = follow_to_the_end(&index, vec![folder.path().to_owned()], 1, |step| {
        assert_eq!(step.key, "application_1/1");
    });
    assert!(ended(&reports) > 0);
    assert!(index.is_at_fault());
    assert!(index.is_free(&format!("{long}/1")));
}

#[test]
fn a_file_that_is_named_itself_goes_on_under_the_name_of_the_complete_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.inprogress");
    application(&path, "application_1");
    let named = vec![path.clone()];
    let index = Arc::new(Index::default());
    let reports = follow_to_the_end(&index, named.clone(), 1, move |_| {
        if path.exists() {
            fs::rename(&path, files::complete(&path)).unwrap();
        }
    });
    assert!(ended(&reports) > 0);
    // Nothing is left to send after a restart.
    let restarted = Arc::new(Index::default());
    let checkpoint = index.checkpoint("application_1/1").unwrap();
    restarted.insert("application_1/1".to_owned(), checkpoint, 0);
    assert_eq!(follow_to_the_end(&restarted, named, 1, |_| ()), []);
}

#[test]
fn a_long_file_without_line_feeds_is_not_read_whole_to_find_its_application() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("junk");
    fs::write(&path, r#"{"Event":"x"#).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let known = |bytes: usize| {
        file.set_len(bytes as u64).unwrap();
        identify(log(folder.path()), &|| false).unwrap()
    };
    assert!(!known(BYTES_BEFORE_START / 2).is_certain);
    // It would take hours.
    assert!(known(BYTES_BEFORE_START * 10_000).is_certain);
}
