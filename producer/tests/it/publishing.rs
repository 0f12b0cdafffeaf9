//! `producer publish`: good lines arrive, bad ones are named.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Reports, text};
use schemas::{MetricValue, TaskRunningInfo};
use service::testing::{set_max_bytes, until};

const WITHIN: Duration = Duration::from_secs(60);

fn line(sequence: i64, more: &str) -> String {
    format!(
        r#"{{"execId":"exec-1","jobId":"job-1","engine":{{"instance":"node-1:1","engineType":"shell"}},"status":"Running","reportedAt":"2026-11-25T14:05:00.123456Z","sequence":{sequence}{more}}}"#
    )
}

fn sequences(reports: &[TaskRunningInfo]) -> Vec<i64> {
    reports.iter().map(|report| report.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_lines_are_named_by_number_and_field_and_their_neighbours_arrive() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let lone_surrogate = r#","resource":{"applications":{"a":{"queueMemory":1,"queueCores":1,"queueInstances":1,"jobStatus":"","queue":"a\ud83d"}}}"#;
    let mut input = Vec::new();
    let mut add = |line: &[u8]| {
        input.extend_from_slice(line);
        input.push(b'\n');
    };
    add(line(0, "").as_bytes());
    add(line(1, lone_surrogate).as_bytes());
    add(line(
        2,
        r#","progress":{"progress":"NaN"},"metrics":{"busy":"NaN"}"#,
    )
    .as_bytes());
    add(b"{\"execId\":\"\xff\"}");
    add(line(4, "").replace("\"Running\"", "\"Ruining\"").as_bytes());
    add(b"");
    add(line(
        6,
        &format!(",\"metrics\":{{\"note\":\"{}\"}}", "x".repeat(1 << 20)),
    )
    .as_bytes());
    add(line(7, "").replace("job-1", " ").as_bytes());
    input.extend_from_slice(line(8, "").as_bytes());

    let output = reports.run(&["publish", "--on-error", "skip"], &input);
    let errors = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert_eq!(text(&output.stdout), "sent 3 reports, 5 bad lines\n");
    for said in [
        "line 2: resource.applications[\"a\"].queue: ",
        "line 4: not UTF-8 at byte 12",
        "line 5: status: unknown variant `Ruining`",
        "line 7: longer than 1048576 bytes",
        "line 8: jobId: is blank",
    ] {
        assert!(errors.contains(said), "{said:?} is not in:\n{errors}");
    }
    let received = &reports.by_task()["exec-1"];
    assert_eq!(sequences(received), [0, 2, 8]);
    assert_eq!(received[0].reported_at % 1_000_000, 123_456);
    assert!(received[1].progress.as_ref().unwrap().progress.is_nan());
    let metrics = received[1].metrics.as_ref().unwrap();
    assert_eq!(metrics["busy"], MetricValue::String("NaN".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_line_stops_the_reading_and_what_came_before_it_is_delivered() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines = [line(0, ""), line(1, ""), "no JSON".to_owned(), line(3, "")];
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    let output = reports.run(&["publish", file.path().to_str().unwrap()], b"");
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "sent 2 reports, 1 bad line\n");
    let errors = text(&output.stderr);
    assert!(
        errors.contains("line 3: not JSON: expected ident at column 2"),
        "{errors}"
    );
    let go_on = format!("producer publish --from-line 3 {}", file.path().display());
    assert!(errors.contains(&go_on), "{errors}");
    assert_eq!(sequences(&reports.by_task()["exec-1"]), [0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_told_with_the_command_that_makes_it() {
    let Some(mut reports) = Reports::make("publishing").await else {
        return;
    };
    reports.topic += "-missing";
    let output = reports.run(&["publish"], line(0, "").as_bytes());
    assert_eq!(output.status.code(), Some(78));
    let errors = text(&output.stderr);
    assert!(errors.contains("--create --topic"), "{errors}");
}

/// Lines that each fit are many times what the topic takes in a batch.
#[tokio::test(flavor = "multi_thread")]
async fn where_batches_are_refused_only_the_line_that_cannot_fit_is_refused() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    set_max_bytes(&reports.bootstrap, &reports.topic, 50_000).await;
    let mut state = 88_172_645_463_325_252_u64;
    let mut words = |bytes: usize| -> String {
        let letters = (0..bytes).map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            char::from(b'a' + (state % 26) as u8)
        });
        let letters: String = letters.collect();
        format!(r#","metrics":{{"text":"{letters}"}}"#)
    };
    let fit: Vec<String> = (0..200).map(|i| line(i, &words(20_000))).collect();
    let published = reports.run(&["publish"], fit.join("\n").as_bytes());
    assert!(published.status.success(), "{}", text(&published.stderr));
    let mut arrived = sequences(&reports.by_task()["exec-1"]);
    arrived.sort_unstable();
    assert_eq!(arrived, (0..200).collect::<Vec<_>>());

    let large = [line(200, &words(20_000)), line(201, &words(200_000))];
    let published = reports.run(&["publish"], large.join("\n").as_bytes());
    assert_eq!(published.status.code(), Some(2));
    assert_eq!(text(&published.stdout), "sent 1 report, 1 bad line\n");
    let received = text(&published.stderr);
    let refused = format!(
        "line 2: the report has {} bytes in Avro, more than {} takes",
        avro_bytes(&large[1]),
        reports.topic
    );
    assert!(received.contains(&refused), "{received}");
    assert_eq!(reports.by_task()["exec-1"].len(), 201);
}

/// The topic takes less than it did when the program asked, so that a refusal comes when later lines are sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_refused_behind_later_ones_is_not_where_to_go_on() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let mut publish = Publish::start(&reports, &["-X", "compression.type=none"]);
    publish.write(&[line(0, "")]);
    reports.until_arrived(&[0]).await;
    set_max_bytes(&reports.bootstrap, &reports.topic, 50_000).await;
    let large = line_of(200_000, 1);
    let probe = line_of(200_000, 0).replace("exec-1", "exec-0");
    until("the broker refuses it", WITHIN, async || {
        let plain = ["publish", "-X", "compression.type=none"];
        let probed = reports.run(&plain, probe.as_bytes());
        (probed.status.code() == Some(2)).then_some(())
    })
    .await;
    publish.write(std::slice::from_ref(&large));
    let mut sequence = 1;
    until("the refusal is met by a later line", WITHIN, async || {
        sequence += 1;
        publish.write(&[line(sequence, "")]);
        publish.0.try_wait().unwrap()
    })
    .await;

    let (code, printed, errors) = publish.ended();
    assert_eq!(code, Some(2), "{errors}");
    let (_, stopped) = errors.split_once("stopped at line ").unwrap();
    let (last, _) = stopped.split_once(';').unwrap();
    let last: i64 = last.parse().unwrap();
    assert!(last > 2, "{errors}");
    let arrived: Vec<i64> = (0..last).filter(|sequence| *sequence != 1).collect();
    let account = format!("sent {} reports, 1 bad line\n", arrived.len());
    assert_eq!(printed, account, "{errors}");
    let refused = format!("line 2: the report has {} bytes", avro_bytes(&large));
    assert!(errors.contains(&refused), "{errors}");
    let go_on = format!(
        "stopped at line {last}; the good lines up to it are sent. To go on, give the same input with --from-line {};",
        last + 1
    );
    assert!(errors.contains(&go_on), "{errors}");
    let late = "refused after later lines were sent: line 2. Publish what was refused by itself";
    assert!(errors.contains(late), "{errors}");
    reports.until_arrived(&arrived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_sent_is_not_counted() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let mut publish = Publish::start(&reports, &["--from-line", "3"]);
    publish.write(&[line(0, ""), line(1, ""), line(2, ""), line(3, "")]);
    reports.until_arrived(&[2, 3]).await;
    publish.terminate();
    let (code, printed, errors) = publish.ended();
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(printed, "sent 2 reports, 0 bad lines\n");
    let counted = "stopped by a signal before line 5: acknowledged: 2 reports of standard input from line 3 on, among them";
    assert!(errors.contains(counted), "{errors}");
}

/// The program with a standard input that stays open.
struct Publish(Child);

impl Publish {
    fn start(reports: &Reports, arguments: &[&str]) -> Self {
        let arguments = [&["publish"], arguments].concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_producer"));
        command.args(reports.arguments(&arguments));
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// It may have ended.
    fn write(&mut self, lines: &[String]) {
        let text = lines.join("\n") + "\n";
        let input = self.0.stdin.as_mut().unwrap();
        let _ = input.write_all(text.as_bytes());
    }

    fn terminate(&self) {
        let id = self.0.id().to_string();
        let killed = Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(killed.success());
    }

    /// Exit code, standard output and standard error, when it ends with its input still open.
    fn ended(mut self) -> (Option<i32>, String, String) {
        let _input = self.0.stdin.take();
        let output = self.0.wait_with_output().unwrap();
        let (printed, errors) = (text(&output.stdout), text(&output.stderr));
        (output.status.code(), printed, errors)
    }
}

impl Reports {
    /// Waits until these reports of exec-1 are in the topic, in any order.
    async fn until_arrived(&self, expected: &[i64]) {
        until("the reports arrive", WITHIN, async || {
            let mut arrived = sequences(self.by_task().get("exec-1")?);
            arrived.sort_unstable();
            (arrived == expected).then_some(())
        })
        .await;
    }
}

/// Bytes of key and value of a line's record.
fn avro_bytes(line: &str) -> usize {
    let info: TaskRunningInfo = serde_json::from_str(line).unwrap();
    info.exec_id.len() + schemas::encode_info(&info).unwrap().len()
}

/// A line whose JSON has so many bytes.
fn line_of(bytes: usize, sequence: i64) -> String {
    let with = |text: &str| line(sequence, &format!(r#","metrics":{{"text":"{text}"}}"#));
    let line = with(&"x".repeat(bytes - with("").len()));
    assert_eq!(line.len(), bytes);
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_refused_for_its_size_is_a_bad_line_and_the_rest_goes_on() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    // Compression would make them small for the broker.
    let plain = ["-X", "compression.type=none"];
    let largest = line_of(1_048_576, 2);
    let bytes = avro_bytes(&largest);
    let input = [line(0, ""), line_of(1_000_000, 1), largest, line(3, "")].join("\n");
    let publish = |more: &[&str]| {
        let arguments = [&["publish"], &plain[..], more].concat();
        let output = reports.run(&arguments, input.as_bytes());
        let (code, errors) = (output.status.code(), text(&output.stderr));
        (code, text(&output.stdout), errors)
    };
    let mut arrived = Vec::new();
    let mut arrive = |expected: &[i64], errors: &str| {
        let all = sequences(&reports.by_task()["exec-1"]);
        arrived.extend_from_slice(expected);
        assert_eq!(all, arrived, "{errors}");
    };

    // The topic takes each of them.
    let (code, printed, errors) = publish(&[]);
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(printed, "sent 4 reports, 0 bad lines\n");
    arrive(&[0, 1, 2, 3], &errors);

    let (code, printed, errors) =
        publish(&["-X", "message.max.bytes=1000000", "--on-error", "skip"]);
    assert_eq!(code, Some(2), "{errors}");
    assert_eq!(printed, "sent 3 reports, 1 bad line\n");
    let refused = format!(
        "line 3: the report has {bytes} bytes in Avro, more than the producer's message.max.bytes takes"
    );
    assert!(errors.contains(&refused), "{errors}");
    arrive(&[0, 1, 3], &errors);

    set_max_bytes(&reports.bootstrap, &reports.topic, 1_000_500).await;
    let (code, printed, errors) = publish(&["--on-error", "skip"]);
    assert_eq!(code, Some(2), "{errors}");
    assert_eq!(printed, "sent 3 reports, 1 bad line\n");
    let refused = format!(
        "line 3: the report has {bytes} bytes in Avro, more than {} takes",
        reports.topic
    );
    assert!(errors.contains(&refused), "{errors}");
    arrive(&[0, 1, 3], &errors);

    // Nothing behind it is sent.
    let (code, printed, errors) = publish(&[]);
    assert_eq!(code, Some(2), "{errors}");
    assert_eq!(printed, "sent 2 reports, 1 bad line\n");
    arrive(&[0, 1], &errors);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_as_other_systems_write_it_is_read_or_named_for_what_it_is() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let publish = |name: &str, bytes: Option<&[u8]>| {
        let file = folder.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&file, bytes).unwrap();
        }
        let output = reports.run(
            &["publish", "--on-error", "skip", file.to_str().unwrap()],
            b"",
        );
        let printed = text(&output.stdout);
        (output.status.code(), printed, text(&output.stderr))
    };
    // A byte order mark, CRLF, and no line feed at the end.
    let text = format!("\u{FEFF}{}\r\n\r\n{}", line(0, ""), line(1, ""));
    let (code, printed, errors) = publish("windows.jsonl", Some(text.as_bytes()));
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(printed, "sent 2 reports, 0 bad lines\n");
    assert_eq!(sequences(&reports.by_task()["exec-1"]), [0, 1]);

    let utf_16: Vec<u8> = text
        .repeat(100)
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let (code, printed, errors) = publish("utf-16.jsonl", Some(&utf_16));
    assert_eq!(code, Some(2), "{errors}");
    assert_eq!(printed, "sent 0 reports, 1 bad line\n");
    let convert = format!(
        "{0} is UTF-16 text, not UTF-8 text: < {0} iconv -f UTF-16 -t UTF-8 | producer publish",
        folder.path().join("utf-16.jsonl").display()
    );
    assert_eq!(errors.matches(&convert).count(), 1, "{errors}");
    assert_eq!(errors.matches("ERROR").count(), 1, "{errors}");

    let (code, _, errors) = publish("reports.gz", Some(b"\x1F\x8B\x08\0"));
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("gzip -dc | producer publish"), "{errors}");

    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let (code, _, errors) = publish("folder", None);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("is a directory"), "{errors}");
    let (code, _, errors) = publish("missing", None);
    assert_eq!(code, Some(2), "{errors}");
    assert!(errors.contains("No such file"), "{errors}");
    assert_eq!(reports.by_task()["exec-1"].len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_for_each_report_says_how_to_number_them_and_one_run_numbers_them() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let unnumbered = line(0, "").replace(r#","sequence":0"#, "");
    let output = reports.run(&["publish"], unnumbered.as_bytes());
    let received = "`sequence` was left out: another run would count from 0 again";
    let log = text(&output.stderr);
    assert!(output.status.success() && log.contains(received), "{log}");
    for (input, expected) in [
        // Numbered by whoever calls.
        (line(1, ""), vec![0, 1]),
        // The last one ends the task.
        (
            [
                &unnumbered,
                &unnumbered,
                &unnumbered.replace("Running", "Succeed"),
            ]
            .map(String::as_str)
            .join("\n"),
            vec![0, 1, 0, 1, 2],
        ),
    ] {
        let output = reports.run(&["publish"], input.as_bytes());
        let log = text(&output.stderr);
        assert!(output.status.success() && !log.contains(received), "{log}");
        assert_eq!(sequences(&reports.by_task()["exec-1"]), expected);
    }
    // Lines that are not sent are counted all the same.
    let input = [unnumbered.as_str(), "no JSON", &unnumbered].join("\n");
    let output = reports.run(&["publish", "--from-line", "3"], input.as_bytes());
    assert_eq!(text(&output.stdout), "sent 1 report, 0 bad lines\n");
    assert_eq!(sequences(&reports.by_task()["exec-1"]).last(), Some(&1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_behind_the_end_is_told_and_nothing_is_said_of_what_was_not_sent() {
    let Some(reports) = Reports::make("publishing").await else {
        return;
    };
    let unnumbered = line(0, "").replace(r#","sequence":0"#, "");
    let input = [&unnumbered; 4].map(String::as_str).join("\n");
    for from_line in ["5", "99"] {
        let output = reports.run(&["publish", "--from-line", from_line], input.as_bytes());
        let log = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{log}");
        assert_eq!(text(&output.stdout), "sent 0 reports, 0 bad lines\n");
        let received = format!(
            "standard input has only 4 lines: nothing is left to publish from line {from_line} on"
        );
        assert!(
            log.contains(&received) && !log.contains("no final status"),
            "{log}"
        );
    }
    // Only a bad line is left.
    let input = format!("{unnumbered}\nno JSON");
    let arguments = ["publish", "--from-line", "2", "--on-error", "skip"];
    let output = reports.run(&arguments, input.as_bytes());
    let log = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert_eq!(text(&output.stdout), "sent 0 reports, 1 bad line\n");
    assert!(!log.contains("no final status"), "{log}");
}
