//! `producer publish`: good lines arrive, bad ones are named.

mod support;

use schemas::{MetricValue, TaskRunningInfo};
use service::testing::set_max_bytes;
use support::{Reports, text};

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
        "line 2: resource.applications.a.queue: ",
        "line 4: not UTF-8 at byte 12",
        "line 5: status: unknown variant `Ruining`",
        "line 7: longer than 1048576 bytes",
        "line 8: jobId: is blank",
    ] {
        assert!(errors.contains(said), "{said:?} is not in:\n{errors}");
    }
    let told = &reports.by_task()["exec-1"];
    assert_eq!(sequences(told), [0, 2, 8]);
    assert_eq!(told[0].reported_at % 1_000_000, 123_456);
    assert!(told[1].progress.as_ref().unwrap().progress.is_nan());
    let metrics = told[1].metrics.as_ref().unwrap();
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
    assert!(text(&output.stderr).contains("line 3: "));
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
    assert_eq!(published.status.code(), Some(1));
    let told = text(&published.stderr);
    assert!(told.contains("1 report not delivered to"), "{told}");
    assert_eq!(reports.by_task()["exec-1"].len(), 201);
}
