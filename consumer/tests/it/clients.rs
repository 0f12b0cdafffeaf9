//! Engines and readers independent of this workspace: the Java and Python programs in `examples/`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Kind, Pipeline};
use rdkafka::message::Message;
use service::testing::{Process, program, read_all, service};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn info_schema() -> String {
    let file = root().join("schemas/avro/v1/TaskRunningInfo.avsc");
    file.to_str().unwrap().to_owned()
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {printed}");
    String::from_utf8(output.stdout).unwrap()
}

/// The clients of both languages, the Java ones compiled.
struct Clients {
    classes: String,
    python: String,
}

impl Clients {
    /// `None`: see [`service`].
    fn make(folder: &Path) -> Option<Self> {
        let (tool, python) = (service("TEST_REGISTRY_TOOL")?, service("TEST_PYTHON")?);
        let jars = run(Command::new(tool).arg("classpath"), "");
        let classes = format!("{}:{}", folder.display(), jars.trim());
        let source = root().join("examples/java");
        let compiled = ["Report.java", "ReadEvents.java"].map(|file| source.join(file));
        let mut javac = Command::new("javac");
        run(
            javac
                .args(["-cp", &classes, "-d"])
                .arg(folder)
                .args(compiled),
            "",
        );
        Some(Self { classes, python })
    }

