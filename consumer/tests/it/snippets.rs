//! The commands and programs printed in the README and the book run as printed, in one shell and in order, against
//! their own broker. Only its port and the paths of binaries and schemas differ. A block that is printed twice runs
//! once.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::{Broker, run};
use service::testing::book::{Page, pages, root};
use service::testing::{program, service};

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// These run first, because others need them.
const SETUP: [&str; 2] = ["kafka-topics.sh ", "cargo build --release"];

/// Blocks that are not run, by the beginning of their first line, with the reason.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "deploy/demo ",
        "what these start takes minutes, and CI runs each",
    ),
    (
        "producer spark ",
        "reads a Spark: producer/tests/it/spark_live.rs",
    ),
    (
        "producer flink ",
        "reads a Flink: producer/tests/it/flink.rs",
    ),
    (
        "producer trino ",
        "reads a Trino: producer/tests/it/trino.rs",
    ),
    (
        "producer spark-log ",
        "reads logs of somebody's own: producer/tests/it/spark_log.rs",
    ),
    (
        "producer openlineage ",
        "reads events of somebody's own: producer/tests/it/openlineage.rs",
    ),
    (
        "producer listen ",
        "listens: producer/tests/it/listen.rs runs this page",
    ),
    ("curl --json ", "as above"),
    ("import json, time, urllib", "as above"),
    (
        "let reporter = ",
        "of the example in the library's documentation, which its tests compile",
    ),
    ("impl TaskSource for ", "as above"),
    ("cd deploy", "takes Docker: deploy/compose-test"),
    (
        "export SCHEMA_REGISTRY_URL=",
        "an address and a password of somebody's own",
    ),
    ("DATABASE_URL='postgres://", "an address of somebody's own"),
    ("DATABASE_URL='mysql://", "as above"),
    (
        "export DATABASE_URL=$(deploy/local-mariadb",
        "starts a server: consumer/tests/it has its own",
    ),
    (
        "CREATE DATABASE taskrunning;",
        "consumer/tests/it/security creates these users",
    ),
    (
        "-- Run by the owner of the tables",
        "consumer/tests/it/security runs it, with its roles",
    ),
    (
        "CREATE ROLE taskrunning_grafana ",
        "the tables have to be in PostgreSQL: consumer/tests/it/dashboards.rs",
    ),
    (
        "psql -c ",
        "the tables have to be in PostgreSQL: consumer/tests/it/audit",
    ),
    (
        "helm ",
        "takes Kubernetes: deploy/chart-test checks the chart without",
    ),
    ("kubectl ", "as above"),
    ("mkdir image", "takes Docker and a release build"),
    ("install -m 755 ", "takes systemd"),
    ("echo METRICS_LISTEN=", "takes systemd"),
    (
        "apt-get install ./taskrunning_",
        "takes a release build: deploy/packaging/try-deb installs it",
    ),
    ("tar -xzf taskrunning-", "takes a release build"),
    ("for program in router consumer", "as above"),
    ("deploy/package ", "makes a release build"),
    ("# /etc/cron.d/", "a file of cron"),
    (
        "UPDATE task_progress ",
        "alters rows: consumer/tests/it/audit does",
    ),
    ("deploy/test ", "takes minutes, and is what CI runs"),
    ("cargo check ", "what a developer types, and CI runs"),
    ("UPDATE_DOCS=1 ", "writes the book"),
];

/// Lines that are not run, by their beginning, with the reason.
const LINES_LEFT_OUT: &[(&str, &str)] = &[
    ("cargo build ", "the tests have built it"),
    (
        "deploy/local-kafka ",
        "the broker that the test has started is another",
    ),
    (
        "router dead-letters show 3:17",
        "a letter of somebody's own",
    ),
    ("router dead-letters redrive 3:17", "as above"),
];

/// Servers, run in the background on a free port.
const SERVES: [(&str, &str); 1] = [("consumer serve", "consumer serve --listen 127.0.0.1:0 &")];

/// Time limit of a command.
const WITHIN: &str = "400s";

/// A fenced block: its position, language and text.
struct Block {
    place: String,
    language: String,
    text: String,
}

