//! Logs that grow → reports, without Kafka.
//!
//! Long because each way in which a log, or what its path holds, can change has its test here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;
use schemas::{TaskRunningInfo, TaskStatus};

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
        // As it is stored.
        let stored = step.checkpoint.to_bytes();
        self.checkpoint = Some(Checkpoint::from_bytes(&stored).unwrap());
        self.reports.extend(step.reports);
    }

    fn start(&self, folder: &Path) -> Reading {
        Reading::new(
            "app",
            false,
            &log(folder),
            PACE,
            self.checkpoint.clone(),
            true,
        )
    }

    fn read(&mut self, reading: &mut Reading, folder: &Path) -> Turn {
        let mut buffer = reader::buffer();
        loop {
            let turned = reading.turn(&log(folder), false, 1, &mut buffer, &mut |step| {
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
    let unknown = |report: &&TaskRunningInfo| report.status == TaskStatus::Unknown;
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
    assert_eq!(topic.read(&mut reading, folder.path()), Turn::Moved);
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
    let mut other = Reading::new("app", false, &log, Pace::Every(50), sent, true);
    topic.read(&mut other, folder.path());
    topic.conclude(other);
    topic.assert_no_number_twice();
}

/// What was sent, by all runs so far.
#[derive(Debug, Default)]
struct Sent {
    reports: Vec<TaskRunningInfo>,
    checkpoints: BTreeMap<String, Checkpoint>,
}

impl Sent {
    fn take(&mut self, step: Step) {
        self.checkpoints.insert(step.key, step.checkpoint);
        self.reports.extend(step.reports);
    }

    /// What a process knows that begins now.
    fn index(&self) -> Arc<Index> {
        let index = Index::default();
        for (key, checkpoint) in &self.checkpoints {
            index.insert(key.clone(), checkpoint.clone(), 0);
        }
        Arc::new(index)
    }

    /// The reports of an application, whose numbers have to be 0, 1, 2 … in each exec task.
    fn of(&self, id: &str) -> Vec<TaskRunningInfo> {
        let of_application = |report: &&TaskRunningInfo| report.exec_id.starts_with(id);
        let reports: Vec<_> = self
            .reports
            .iter()
            .filter(of_application)
            .cloned()
            .collect();
        let mut next: BTreeMap<&str, i64> = BTreeMap::new();
        for report in &reports {
            let next = next.entry(&report.exec_id).or_default();
            assert_eq!(report.sequence, *next, "{}", report.exec_id);
            *next += 1;
        }
        reports
    }

    /// The last status of each exec task of an application.
    fn last(&self, id: &str) -> Vec<TaskStatus> {
        let mut last: BTreeMap<String, TaskStatus> = BTreeMap::new();
        for report in self.of(id) {
            last.insert(report.exec_id, report.status);
        }
        last.into_values().collect()
    }

    fn has_only(&self, id: &str, is_so: impl Fn(TaskStatus) -> bool) -> bool {
        let last = self.last(id);
        !last.is_empty() && last.into_iter().all(is_so)
    }
}

fn manner(give_up_after: Duration) -> Manner {
    Manner {
        pace: PACE,
        poll_interval: Duration::from_millis(20),
        give_up_after,
        until_ended: true,
        sources: 1,
    }
}

const NEVER: Duration = Duration::from_secs(3_600);
const SOON: Duration = Duration::from_secs(1);
const WAIT: Duration = Duration::from_secs(60);

/// Sources that are followed.
struct Run {
    stops: Vec<mpsc::Sender<()>>,
    given: mpsc::Receiver<Step>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Run {
    /// Each of the paths is a source.
    fn start(index: &Arc<Index>, paths: &[&Path], manner: Manner) -> Self {
        let (mut stops, mut threads) = (Vec::new(), Vec::new());
        let (give, given) = mpsc::channel();
        for (number, path) in paths.iter().enumerate() {
            let source = Source::new(number, vec![path.to_path_buf()], manner, index.clone());
            let (stop, stopped) = mpsc::channel();
            let give = give.clone();
            stops.push(stop);
            threads.push(thread::spawn(move || {
                source.follow(&stopped, &mut |step| give.send(step).map_err(|_| Stopped));
            }));
        }
        Self {
            stops,
            given,
            threads,
        }
    }

    /// Takes what is sent until that is so.
    fn until(&self, sent: &mut Sent, what: &str, is_so: impl Fn(&Sent) -> bool) {
        let until = Instant::now() + WAIT;
        while !is_so(sent) {
            match self.given.recv_timeout(until - Instant::now()) {
                Ok(step) => sent.take(step),
                Err(error) => panic!("{what}: {error}, after {:#?}", sent.reports),
            }
        }
    }

    /// Takes what is sent until it ends by itself.
    fn end(self, sent: &mut Sent) {
        let until = Instant::now() + WAIT;
        loop {
            match self.given.recv_timeout(until - Instant::now()) {
                Ok(step) => sent.take(step),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("goes on, after {:#?}", sent.reports),
            }
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
    }

    /// As a signal does.
    fn stop(mut self, sent: &mut Sent) {
        self.stops.clear();
        self.end(sent);
    }
}

/// Follows the logs at a path until all applications have ended; of so many sources, which share the memory, this is one.
/// `each` gets every step.
fn follow_to_the_end(
    index: &Arc<Index>,
    path: &Path,
    sources: usize,
    mut each: impl FnMut(&Step),
) -> Vec<TaskRunningInfo> {
    let manner = Manner {
        sources,
        ..manner(NEVER)
    };
    let run = Run::start(index, &[path], manner);
    let mut sent = Sent::default();
    let until = Instant::now() + WAIT;
    while let Ok(step) = run.given.recv_timeout(until - Instant::now()) {
        each(&step);
        sent.take(step);
    }
    run.end(&mut sent);
    sent.reports
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
        &folder.path().join("a"),
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
    let reports = follow_to_the_end(&index, folder.path(), 512, |_| ());
    assert_eq!(ended(&reports), 4 * alone);
}

#[test]
fn a_log_whose_application_has_an_id_that_is_no_identifier_is_left_out_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let long = "x".repeat(3_000_000);
    application(&folder.path().join("a"), &long);
    application(&folder.path().join("b"), "application_1");
    let index = Arc::new(Index::default());
    let reports = follow_to_the_end(&index, folder.path(), 1, |step| {
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
    let index = Arc::new(Index::default());
    let reports = follow_to_the_end(&index, &path, 1, |_| {
        if path.exists() {
            fs::rename(&path, files::complete(&path)).unwrap();
        }
    });
    assert!(ended(&reports) > 0);
    // Nothing is left to send after a restart.
    let restarted = Arc::new(Index::default());
    let checkpoint = index.checkpoint("application_1/1").unwrap();
    restarted.insert("application_1/1".to_owned(), checkpoint, 0);
    assert_eq!(follow_to_the_end(&restarted, &path, 1, |_| ()), []);
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

const FIRST: &str = "application_1700000000000_0001";
const SECOND: &str = "application_1700000000000_0002";

/// How a path comes to hold another log.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// It is a symbolic link, which leads to another file.
    Link,
    /// Another file is renamed to it.
    Rename,
    /// Its file is written anew, and becomes longer.
    Overwrite,
    /// Its file is cut, and then written anew.
    Cut,
}

impl Way {
    /// Puts a log at the path, of this many jobs; `end` says whether its application ends. It looks as if it had been
    /// written some time ago.
    fn put(self, path: &Path, store: &Path, id: &str, jobs: usize, end: bool) -> PathBuf {
        let mut lines = lines(jobs);
        if !end {
            lines.pop();
        }
        let text = lines.concat().replace(FIRST, id);
        let file = store.join(format!("{id}-{jobs}-{end}"));
        fs::write(&file, &text).unwrap();
        match self {
            Self::Link => {
                let link = store.join("link");
                std::os::unix::fs::symlink(&file, &link).unwrap();
                fs::rename(link, path).unwrap();
            }
            Self::Rename => {
                let copy = store.join("copy");
                fs::copy(&file, &copy).unwrap();
                fs::rename(copy, path).unwrap();
            }
            Self::Overwrite => {
                let mut options = fs::OpenOptions::new();
                let mut at_path = options.write(true).create(true).truncate(false).open(path);
                let at_path = at_path.as_mut().unwrap();
                assert!(at_path.metadata().unwrap().len() < text.len() as u64);
                std::io::Write::write_all(at_path, text.as_bytes()).unwrap();
            }
            Self::Cut => fs::write(path, &text).unwrap(),
        }
        let at_path = fs::File::options().append(true).open(path).unwrap();
        let before = SystemTime::now() - Duration::from_secs(10);
        at_path.set_modified(before).unwrap();
        file
    }
}

#[test]
fn a_path_that_comes_to_hold_another_applications_log_is_identified_anew_also_after_a_restart() {
    let is_final = |status: TaskStatus| status.is_final();
    let is_unknown = |status| status == TaskStatus::Unknown;
    let check = |way: Way, restarts: bool, is_named: bool| {
        let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("current");
        let followed = match is_named {
            true => path.as_path(),
            false => folder.path(),
        };
        // Applications come and go at the path: it is followed until the end of the test.
        let never_ends = Manner {
            until_ended: false,
            ..manner(SOON)
        };
        let mut sent = Sent::default();
        let start = |sent: &Sent| Run::start(&sent.index(), &[followed], never_ends);
        let jobs = match way {
            Way::Cut => [120, 90, 120],
            _ => [30, 60, 90],
        };

        // With a restart, nobody looks while the path changes.
        let change = |run: Run, sent: &mut Sent, id, jobs| {
            if restarts {
                run.stop(sent);
                let file = way.put(&path, store.path(), id, jobs, true);
                return (start(sent), file);
            }
            let file = way.put(&path, store.path(), id, jobs, true);
            (run, file)
        };

        way.put(&path, store.path(), FIRST, jobs[0], false);
        let run = start(&sent);
        run.until(&mut sent, "the first is reported", |sent| {
            !sent.of(FIRST).is_empty()
        });
        let (run, second) = change(run, &mut sent, SECOND, jobs[1]);
        run.until(&mut sent, "the second ends", |sent| {
            sent.has_only(SECOND, is_final)
        });
        if !restarts {
            run.until(&mut sent, "the first is given up", |sent| {
                sent.has_only(FIRST, is_unknown)
            });
        }
        assert_eq!(sent.of(SECOND), whole(&second), "{way:?}");
        assert!(sent.checkpoints[&format!("{SECOND}/1")].concluded);
        assert!(!sent.checkpoints[&format!("{FIRST}/1")].concluded);

        // The first is there again, and has gone on.
        let (run, _) = change(run, &mut sent, FIRST, jobs[2]);
        run.until(&mut sent, "the first ends", |sent| {
            sent.has_only(FIRST, is_final)
        });
        run.stop(&mut sent);
        assert_eq!(sent.of(SECOND), whole(&second), "{way:?}");
    };
    thread::scope(|scope| {
        for way in [Way::Link, Way::Rename, Way::Overwrite, Way::Cut] {
            for (restarts, is_named) in [(false, false), (false, true), (true, false), (true, true)]
            {
                scope.spawn(move || check(way, restarts, is_named));
            }
        }
    });
}

#[test]
fn a_file_that_is_written_anew_shows_also_where_its_length_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let text = lines(40).concat();
    let path = folder.path().join("app");
    fs::write(&path, &text).unwrap();
    let mut topic = Topic::default();
    let mut reading = topic.start(folder.path());
    assert_eq!(topic.read(&mut reading, folder.path()), Turn::AtEnd);
    assert_eq!(topic.read(&mut reading, folder.path()), Turn::AtEnd);
    let before = topic.reports.len();
    fs::write(&path, text.replace(FIRST, SECOND)).unwrap();
    assert_eq!(topic.read(&mut reading, folder.path()), Turn::Moved);
    assert_eq!(topic.reports.len(), before);
}

#[test]
fn a_log_that_became_another_ones_between_being_identified_and_read_gives_no_report() {
    let folder = tempfile::tempdir().unwrap();
    let path = grown(folder.path(), &lines(40));
    let key = identify(log(folder.path()), &|| false).unwrap().key;
    fs::write(&path, lines(40).concat().replace(FIRST, SECOND)).unwrap();
    let log = log(folder.path());
    let mut reading = Reading::new(&key, true, &log, PACE, None, true);
    let turned = reading.turn(&log, false, usize::MAX, &mut reader::buffer(), &mut |_| {
        panic!("a report of another application")
    });
    assert_eq!(turned.unwrap(), Turn::Mistaken);
    assert!(!reading.is_caught_up());
}

/// Makes a log go from its path; a folder beside it is there for that.
type Go = fn(&Path, &Path);

#[test]
fn a_log_that_has_gone_or_cannot_be_opened_is_given_up_and_everything_ends() {
    let ways: [(&str, Go); 4] = [
        ("removed", |path, _| fs::remove_file(path).unwrap()),
        ("moved away", |path, store| {
            fs::rename(path, store.join("away")).unwrap();
        }),
        ("replaced by a folder", |path, _| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("a link to itself", |path, _| {
            fs::remove_file(path).unwrap();
            std::os::unix::fs::symlink(path, path).unwrap();
        }),
    ];
    let check = |name: &str, go: Go, is_named: bool| {
        let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let path = folder.path().join("app");
        Way::Rename.put(&path, store.path(), FIRST, 40, false);
        let followed = match is_named {
            true => path.as_path(),
            false => folder.path(),
        };
        let mut sent = Sent::default();
        let run = Run::start(&sent.index(), &[followed], manner(SOON));
        run.until(&mut sent, name, |sent| !sent.reports.is_empty());
        go(&path, store.path());
        run.end(&mut sent);
        let is_unknown = |status| status == TaskStatus::Unknown;
        assert!(sent.has_only(FIRST, is_unknown), "{name}: {sent:#?}");
    };
    thread::scope(|scope| {
        for (name, go) in ways {
            for is_named in [false, true] {
                scope.spawn(move || check(name, go, is_named));
            }
        }
    });
}

/// It may hold the application's end.
#[test]
fn a_log_that_cannot_be_read_to_its_end_is_given_up_and_not_concluded_by_a_newer_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let rolled = folder.path().join("eventlog_v2_app_1");
    fs::create_dir(&rolled).unwrap();
    roll(&rolled, &lines(60), 40);
    let unread = rolled.join("events_2_app");
    fs::remove_file(&unread).unwrap();
    std::os::unix::fs::symlink(&unread, &unread).unwrap();
    let newer = lines(20).concat();
    let newer = newer.replace(r#""App Attempt ID":"1""#, r#""App Attempt ID":"2""#);
    let newer = newer.replace(
        r#""Timestamp":1700000000500"#,
        r#""Timestamp":1700000000600"#,
    );
    fs::write(folder.path().join("app_2"), newer).unwrap();

    let mut sent = Sent::default();
    // Later than a newer attempt would conclude it.
    let give_up_after = Duration::from_secs(33);
    Run::start(&sent.index(), &[folder.path()], manner(give_up_after)).end(&mut sent);
    assert!(sent.checkpoints[&format!("{FIRST}/2")].concluded);
    let first = &sent.checkpoints[&format!("{FIRST}/1")];
    assert!(!first.concluded, "{first:?}");
}

#[test]
fn what_is_written_to_a_file_after_it_was_renamed_over_or_moved_is_reported() {
    let (folder, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = folder.path().join("app");
    let all = lines(60);
    let half = all[..all.len() / 2].concat();
    fs::write(&path, &half).unwrap();
    let mut sent = Sent::default();
    let run = Run::start(&sent.index(), &[folder.path()], manner(NEVER));
    run.until(&mut sent, "it is reported", |sent| !sent.reports.is_empty());
    // As a writer that has the file open.
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    Way::Rename.put(&path, store.path(), SECOND, 20, true);
    run.until(&mut sent, "the other one is reported", |sent| {
        !sent.of(SECOND).is_empty()
    });
    std::io::Write::write_all(&mut file, all[all.len() / 2..].concat().as_bytes()).unwrap();
    run.end(&mut sent);
    fs::write(store.path().join("whole"), all.concat()).unwrap();
    assert_eq!(sent.of(FIRST), whole(&store.path().join("whole")));
}

#[test]
fn a_log_goes_on_under_another_name_and_in_the_folder_of_another_source() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = lines(60);
    let append = |path: &Path, from: usize, to: usize| {
        let text = all[all.len() * from / 3..all.len() * to / 3].concat();
        let file = fs::OpenOptions::new().append(true).create(true).open(path);
        std::io::Write::write_all(&mut file.unwrap(), text.as_bytes()).unwrap();
    };
    let [first, second, third] = [
        folder.path().join("first"),
        folder.path().join("second"),
        other.path().join("third"),
    ];
    append(&first, 0, 1);
    let mut sent = Sent::default();
    let index = sent.index();
    let never_ends = Manner {
        until_ended: false,
        sources: 2,
        ..manner(NEVER)
    };
    let run = Run::start(&index, &[folder.path(), other.path()], never_ends);
    run.until(&mut sent, "it is reported", |sent| !sent.reports.is_empty());
    fs::rename(&first, &second).unwrap();
    append(&second, 1, 2);
    let before = sent.reports.len();
    run.until(&mut sent, "it goes on under another name", |sent| {
        sent.reports.len() > before
    });
    fs::rename(&second, &third).unwrap();
    append(&third, 2, 3);
    let is_final = |status: TaskStatus| status.is_final();
    run.until(&mut sent, "it ends in another folder", |sent| {
        sent.has_only(FIRST, is_final)
    });
    run.stop(&mut sent);
    assert_eq!(sent.of(FIRST), whole(&third));
    assert!(!index.is_at_fault());
}
