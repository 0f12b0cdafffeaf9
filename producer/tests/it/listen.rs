//! `producer listen`: what is acknowledged is in the topic, and every other report is named in the answer.
//!
//! Long because each kind of wrong request, and each fault of Kafka and of clients, is tested over a socket.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::HeaderMap;
use schemas::TaskStatus;
use serde_json::{Value, json};
use service::testing::stopping::BlockableProxy;
use service::testing::{ANY_PORT, NOBODY, Process, service, set_max_bytes, until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::Reports;

const WITHIN: Duration = Duration::from_secs(60);
const RECEIVES: &str = "receiving reports on ";
const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

/// A running `producer listen`; killed when dropped.
pub(crate) struct Listening {
    pub(crate) process: Process,
    client: reqwest::Client,
    /// As in `http://127.0.0.1:8090`.
    pub(crate) origin: String,
    _folder: TempDir,
}

#[derive(Debug)]
struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Listening {
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut all = vec!["listen"];
        if !arguments.iter().any(|argument| argument.contains(":0")) {
            all.push(ANY_PORT);
        }
        all.extend(arguments);
        all.extend(["--metrics-listen", ANY_PORT]);
        let program = Path::new(env!("CARGO_BIN_EXE_producer"));
        let mut process = Process::start(folder.path(), "listen", program, &all);
        let origin = until("it listens", WITHIN, async || {
            process.assert_running();
            let log = process.log();
            let (_, rest) = log.split_once(RECEIVES)?;
            Some(rest.split_once('\n')?.0.trim().to_owned())
        })
        .await;
        Self {
            process,
            client: reqwest::Client::new(),
            origin,
            _folder: folder,
        }
    }

    /// One that writes to the topic, once it is ready.
    async fn to(reports: &Reports, more: &[&str]) -> Self {
        let mut listening = Self::start(&reports.arguments(more)).await;
        listening.until_ready().await;
        listening
    }

    pub(crate) async fn until_ready(&mut self) {
        let process = &mut self.process;
        until("it is ready", WITHIN, async || {
            process.assert_running();
            process.get("/readyz").filter(|(status, _)| *status == 200)
        })
        .await;
    }

    fn request(
        &self,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        self.to_path("/api/v1/reports", content_type, body)
    }

    fn to_path(
        &self,
        path: &str,
        content_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> reqwest::RequestBuilder {
        self.client
            .post(format!("{}{path}", self.origin))
            .header("content-type", content_type)
            .body(body)
    }

    async fn post(&self, content_type: &str, body: impl Into<reqwest::Body>) -> Answered {
        answered(self.request(content_type, body)).await
    }

    /// Sends a request as bytes, and returns everything that comes back until the server closes.
    async fn raw(&self, request: &[u8]) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn connect(&self) -> TcpStream {
        let address = self.origin.split_once("//").unwrap().1;
        TcpStream::connect(address).await.unwrap()
    }

    fn metric(&self, line: &str) -> bool {
        let (_, metrics) = self.process.get("/metrics").unwrap();
        metrics.lines().any(|found| found == line)
    }

    pub(crate) async fn stop(self) -> String {
        let Self { mut process, .. } = self;
        process.assert_running();
        process.signal("TERM");
        assert_eq!(process.ended().await.code(), Some(0));
        process.log()
    }
}

async fn answered(request: reqwest::RequestBuilder) -> Answered {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    let body = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let answered = Answered {
        status,
        headers,
        body,
    };
    let is_problem = status != 200;
    let content_type = if is_problem {
        "application/problem+json"
    } else {
        JSON
    };
    assert_eq!(answered.headers["content-type"], content_type);
    if is_problem {
        assert_eq!(answered.body["status"], status, "{answered:?}");
        let code = StatusCode::from_u16(status).unwrap();
        assert_eq!(answered.body["title"], code.canonical_reason().unwrap());
    }
    answered
}

fn report(task: &str, sequence: usize) -> Value {
    json!({
        "execId": task, "jobId": "job-1", "status": "Running", "sequence": sequence,
        "engine": {"instance": "node-1:1", "engineType": "test"},
    })
}

fn with_text(task: &str, sequence: usize, bytes: usize) -> Value {
    let mut report = report(task, sequence);
    // Random, because the topic's limit is about compressed batches.
    let mut state = 88_172_645_463_325_252_u64 + sequence as u64;
    let letters = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    });
    let text: String = letters.collect();
    report["metrics"] = json!({ "text": text });
    report
}