impl Block {
    fn begins(&self, with: &str) -> bool {
        self.text.starts_with(with)
    }
}

/// All blocks that are programs.
fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for Page { path: file, text } in pages() {
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(language) = line.strip_prefix("```") else {
                continue;
            };
            let block = lines.by_ref().map(|(_, line)| line);
            let block: Vec<&str> = block.take_while(|line| *line != "```").collect();
            blocks.push(Block {
                place: format!("{file}:{}", number + 1),
                language: language.to_owned(),
                text: block.join("\n") + "\n",
            });
        }
    }
    let mut seen = BTreeSet::new();
    blocks.retain(|block| seen.insert(block.text.clone()));
    blocks
        .retain(|block| ["sh", "sql", "python", "java", "rust"].contains(&block.language.as_str()));
    for (begin, _) in LEFT_OUT {
        assert!(
            blocks.iter().any(|block| block.begins(begin)),
            "no block begins with {begin:?} any more"
        );
    }
    blocks
}

/// Puts a program of the test on the path.
fn executable(folder: &Path, name: &str, text: &str) {
    let file = folder.join(name);
    std::fs::write(&file, format!("#!/bin/bash\n{text}\n")).unwrap();
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A Python program around a block, with the variables that it uses.
fn in_python(block: &str, bootstrap: &str) -> String {
    let root = root();
    let root = root.display();
    format!(
        "import io, json, sys\nimport confluent_kafka, fastavro\nsys.path.insert(0, '{root}/examples/python')\n\
         import report as example\nservers, exec_id = '{bootstrap}', 'exec-python'\n\
         schema = fastavro.parse_schema(json.load(open('{root}/schemas/avro/v1/TaskRunningInfo.avsc')))\n\
         report = example.report(exec_id)\n{block}assert producer.flush(60) == 0\n"
    )
}

/// The same in Java, with a producer.
fn in_java(block: &str, bootstrap: &str) -> String {
    let root = root();
    let root = root.display();
    format!(
        "import java.nio.file.*;\nimport java.util.Properties;\nimport org.apache.avro.Schema;\n\
         import org.apache.avro.generic.*;\nimport org.apache.avro.message.BinaryMessageEncoder;\n\
         import org.apache.kafka.clients.producer.*;\nimport org.apache.kafka.common.serialization.*;\n\
         public class Snippet {{ public static void main(String[] arguments) throws Exception {{\n\
         var schema = new Schema.Parser().parse(Files.readString(Path.of(\"{root}/schemas/avro/v1/TaskRunningInfo.avsc\")));\n\
         var execId = \"exec-java\";\nvar report = Report.report(schema, execId);\nvar settings = new Properties();\n\
         settings.put(\"bootstrap.servers\", \"{bootstrap}\");\n\
         try (var producer = new KafkaProducer<>(settings, new StringSerializer(), new ByteBufferSerializer())) {{\n\
         {block}}} }} }}\n"
    )
}

#[test]
#[ignore = "heavy"]
fn every_command_and_program_of_the_docs_runs_as_it_is_printed() {
    let (Some(registry_tool), Some(python), Some(kafka_tool), Some(broker)) = (
        service("TEST_REGISTRY_TOOL"),
        service("TEST_PYTHON"),
        service("TEST_KAFKA_TOOL"),
        Broker::start(),
    ) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let stand_ins = here.join("stand-ins");
    std::fs::create_dir(&stand_ins).unwrap();
    std::fs::create_dir(here.join("target")).unwrap();
    symlink(
        program(CONSUMER, "consumer").parent().unwrap(),
        here.join("target/release"),
    )
    .unwrap();
    let bootstrap = &broker.bootstrap;
    // The tool adds the servers.
    let topics = format!(
        "shift 2; exec {kafka_tool} --dir {} tool kafka-topics \"$@\"",
        broker.dir()
    );
    executable(&stand_ins, "kafka-topics.sh", &topics);
    let classes = format!("{}:{}", here.display(), run(&registry_tool, &["classpath"]));
    let java = "java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

    let mut blocks = blocks();
    let is_setup = |block: &Block| SETUP.iter().position(|begin| block.begins(begin));
    blocks.sort_by_key(|block| is_setup(block).unwrap_or(SETUP.len()));
    let mut script =
        "set -eEuo pipefail\ntrap 'echo \"$place: $BASH_COMMAND\" >&2; kill $(jobs -p)' ERR\n"
            .to_owned();
    for (number, block) in blocks.iter().enumerate() {
        if LEFT_OUT.iter().any(|(begin, _)| block.begins(begin)) {
            continue;
        }
        writeln!(script, "place={}", block.place).unwrap();
        match block.language.as_str() {
            "sh" => {
                for line in block.text.lines() {
                    let is_left_out = LINES_LEFT_OUT
                        .iter()
                        .any(|(begin, _)| line.starts_with(begin));
                    let served = SERVES.iter().find(|(printed, _)| *printed == line);
                    let line = served.map_or(line, |(_, beside)| beside);
                    if !is_left_out {
                        script += &line.replace("localhost:9092", bootstrap);
                        script.push('\n');
                    }
                }
            }
            "python" => {
                let file = here.join(format!("snippet_{number}.py"));
                std::fs::write(&file, in_python(&block.text, bootstrap)).unwrap();
                writeln!(script, "{python} {}", file.display()).unwrap();
            }
            "java" => {
                std::fs::write(here.join("Snippet.java"), in_java(&block.text, bootstrap)).unwrap();
                let example = root().join("examples/java/Report.java");
                let files = format!("Snippet.java {}", example.display());
                writeln!(
                    script,
                    "javac -cp {classes} -d . {files}\n{java} -cp {classes} Snippet"
                )
                .unwrap();
            }
            other => panic!("{}: {other} is neither run nor left out", block.place),
        }
    }
    // Records of the other languages have arrived, and readers in these languages read everything that was simulated.
    let reader = root().join("examples/java/ReadEvents.java");
    let events = format!(
        "{bootstrap} task-running-info-events {}",
        root().join("schemas/avro").display()
    );
    script += &format!(
        "place=afterwards\n\
         for id in exec-1 my-script exec-python exec-java; do\n\
         timeout 60 bash -c \"until consumer task $id >/dev/null 2>&1; do sleep 0.2; done\"\ndone\n\
         for pid in $(jobs -p); do kill $pid; wait $pid; done\n\
         {python} {} {events} | sort >python.events\n\
         javac -cp {classes} -d . {}\n{java} -cp {classes} ReadEvents {events} | sort >java.events\n",
        root().join("examples/python/read_events.py").display(),
        reader.display(),
    );
    let path = format!("{}:{}", stand_ins.display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args([WITHIN, "bash", "-c", &script])
        .current_dir(here)
        .env("PATH", path)
        .env_remove("KAFKA_BOOTSTRAP_SERVERS")
        .env_remove("DATABASE_URL")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (printed, log) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}\n{printed}\n{log}");
    for logged in ["sent 1 report", "sent 500 reports", "sim-1-000001", "equal"] {
        assert!(printed.contains(logged), "{logged}: {printed}\n{log}");
    }
    let read = |file: &str| std::fs::read_to_string(here.join(file)).unwrap();
    let (by_python, by_java) = (read("python.events"), read("java.events"));
    let lines: Vec<&str> = by_python.lines().collect();
    // From two simulations, the script, and four others.
    assert_eq!(lines.len(), 500 + 6_000 + 5 + 4);
    let without_progress = lines.iter().filter(|line| line.contains(" - ")).count();
    assert!(
        (1..lines.len()).contains(&without_progress),
        "{without_progress}"
    );
    // Languages format numbers differently.
    let rounded = |lines: &str| -> Vec<String> {
        let shorter = |line: &str| {
            let words: Vec<String> = line
                .split(' ')
                .map(|word| match word.parse::<f64>() {
                    Ok(number) => format!("{number:.6}"),
                    Err(_) => word.to_owned(),
                })
                .collect();
            words.join(" ")
        };
        let mut lines: Vec<String> = lines.lines().map(shorter).collect();
        lines.sort();
        lines
    };
    assert_eq!(rounded(&by_python), rounded(&by_java));
}