    fn java(&self, class: &str) -> Command {
        let mut java = Command::new("java");
        java.env("LC_ALL", "C"); // texts are UTF-8 whatever the locale
        java.args(["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        java.args(["-cp", &self.classes, class]);
        java
    }

    fn python(&self, file: &str) -> Command {
        let mut python = Command::new(&self.python);
        python.arg(root().join("examples/python").join(file));
        python
    }
}

/// Unusual exec ids, and typical ones.
fn keys() -> Vec<String> {
    let odd = [
        "0",
        "-",
        ".",
        "a\u{200b}",
        "é",
        "e\u{301}",
        "名前-1",
        "😀",
        "a b",
        " a",
        "\u{7f}a",
        "\"'\\\\/",
        "ß\u{fffd}",
        "İ",
    ];
    let mut keys: Vec<String> = odd.map(str::to_owned).into();
    keys.extend((1..=9).map(|length| "x".repeat(length)));
    keys.extend((1..=9).map(|length| "ü".repeat(length)));
    keys.push("k".repeat(512));
    keys.extend((0..500).map(|i| format!("exec-{i}")));
    keys.extend(
        (0..500).map(|i| format!("application_1764079500123_{i:04}/グループ {}", i * 7919)),
    );
    keys
}

/// The partition of each key.
fn placed(pipeline: &Pipeline, topic: &str) -> BTreeMap<String, i32> {
    let mut placed = BTreeMap::new();
    for record in read_all(&pipeline.bootstrap, topic) {
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        assert_eq!(placed.insert(key, record.partition()), None, "once each");
    }
    placed
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn java_python_and_rust_place_the_same_key_on_the_same_partition() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 7).await else {
        return;
    };
    let Some(clients) = Clients::make(pipeline.folder()) else {
        return;
    };
    let (keys, avsc) = (keys(), info_schema());
    let lines = keys.join("\n") + "\n";
    // Three topics with the same number of partitions.
    let java = [&pipeline.bootstrap, &pipeline.source, &avsc];
    run(clients.java("Report").args(java), &lines);
    let python = [&pipeline.bootstrap, &pipeline.events, &avsc];
    run(clients.python("report.py").args(python), &lines);
    let (by_java, by_python) = (
        placed(&pipeline, &pipeline.source),
        placed(&pipeline, &pipeline.events),
    );
    assert_eq!(by_java.len(), keys.len());
    assert_eq!(by_java, by_python);

    let another = Pipeline::make(Kind::Sqlite, 7).await.unwrap();
    let reports: Vec<String> = keys
        .iter()
        .map(|key| {
            let report = serde_json::json!({
                "execId": key, "jobId": "job-1", "status": "Running",
                "engine": {"instance": "node-1:22", "engineType": "shell"},
            });
            report.to_string() + "\n"
        })
        .collect();
    let mut publish = Command::new(program(CONSUMER, "producer"));
    publish.args(["publish", "--bootstrap-servers", &another.bootstrap]);
    publish.args(["--topic", &another.source]);
    run(&mut publish, &reports.concat());
    assert_eq!(placed(&another, &another.source), by_java);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn engines_in_java_and_python_report_and_read_events() {
    engines_report_and_read(None).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "heavy"]
async fn engines_in_java_and_python_report_and_read_events_with_a_schema_registry() {
    let Some(url) = service("TEST_SCHEMA_REGISTRY_URL") else {
        return;
    };
    engines_report_and_read(Some(&url)).await;
}

async fn engines_report_and_read(registry: Option<&str>) {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let Some(clients) = Clients::make(pipeline.folder()) else {
        return;
    };
    // Apicurio's own clients use its own API.
    let own_api = registry.map(|url| url.replace("/ccompat/v7", "/registry/v2"));
    let more: Vec<&str> = registry
        .map(|url| ["--schema-registry", url])
        .into_iter()
        .flatten()
        .collect();
    let info = info_schema();
    let to = [&pipeline.bootstrap, &pipeline.source, &info];
    let printed = run(
        clients.java("Report").args(to).args(&own_api),
        "java-1\njävä-2\n",
    );
    assert_eq!(printed, "sent 2 reports\n");
    let printed = run(
        clients.python("report.py").args(to).args(registry),
        "python-1\npythön-2\n",
    );
    assert_eq!(printed, "sent 2 reports\n");
    let framed = |topic: &str| {
        read_all(&pipeline.bootstrap, topic)
            .iter()
            .all(|record| record.payload().unwrap()[0] == 0)
    };
    assert_eq!(framed(&pipeline.source), registry.is_some());

    let on_topics = [
        &pipeline.router_arguments()[..],
        &["--instance-id", "router-1"],
    ]
    .concat();
    let router = Process::start(
        pipeline.folder(),
        "router",
        &program(CONSUMER, "router"),
        &[&on_topics[..], &more].concat(),
    );
    let consumer = pipeline.program("consumer", &more);
    pipeline
        .until_count("SELECT count(*) FROM task_metrics", 4)
        .await;
    consumer.stop().await;
    assert!(router.stop().await.success());
    assert!(read_all(&pipeline.bootstrap, &pipeline.letters).is_empty());
    assert_eq!(framed(&pipeline.events), registry.is_some());
    let rows = pipeline
        .rows("SELECT exec_id, engine_type, CAST(progress AS text) FROM task ORDER BY exec_id")
        .await;
    let row = |exec_id: &str, engine: &str| {
        [exec_id, engine, "0.5"]
            .map(|text| Some(text.to_owned()))
            .to_vec()
    };
    let expected = [
        row("java-1", "java"),
        row("jävä-2", "java"),
        row("python-1", "python"),
        row("pythön-2", "python"),
    ];
    assert_eq!(rows, expected);

    let versions = root().join("schemas/avro").to_str().unwrap().to_owned();
    let from = [&pipeline.bootstrap, &pipeline.events, &versions];
    let by_java = run(clients.java("ReadEvents").args(from).args(&own_api), "");
    let by_python = run(
        clients.python("read_events.py").args(from).args(registry),
        "",
    );
    for printed in [by_java, by_python] {
        let mut lines: Vec<&str> = printed.lines().collect();
        lines.sort_unstable();
        let expected = ["java-1", "jävä-2", "python-1", "pythön-2"];
        let expected = expected.map(|exec_id| format!("{exec_id} Running 0.5 0"));
        assert_eq!(lines, expected);
    }
}
