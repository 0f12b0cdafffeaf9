//! `producer spark-log`: logs on disk, reports in the topic.

use std::path::{Path, PathBuf};

use schemas::{MetricValue, TaskRunningInfo, TaskStatus};

use crate::support::{Reports, text};

fn small(suffix: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/event-logs");
    folder.join(format!("small{suffix}"))
}

fn sum(tasks: &[&TaskRunningInfo], metric: &str) -> i64 {
    let metrics = tasks.iter().filter_map(|task| task.metrics.as_ref());
    metrics
        .map(|metrics| match metrics.get(metric) {
            Some(MetricValue::Long(count)) => *count,
            other => panic!("{metric}: {other:?}"),
        })
        .sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_arrives_whole_and_in_order_and_a_dry_run_prints_the_same() {
    let Some(reports) = Reports::make("spark-log").await else {
        return;
    };
    let log = small(".zstd");
    let log = log.to_str().unwrap();
    let run = reports.run(&["spark-log", log], b"");
    assert!(run.status.success(), "{}", text(&run.stderr));
    let by_task = reports.by_task();
    let all: usize = by_task.values().map(Vec::len).sum();
    let account = format!("sent {all} reports of 3 tasks from 1 log\n");
    assert_eq!(text(&run.stdout), account);
    for told in by_task.values() {
        let sequences = told.iter().map(|report| report.sequence);
        assert!(sequences.eq(0..told.len() as i64), "{told:?}");
        let (last, before) = told.split_last().unwrap();
        assert!(last.status.is_final());
        assert!(
            before
                .iter()
                .all(|report| report.status == TaskStatus::Running)
        );
    }

    let dry = reports.run(&["spark-log", log, "--dry-run"], b"");
    assert!(dry.status.success(), "{}", text(&dry.stderr));
    assert_eq!(text(&dry.stdout).lines().count(), all);

    let published = reports.run(&["publish"], &dry.stdout);
    assert!(published.status.success(), "{}", text(&published.stderr));
    for (exec_id, told) in reports.by_task() {
        let (first, again) = told.split_at(told.len() / 2);
        assert_eq!(first, again, "{exec_id}");
    }
}

/// The counts of the logs' SOURCES.md, added up.
#[tokio::test(flavor = "multi_thread")]
async fn logs_of_real_applications_arrive_with_their_counts() {
    let logs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/inputs/spark/event-logs");
    if !logs.is_dir() {
        eprintln!("skipped: {} is absent", logs.display());
        return;
    }
    let Some(reports) = Reports::make("spark-log").await else {
        return;
    };
    let run = reports.run(&["spark-log", logs.to_str().unwrap(), "--at-end"], b"");
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(
        text(&run.stdout).contains(" from 12 logs"),
        "{}",
        text(&run.stdout)
    );
    let by_task = reports.by_task();
    let last: Vec<&TaskRunningInfo> = by_task.values().filter_map(|told| told.last()).collect();
    assert!(last.iter().all(|report| report.status.is_final()));
    let ended =
        sum(&last, "jobsSucceeded") + sum(&last, "jobsFailed") + sum(&last, "jobsCancelled");
    assert_eq!((sum(&last, "jobsSucceeded"), ended), (62, 64));
    assert_eq!(sum(&last, "killedTasks"), 2);
    assert_eq!(sum(&last, "failedTasks"), 8 + 1 + 11);
    let progress = last.iter().filter_map(|report| report.progress.as_ref());
    let jobs = progress.flat_map(|progress| &progress.progress_info);
    let succeeded: i32 = jobs.map(|job| job.succeed_tasks).sum();
    assert_eq!(
        succeeded,
        16 + 48 + 6 + 4 + 235 + 31 + 8 + 8 + 110 + 35 + 40 + 2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_and_files_are_named_and_the_rest_arrives() {
    let Some(reports) = Reports::make("spark-log").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let log = std::fs::read_to_string(small("")).unwrap();
    let bad = log.replacen("{\"Event\":\"SparkListenerTaskStart\"", "{\"Event\"\"", 1);
    std::fs::write(folder.path().join("app"), bad).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a log\n").unwrap();
    let run = reports.run(&["spark-log", folder.path().to_str().unwrap()], b"");
    let errors = text(&run.stderr);
    assert_eq!(run.status.code(), Some(2), "{errors}");
    let account = text(&run.stdout);
    assert!(
        account.ends_with(" of 3 tasks from 1 log, 1 bad line\n"),
        "{account}"
    );
    for expected in ["app line 11: ", "notes.txt is not a Spark event log"] {
        assert!(
            errors.contains(expected),
            "{expected:?} is not in:\n{errors}"
        );
    }
    assert_eq!(reports.by_task().len(), 3);

    let missing = reports.run(&["spark-log", "/no/such/log"], b"");
    assert_eq!(missing.status.code(), Some(2));
    assert!(text(&missing.stderr).contains("/no/such/log: No such file"));
}