fn lines(reports: &[Value]) -> String {
    reports.iter().map(|report| format!("{report}\n")).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// A request as a client writes it, with a report of `exec-1`.
fn request(sequence: usize) -> String {
    let body = report("exec-1", sequence).to_string();
    let length = body.len();
    format!(
        "POST /api/v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// The sequences of a task's reports in the topic, in the order of their offsets.
fn sequences(reports: &Reports, task: &str) -> Vec<i64> {
    let mut tasks = reports.by_task();
    let received = tasks.remove(task).unwrap_or_default();
    received.iter().map(|report| report.sequence).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_report_an_array_and_lines_are_answered_when_kafka_has_them() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let ok = |count: usize| json!({"received": count, "acknowledged": count});
    let pretty = serde_json::to_string_pretty(&report("exec-1", 0)).unwrap();
    let one = listening.post(JSON, pretty).await;
    assert_eq!((one.status, &one.body), (200, &ok(1)));
    // The answer came after the acknowledgement.
    assert_eq!(sequences(&reports, "exec-1"), [0]);
    let array = json!([
        report("exec-1", 1),
        report("exec-2", 0),
        report("exec-1", 2)
    ]);
    let array = listening.post(JSON, array.to_string()).await;
    assert_eq!((array.status, &array.body), (200, &ok(3)));
    let text = lines(&[report("exec-1", 3), report("exec-1", 4)]);
    let sent = listening.post(LINES, text).await;
    assert_eq!((sent.status, &sent.body), (200, &ok(2)));
    let compressed = gzip(lines(&[report("exec-1", 5), report("exec-1", 6)]).as_bytes());
    let sent = listening
        .request(LINES, compressed)
        .header("content-encoding", "gzip");
    let sent = answered(sent).await;
    assert_eq!((sent.status, &sent.body), (200, &ok(2)));
    let none = listening.post(JSON, "[]").await;
    assert_eq!((none.status, &none.body), (200, &ok(0)));
    assert_eq!(sequences(&reports, "exec-1"), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(sequences(&reports, "exec-2"), [0]);

    assert!(listening.metric(
        r#"taskrunning_received_reports_total{http_route="/api/v1/reports",result="acknowledged"} 8"#
    ));
    assert!(listening.metric(
        r#"http_server_request_duration_seconds_count{http_request_method="POST",http_route="/api/v1/reports",http_response_status_code="200"} 5"#
    ));
    assert!(listening.metric("taskrunning_reports_waiting 0"));
    let log = listening.stop().await;
    assert!(log.contains("sent 8 reports, 0 refused"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_report_of_a_batch_is_named_with_its_fields_and_its_neighbours_arrive() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let mut wrong = report("exec-1", 2);
    wrong["status"] = json!("Ruining");
    wrong["jobId"] = json!(" ");
    let mut unnumbered = report("exec-1", 3);
    unnumbered.as_object_mut().unwrap().remove("sequence");
    let twice = report("exec-1", 4)
        .to_string()
        .replacen('{', r#"{"sequence":5,"#, 1);
    let body = [
        report("exec-1", 0).to_string(),
        "no JSON".to_owned(),
        wrong.to_string(),
        unnumbered.to_string(),
        twice,
        with_text("exec-1", 5, 1 << 20).to_string(),
        report("exec-1", 6).to_string(),
    ];
    let sent = listening.post(LINES, body.join("\n")).await;
    assert_eq!(sent.status, 200, "{sent:?}");
    assert_eq!(sent.body["received"], 7);
    assert_eq!(sent.body["acknowledged"], 2);
    let failed = sent.body["failed"].as_array().unwrap();
    let indices = failed
        .iter()
        .map(|failed| failed["index"].as_u64().unwrap());
    assert_eq!(indices.collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(failed.iter().all(|failed| failed["retriable"] == false));
    let detail = |at: usize| failed[at]["detail"].as_str().unwrap();
    assert!(detail(0).starts_with("not JSON: "), "{sent:?}");
    let fields = failed[1]["errors"].as_array().unwrap();
    let fields = fields.iter().map(|error| error["field"].as_str().unwrap());
    assert_eq!(fields.collect::<Vec<_>>(), ["status", "jobId"]);
    assert_eq!(
        detail(2),
        "sequence: is missing: number the reports of each execId 0, 1, 2 …"
    );
    assert_eq!(detail(3), "sequence: is given twice");
    assert_eq!(detail(4), "it is longer than 1048576 bytes");
    assert_eq!(sequences(&reports, "exec-1"), [0, 6]);

    let alone = listening.post(JSON, wrong.to_string()).await;
    assert_eq!(alone.status, 400);
    assert_eq!(alone.body["failed"][0]["errors"], failed[1]["errors"]);
    let none = listening.post(JSON, json!([wrong, 1]).to_string()).await;
    assert_eq!((none.status, &none.body["acknowledged"]), (400, &json!(0)));
    let log = listening.stop().await;
    assert!(
        log.contains("127.0.0.1 sends reports that are refused, because of "),
        "{log}"
    );
    assert!(log.contains("sent 2 reports, 8 refused"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_request_has_its_answer_and_the_next_one_is_served() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let good = report("exec-1", 0).to_string();
    let large = with_text("exec-1", 0, 1 << 20).to_string();
    let unknown = large.replace("\"metrics\"", "\"metric\"");
    let many = vec![json!(1); 10_001];
    for (status, content_type, encoding, body) in [
        (400, JSON, "identity", Vec::new()),
        (400, LINES, "identity", b"\n\n".to_vec()),
        (400, JSON, "identity", b"{\"execId\":\"\xff\"}".to_vec()),
        (400, JSON, "identity", b"[\"\xff\"]".to_vec()),
        (400, JSON, "identity", b"[".repeat(1 << 20)),
        (400, JSON, "identity", b"{\"a\":".repeat(200_000)),
        (
            400,
            JSON,
            "identity",
            unknown.as_bytes()[..600_000].to_vec(),
        ),
        (400, JSON, "identity", gzip(good.as_bytes())),
        (400, JSON, "gzip", good.clone().into_bytes()),
        (400, JSON, "gzip", gzip(good.as_bytes())[..40].to_vec()),
        (413, JSON, "identity", large.clone().into_bytes()),
        (413, JSON, "identity", json!(many).to_string().into_bytes()),
        (413, JSON, "identity", vec![b' '; (16 << 20) + 1]),
        (413, JSON, "gzip", gzip(&vec![b' '; 100 << 20])),
        (415, "text/plain", "identity", good.clone().into_bytes()),
        (415, JSON, "br", good.clone().into_bytes()),
    ] {
        let request = listening
            .request(content_type, body.clone())
            .header("content-encoding", encoding);
        let sent = answered(request).await;
        let beginning = String::from_utf8_lossy(&body[..body.len().min(40)]);
        assert_eq!(
            sent.status, status,
            "{content_type} {encoding} {beginning:?}: {sent:?}"
        );
        assert!(!sent.headers.contains_key("retry-after"));
        assert!(
            sent.body["detail"].as_str().unwrap().len() < 1_000,
            "{sent:?}"
        );
    }
    let client = &listening.client;
    let (origin, path) = (&listening.origin, "/api/v1/reports");
    let sent = answered(client.get(format!("{origin}{path}"))).await;
    assert_eq!(
        (sent.status, &sent.headers["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let sent = answered(client.post(format!("{origin}/api/v1/report"))).await;
    assert_eq!(sent.status, 404);
    let foreign = listening
        .request(JSON, good.clone())
        .header("host", "evil.example");
    assert_eq!(answered(foreign).await.status, 421);
    // An unknown length, in chunks.
    let chunked = "POST /api/v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let chunk = format!("{:x}\r\n{good}\r\n0\r\n\r\n", good.len());
    let answer = listening.raw(format!("{chunked}{chunk}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    // A chunked body that ends early.
    let mut stream = listening.connect().await;
    stream.write_all(chunked.as_bytes()).await.unwrap();
    stream.write_all(b"ff\r\n{").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(sequences(&reports, "exec-1"), [0]);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_tokens_report_and_their_names_are_logged_but_never_they() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    // The checksums of `secret` and of `other`.
    let [secret, other] = [
        "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
        "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa",
    ];
    std::fs::write(&file, format!("# engines\nsha256:{secret} airflow\n")).unwrap();
    let file_name = file.to_str().unwrap();
    let more = ["0.0.0.0:0", "--tokens", file_name, "--log-level", "debug"];
    let mut listening = Listening::to(&reports, &more).await;
    listening.origin = listening.origin.replace("0.0.0.0", "127.0.0.1");
    let mut sequence = 0;
    let mut status = async |token: Option<&str>| {
        let body = report("exec-1", sequence).to_string();
        sequence += 1;
        let mut request = listening.request(JSON, body);
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let sent = answered(request).await;
        if sent.status == 401 {
            let challenge = &sent.headers["www-authenticate"];
            assert_eq!(challenge, "Bearer realm=\"taskrunning\"");
        }
        sent.status
    };
    for (token, expected) in [
        (None, 401),
        (Some("Bearer other"), 401),
        (Some("Basic secret"), 401),
        (Some("Bearer secre"), 401),
        (Some("Bearer secret"), 200),
    ] {
        assert_eq!(status(token).await, expected, "{token:?}");
    }
    // A client that waits for 100 (Continue) is refused before it sends the body.
    let refused = listening
        .raw(
            b"POST /api/v1/reports HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
              Content-Length: 1000\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(refused.starts_with("HTTP/1.1 401 "), "{refused}");

    std::fs::write(&file, format!("sha256:{other} dagster\n")).unwrap();
    until("the file is read again", WITHIN, async || {
        (status(Some("Bearer other")).await == 200).then_some(())
    })
    .await;
    assert_eq!(status(Some("Bearer secret")).await, 401);
    let bad = listening.request(JSON, "{}").bearer_auth("other");
    assert_eq!(answered(bad).await.status, 400);
    let log = listening.stop().await;
    assert!(
        log.contains("dagster sends reports that are refused, because of "),
        "{log}"
    );
    assert!(log.contains("bearer tokens are sent unencrypted"), "{log}");
    for hidden in ["Bearer secret", "Bearer other", secret, other] {
        assert!(!log.contains(hidden), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_kafka_does_not_answer_requests_are_503_and_afterwards_200() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let topic = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let soon = [
        "-X",
        "message.timeout.ms=2000",
        "-X",
        "socket.timeout.ms=1000",
    ];
    let mut listening = Listening::start(&[&topic[..], &soon].concat()).await;
    listening.until_ready().await;
    assert_eq!(
        listening
            .post(JSON, report("exec-1", 0).to_string())
            .await
            .status,
        200
    );
    proxy.block();
    let mut wrong = report("exec-1", 9);
    wrong["status"] = json!(1);
    let batch = json!([report("exec-1", 1), wrong, report("exec-2", 0)]);
    let away = listening.post(JSON, batch.to_string()).await;
    assert_eq!(away.status, 503, "{away:?}");
    assert_eq!(away.headers["retry-after"], "5");
    let failed = away.body["failed"].as_array().unwrap();
    let retriable = failed
        .iter()
        .map(|failed| failed["retriable"].as_bool().unwrap());
    assert_eq!(retriable.collect::<Vec<_>>(), [true, false, true]);
    proxy.open();
    until("reports are acknowledged again", WITHIN, async || {
        let sent = listening.post(JSON, report("exec-3", 0).to_string()).await;
        (sent.status == 200).then_some(())
    })
    .await;
    // Reports that were given up do not arrive later.
    let arrived = sequences(&reports, "exec-1");
    assert_eq!(
        listening
            .post(JSON, report("exec-1", 2).to_string())
            .await
            .status,
        200
    );
    assert_eq!(sequences(&reports, "exec-1"), [&arrived[..], &[2]].concat());
    let log = listening.stop().await;
    assert!(log.contains("Kafka takes reports again"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_kafka_has_answered_requests_are_503_and_a_signal_ends_it() {
    let listening = Listening::start(&["--bootstrap-servers", NOBODY]).await;
    let away = listening.post(JSON, report("exec-1", 0).to_string()).await;
    assert_eq!(
        (away.status, &away.headers["retry-after"]),
        (503, &"5".parse().unwrap())
    );
    assert_eq!(listening.process.get("/readyz").unwrap().0, 503);
    assert_eq!(listening.process.get("/livez").unwrap().0, 200);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_429_and_no_report_overtakes_one_that_found_no_room() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let topic = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let small = [
        "-X",
        "queue.buffering.max.messages=10",
        "-X",
        "message.timeout.ms=2000",
    ];
    let mut listening = Listening::start(&[&topic[..], &small].concat()).await;
    listening.until_ready().await;
    proxy.block();
    let batch: Vec<Value> = (0..50).map(|i| report("exec-1", i)).collect();
    let full = listening.post(LINES, lines(&batch)).await;
    assert_eq!(full.status, 429, "{full:?}");
    assert_eq!(full.headers["retry-after"], "1");
    let failed = full.body["failed"].as_array().unwrap();
    assert_eq!(failed.len(), 50);
    assert!(failed.iter().all(|failed| failed["retriable"] == true));
    assert_eq!(failed[20]["detail"], "the queue to Kafka is full");
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_larger_than_the_topic_takes_is_named_and_its_neighbours_arrive() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    // Known when the program starts.
    set_max_bytes(&reports.bootstrap, &reports.topic, 50_000).await;
    let listening = Listening::to(&reports, &[]).await;
    let batch: Vec<Value> = (0..20)
        .map(|i| with_text("exec-1", i, if i == 7 { 200_000 } else { 20_000 }))
        .collect();
    let sent = listening.post(LINES, lines(&batch)).await;
    assert_eq!(
        (sent.status, &sent.body["acknowledged"]),
        (200, &json!(19)),
        "{sent:?}"
    );
    let failed = sent.body["failed"].as_array().unwrap();
    assert_eq!((failed.len(), &failed[0]["index"]), (1, &json!(7)));
    let detail = failed[0]["detail"].as_str().unwrap();
    assert!(detail.contains("report less at once"), "{detail}");
    let alone = listening.post(JSON, batch[7].to_string()).await;
    assert_eq!(alone.status, 413, "{alone:?}");

    // Lowered while it runs: whole batches are refused, and their reports sent again one by one.
    set_max_bytes(&reports.bootstrap, &reports.topic, 5_000).await;
    let batch: Vec<Value> = (20..60)
        .map(|i| with_text("exec-1", i, if i == 30 { 10_000 } else { 1_000 }))
        .collect();
    let sent = listening.post(LINES, lines(&batch)).await;
    assert_eq!(
        (sent.status, &sent.body["acknowledged"]),
        (200, &json!(39)),
        "{sent:?}"
    );
    assert_eq!(sent.body["failed"][0]["index"], 10);
    let mut arrived = sequences(&reports, "exec-1");
    arrived.sort_unstable();
    let expected: Vec<i64> = (0..60).filter(|i| ![7, 30].contains(i)).collect();
    assert_eq!(arrived, expected);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_on_their_way_are_followed_although_their_client_goes_away_and_half_a_request_is_none()
 {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let topic = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let soon = ["-X", "socket.timeout.ms=1000"];
    let mut listening = Listening::start(&[&topic[..], &soon].concat()).await;
    listening.until_ready().await;
    // A connection is used again.
    let mut kept = listening.connect().await;
    for sequence in 0..3 {
        kept.write_all(request(sequence).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\"acknowledged\":1}") {
            assert_ne!(kept.read_buf(&mut answer).await.unwrap(), 0);
        }
    }
    let mut half = listening.connect().await;
    let whole = request(3);
    let most = &whole.as_bytes()[..whole.len() - 20];
    half.write_all(most).await.unwrap();
    drop(half);
    proxy.block();
    let mut gone = listening.connect().await;
    gone.write_all(request(3).as_bytes()).await.unwrap();
    until("it is on its way", WITHIN, async || {
        listening
            .metric("taskrunning_reports_waiting 1")
            .then_some(())
    })
    .await;
    drop(gone);
    proxy.open();
    until("it is acknowledged", WITHIN, async || {
        let acknowledged = r#"taskrunning_received_reports_total{http_route="/api/v1/reports",result="acknowledged"} 4"#;
        listening.metric(acknowledged).then_some(())
    })
    .await;
    assert!(listening.metric("taskrunning_reports_waiting 0"));
    assert_eq!(sequences(&reports, "exec-1"), [0, 1, 2, 3]);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_have_closed_their_sending_half_are_answered_once_kafka_has_their_reports() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let requests: String = (0..3).map(request).collect();
    let mut stream = listening.connect().await;
    stream.write_all(requests.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert_eq!(sequences(&reports, "exec-1"), [0, 1, 2]);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_ends_it_in_time_and_the_waiting_requests_are_answered() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let arguments = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let mut listening = Listening::start(&arguments).await;
    listening.until_ready().await;
    let first = listening.post(JSON, report("exec-1", 0).to_string()).await;
    assert_eq!(first.status, 200);
    proxy.block();
    let waiting = listening.request(JSON, report("exec-1", 1).to_string());
    let waiting = tokio::spawn(answered(waiting));
    until("it waits", WITHIN, async || {
        listening
            .metric("taskrunning_reports_waiting 1")
            .then_some(())
    })
    .await;
    let begun = Instant::now();
    let log = listening.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert!(!log.contains("not finished"), "{log}");
    assert_eq!(waiting.await.unwrap().status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_in_parallel_keep_their_order_and_a_server_that_is_killed_goes_on_after_its_restart()
 {
    const CLIENTS: usize = 16;
    const BATCHES: usize = 20;
    const BATCH: usize = 25;
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let clients = (0..CLIENTS).map(|client| {
        let batches = (0..BATCHES).map(|batch| {
            let numbers = batch * BATCH..(batch + 1) * BATCH;
            let batch: Vec<Value> = numbers
                .map(|sequence| report(&format!("exec-{client}"), sequence))
                .collect();
            listening.request(LINES, lines(&batch))
        });
        let batches: Vec<_> = batches.collect();
        tokio::spawn(async move {
            for batch in batches {
                let sent = answered(batch).await;
                assert_eq!(
                    (sent.status, &sent.body["acknowledged"]),
                    (200, &json!(BATCH))
                );
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    listening.process.kill();
    let listening = Listening::to(&reports, &[]).await;
    let next = report("exec-0", BATCHES * BATCH);
    assert_eq!(listening.post(JSON, next.to_string()).await.status, 200);
    for (task, received) in reports.by_task() {
        let more = usize::from(task == "exec-0");
        let sequences = received.iter().map(|report| report.sequence);
        let expected = Vec::from_iter(0..(BATCHES * BATCH + more) as i64);
        assert_eq!(sequences.collect::<Vec<_>>(), expected, "{task}");
    }
    assert_eq!(reports.by_task().len(), CLIENTS);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_prints_what_it_receives_and_needs_no_kafka() {
    let listening = Listening::start(&["--dry-run", "--bootstrap-servers", NOBODY]).await;
    let batch = json!([report("exec-1", 0), report("exec-1", 1), 1]);
    let sent = listening.post(JSON, batch.to_string()).await;
    assert_eq!((sent.status, &sent.body["acknowledged"]), (200, &json!(2)));
    let log = listening.stop().await;
    let printed = log
        .lines()
        .filter(|line| line.starts_with(r#"{"engine""#))
        .count();
    assert_eq!(printed, 2, "{log}");
    assert!(
        log.contains("would have sent 2 reports, 1 refused"),
        "{log}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_address_needs_tokens_and_what_is_wrong_is_said_at_once() {
    let run = |arguments: &[&str]| {
        let run = std::process::Command::new(env!("CARGO_BIN_EXE_producer"))
            .arg("listen")
            .args(arguments)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&run.stderr).into_owned();
        (run.status.code(), log)
    };
    let (code, log) = run(&[":8090"]);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("--allow-anonymous"), "{log}");
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let (code, log) = run(&[&taken]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&format!("listening on {taken}")), "{log}");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokens");
    std::fs::write(&file, "hunter2 airflow\n").unwrap();
    let (code, log) = run(&["127.0.0.1:0", "--tokens", file.to_str().unwrap()]);
    assert_eq!(code, Some(78), "{log}");
    assert!(log.contains("line 1 is not `sha256:HEX NAME`"), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    // Who may only read tasks may not report any.
    for role in ["operator", "viewer=ada"] {
        std::fs::write(&file, format!("sha256:{} {role}\n", "ab".repeat(32))).unwrap();
        let (code, log) = run(&["127.0.0.1:0", "--tokens", file.to_str().unwrap()]);
        assert_eq!(code, Some(78), "{log}");
        assert!(log.contains("roles of `consumer serve`"), "{log}");
    }
}

/// The block of the page in this language that begins so.
fn block(language: &str, begin: &str) -> String {
    let page = service::testing::book::read("docs/src/reporting/listen.md");
    let fence = format!("```{language}\n");
    let mut blocks = page.split(&fence).skip(1);
    let block = blocks.find(|block| block.starts_with(begin)).unwrap();
    block.split("```").next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_the_docs_report_and_send_again_while_kafka_is_away() {
    let (Some(reports), Some(python)) = (Reports::make("listen").await, service("TEST_PYTHON"))
    else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let topic = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let soon = [
        "-X",
        "message.timeout.ms=2000",
        "-X",
        "socket.timeout.ms=1000",
    ];
    let mut listening = Listening::start(&[&topic[..], &soon].concat()).await;
    listening.until_ready().await;
    let address = listening.origin.split_once("//").unwrap().1;
    let run = |program: &str, option: &str, block: &str| {
        let text = block.replace("localhost:8090", address);
        let mut command = std::process::Command::new(program);
        command
            .args([option, &text])
            .stdout(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let curl = run("bash", "-c", &block("sh", "curl"));
    let printed = curl.wait_with_output().unwrap().stdout;
    assert_eq!(printed, br#"{"received":1,"acknowledged":1}"#);

    proxy.block();
    let client = run(&python, "-c", &block("python", "import json"));
    until("it was refused", WITHIN, async || {
        let (_, metrics) = listening.process.get("/metrics")?;
        metrics
            .contains(r#"result="unacknowledged"} "#)
            .then_some(())
    })
    .await;
    proxy.open();
    let ended = client.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let mut arrived = sequences(&reports, "exec-2");
    // A report that was on its way when its time ran out may have arrived, too.
    arrived.dedup();
    assert_eq!(arrived, [0, 1, 2]);
    listening.stop().await;
}

const LINEAGE: &str = "/api/v1/lineage";
const BATCH: &str = "/api/v1/lineage/batch";

fn event(run: &str, event_type: &str) -> Value {
    json!({
        "eventType": event_type, "eventTime": "2026-11-25T14:05:00Z", "run": {"runId": run},
        "job": {"namespace": "airflow", "name": "dag.task"},
        "producer": "https://github.com/apache/airflow",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
    })
}

/// An event of a job, not of a run.
fn job_event() -> Value {
    let mut event = event("", "");
    let object = event.as_object_mut().unwrap();
    object.remove("run");
    object.remove("eventType");
    event
}

/// Sequence and status of each report of a task, in the order of their offsets.
fn statuses(reports: &Reports, task: &str) -> Vec<(i64, TaskStatus)> {
    let mut tasks = reports.by_task();
    let received = tasks.remove(task).unwrap_or_default();
    let each = received.iter();
    each.map(|report| (report.sequence, report.status))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn openlineage_events_are_reported_one_by_one_and_in_batches() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let post = async |path: &str, event: &Value| {
        answered(listening.to_path(path, JSON, event.to_string())).await
    };
    let started = post(LINEAGE, &event("run-1", "START")).await;
    let one = json!({"received": 1, "acknowledged": 1});
    assert_eq!((started.status, &started.body), (200, &one));
    // Larger than a report may be: what is large in an event is not reported.
    let mut running = event("run-1", "RUNNING");
    running["job"]["facets"] = json!({"sql": {"query": "x".repeat(2 << 20)}});
    let running = gzip(running.to_string().as_bytes());
    let running = listening
        .to_path(LINEAGE, JSON, running)
        .header("content-encoding", "gzip");
    assert_eq!(answered(running).await.status, 200);
    let of_job = post(LINEAGE, &job_event()).await;
    let none = json!({"received": 1, "acknowledged": 0});
    assert_eq!((of_job.status, &of_job.body), (200, &none));
    assert_eq!(post(LINEAGE, &event("run-1", "COMPLETE")).await.status, 200);
    let expected = [
        TaskStatus::Running,
        TaskStatus::Running,
        TaskStatus::Succeed,
    ];
    let expected = Vec::from_iter((0..).zip(expected));
    assert_eq!(statuses(&reports, "run-1"), expected);

    for (path, wrong) in [
        (LINEAGE, json!({"eventType": "START"})),
        (LINEAGE, json!([event("run-1", "START")])),
        (BATCH, json!([{}, 1])),
    ] {
        let answered = post(path, &wrong).await;
        assert_eq!(answered.status, 400, "{answered:?}");
    }
    let batch = json!([
        event("run-2", "START"), {"run": {}}, job_event(), event("run-2", "FAIL"), event("run-2", "COMPLETE"),
    ]);
    let batch = post(BATCH, &batch).await;
    assert_eq!(batch.status, 200, "{batch:?}");
    assert_eq!(batch.body["status"], "partial_success");
    assert_eq!(
        batch.body["summary"],
        json!({"received": 5, "successful": 4, "failed": 1, "retriable": 0, "non_retriable": 1})
    );
    let failed = &batch.body["failed_events"][0];
    assert_eq!(
        (&failed["index"], &failed["retriable"]),
        (&json!(1), &json!(false))
    );
    assert!(failed["reason"].is_string(), "{batch:?}");
    let expected = [TaskStatus::Running, TaskStatus::Failed, TaskStatus::Unknown];
    let expected = Vec::from_iter((0..).zip(expected));
    assert_eq!(statuses(&reports, "run-2"), expected);
    let good = post(BATCH, &json!([event("run-3", "START")])).await;
    assert_eq!(
        (good.status, &good.body["status"]),
        (200, &json!("success"))
    );
    assert!(listening.metric(
        r#"taskrunning_received_reports_total{http_route="/api/v1/lineage",result="no_report"} 1"#
    ));
    assert!(listening.metric("taskrunning_remembered_runs 3"));
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_of_23_megabytes_is_reported_over_http_and_one_above_32_mebibytes_is_413() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let listening = Listening::to(&reports, &[]).await;
    let sized = |event_type: &str, bytes: usize| {
        let mut event = event("run-1", event_type);
        event["run"]["facets"] = json!({"spark.logicalPlan": "x".repeat(bytes)});
        event.to_string()
    };
    let post = async |path: &str, encoding: &str, body: Vec<u8>| {
        let request = listening.to_path(path, JSON, body);
        answered(request.header("content-encoding", encoding)).await
    };
    let plain = sized("START", 23_347_619).into_bytes();
    assert_eq!(post(LINEAGE, "identity", plain).await.status, 200);
    let compressed = gzip(sized("RUNNING", 23_347_619).as_bytes());
    assert_eq!(post(LINEAGE, "gzip", compressed).await.status, 200);
    let batch = format!("[{}]", sized("COMPLETE", 23_347_619)).into_bytes();
    assert_eq!(post(BATCH, "identity", batch).await.status, 200);
    let expected = [
        TaskStatus::Running,
        TaskStatus::Running,
        TaskStatus::Succeed,
    ];
    let expected = Vec::from_iter((0..).zip(expected));
    assert_eq!(statuses(&reports, "run-1"), expected);

    let large = sized("FAIL", 32 << 20).into_bytes();
    for (encoding, body) in [("gzip", gzip(&large)), ("identity", large)] {
        let refused = post(LINEAGE, encoding, body).await;
        assert_eq!(refused.status, 413);
        let detail = refused.body["detail"].as_str().unwrap();
        assert!(detail.contains("33554432 bytes"), "{detail}");
    }
    assert_eq!(statuses(&reports, "run-1"), expected);
    listening.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_did_not_acknowledge_does_not_end_its_run() {
    let Some(reports) = Reports::make("listen").await else {
        return;
    };
    let proxy = BlockableProxy::to(&reports.bootstrap);
    let topic = [
        "--topic",
        &reports.topic,
        "--bootstrap-servers",
        proxy.address(),
    ];
    let soon = [
        "-X",
        "message.timeout.ms=2000",
        "-X",
        "socket.timeout.ms=1000",
    ];
    let mut listening = Listening::start(&[&topic[..], &soon].concat()).await;
    listening.until_ready().await;
    let post = async |event_type: &str| {
        let event = event("run-1", event_type).to_string();
        answered(listening.to_path(LINEAGE, JSON, event))
            .await
            .status
    };
    assert_eq!(post("START").await, 200);
    proxy.block();
    assert_eq!(post("COMPLETE").await, 503);
    proxy.open();
    until("the end is acknowledged", WITHIN, async || {
        (post("COMPLETE").await == 200).then_some(())
    })
    .await;
    let mut arrived = statuses(&reports, "run-1");
    // One that was on its way when its time ran out may have arrived, too.
    arrived.dedup();
    assert_eq!(
        arrived,
        [(0, TaskStatus::Running), (1, TaskStatus::Succeed)]
    );
    listening.stop().await;
}
