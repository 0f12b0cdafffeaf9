//! Dead letters of the consumer: each bad event has exactly one, visible to readers before the stored offset passes the
//! event, even if the consumer is killed in between.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::strategies;
use crate::support::{BAD, Kind, Pipeline, coordinates, headers, on_every_database};
use rdkafka::message::Message;
use service::testing::{Topic, create_topics, delete_topic, read_all, until};

#[tokio::test(flavor = "multi_thread")]
async fn every_header_of_a_letter_has_its_documented_value() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 2).await else {
        return;
    };
    let mut blank = strategies::sample_event();
    blank.info.job_id = " ".into();
    let mut unrouted = strategies::sample_event();
    unrouted.info.engine.running_tasks = -3;
    let encode = |event| schemas::encode_event(event).unwrap();
    let (blank, unrouted) = (encode(&blank), encode(&unrouted));
    pipeline.send_events(&[strategies::sample_event()]);
    pipeline.send(
        &pipeline.events,
        &[
            ("k", b"{\"execId\": 1}".to_vec(), Some(0)),
            ("ü", blank.clone(), Some(1)),
            ("", unrouted.clone(), Some(0)),
        ],
    );
    let stamps: Vec<_> = read_all(&pipeline.bootstrap, &pipeline.events)
        .iter()
        .map(|record| {
            let at = (record.partition(), record.offset());
            (at, record.timestamp().to_millis().unwrap().to_string())
        })
        .collect();
    let stamp = |at| {
        stamps
            .iter()
            .find(|(known, _)| *known == at)
            .unwrap()
            .1
            .clone()
    };
    let begun = now_ms();
    let program = pipeline.program("consumer", &["--instance-id", "consumer-7"]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;

    let mut letters = pipeline.read_letters();
    letters.sort_by_key(|letter| coordinates(std::slice::from_ref(letter)));
    let ids = pipeline
        .rows("SELECT DISTINCT topic_id FROM consumed_offset")
        .await;
    let topic_id = ids[0][0].clone().unwrap();
    let all = |partition: &str, offset: &str, rest: [&str; 4], stamp: String| {
        let [stage, class, kind, message] = rest;
        let expected = [
            ("__connect.errors.topic", pipeline.events.as_str()),
            ("__connect.errors.partition", partition),
            ("__connect.errors.offset", offset),
            ("__connect.errors.connector.name", "consumer"),
            ("__connect.errors.task.id", "consumer-7"),
            ("__connect.errors.stage", stage),
            ("__connect.errors.class.name", class),
            ("__connect.errors.exception.class.name", kind),
            ("__connect.errors.exception.message", message),
            ("taskrunning.original.timestamp.ms", &stamp),
            ("taskrunning.original.topic.id", &topic_id),
        ];
        expected
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    };
    let json = [
        "VALUE_CONVERTER",
        "schemas::DecodeError",
        "UnknownFraming",
        "the value begins with 7B 22 65 78 (JSON), not with C3 01 and a schema fingerprint, nor with 00 and a schema id; \
         write it in Avro single-object encoding",
    ];
    assert_eq!(headers(&letters[0]), all("0", "1", json, stamp((0, 1))));
    let negative = [
        "TRANSFORMATION",
        "consumer::rows",
        "NotRouted",
        "the router would have repaired this: engine.runningTasks is negative: -3; write to its source topic instead",
    ];
    assert_eq!(headers(&letters[1]), all("0", "2", negative, stamp((0, 2))));
    let blank_id = [
        "TRANSFORMATION",
        "schemas::Problem",
        "Blank",
        "jobId is blank",
    ];
    let mut letter_headers = headers(&letters[2]);
    let kind = letter_headers["__connect.errors.exception.class.name"].clone();
    assert!(kind.starts_with("Blank"), "{kind}");
    letter_headers.insert(
        "__connect.errors.exception.class.name".to_owned(),
        "Blank".to_owned(),
    );
    assert_eq!(letter_headers, all("1", "0", blank_id, stamp((1, 0))));
    let bytes: Vec<_> = letters
        .iter()
        .map(|letter| (letter.key(), letter.payload()))
        .collect();
    assert_eq!(
        bytes,
        [
            (Some(&b"k"[..]), Some(&b"{\"execId\": 1}"[..])),
            (Some(&b""[..]), Some(&unrouted[..])),
            (Some("ü".as_bytes()), Some(&blank[..])),
        ]
    );
    // A letter has the time of its writing.
    let during = begun..=now_ms();
    for letter in &letters {
        let written = letter.timestamp().to_millis().unwrap();
        assert!(during.contains(&written), "{written}");
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_millis() as i64
}

on_every_database!(
    #[ignore = "heavy"]
    consumers_killed_again_and_again_leave_one_letter_of_each_bad_event,
);

/// Pseudo-random numbers (xorshift).
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[expect(
    clippy::print_stdout,
    reason = "what a test prints is for whoever runs it"
)]
async fn consumers_killed_again_and_again_leave_one_letter_of_each_bad_event(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let seed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as u64
        | 1;
    println!("seed {seed}");
    let mut chance = Chance(seed);
    let sample = strategies::sample_event();
    // Small transactions, so that there are many points at which to be killed.
    let arguments = ["--instance-id", "c", "--max-events", "25"];
    const KILLS: usize = 20;
    for i in 0..KILLS {
        let program = pipeline.program(&format!("killed-{i}"), &arguments);
        // At a random time within half a second after its first work.
        let before = pipeline.count(&Pipeline::stored("metrics")).await;
        pipeline.fill_numbered(&sample, 400, 9);
        pipeline
            .until_count(&Pipeline::stored("metrics"), before + 1)
            .await;
        tokio::time::sleep(Duration::from_millis(chance.below(500))).await;
        program.process.kill();
        // No offset past a bad event is stored before its letter is readable.
        if i % 5 == 4 {
            assert_letters_come_first(&pipeline).await;
        }
    }
    let program = pipeline.program("last", &arguments[..2]);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    let bad = pipeline.bad();
    assert_eq!(bad.len(), KILLS * 44);
    pipeline.assert_each_once(&bad).await;
}

async fn assert_letters_come_first(pipeline: &Pipeline) {
    let select = "SELECT CAST(partition AS text), CAST(max(next_offset) AS text) FROM consumed_offset GROUP BY partition";
    let stored = pipeline.rows(select).await;
    // Read after the offsets, so there can only be more letters.
    let letters: BTreeSet<_> = coordinates(&pipeline.read_letters()).into_iter().collect();
    let number = |text: &Option<String>| text.as_deref().unwrap().parse::<i64>().unwrap();
    for (partition, offset) in pipeline.bad() {
        let row = stored
            .iter()
            .find(|row| number(&row[0]) == i64::from(partition));
        let passed = row.is_some_and(|row| offset < number(&row[1]));
        assert!(
            !passed || letters.contains(&(partition, offset)),
            "stored past partition {partition} offset {offset}, of which there is no letter"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_dead_letter_topic_the_offset_stays_and_one_letter_comes_when_it_is_back() {
    let Some(pipeline) = Pipeline::make(Kind::Sqlite, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let mut program = pipeline.program("consumer", &[]);
    pipeline.fill_numbered(&sample, 100, 0);
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    delete_topic(&pipeline.bootstrap, &pipeline.letters).await;
    pipeline.send(&pipeline.events, &[("bad", BAD.to_vec(), Some(0))]);
    pipeline.fill_numbered(&sample, 100, 0);
    // It either waits and logs that, or exits and names the topic.
    let ended = until(
        "it waits or ends",
        Duration::from_secs(120),
        async || match program.process.status() {
            Some(status) => Some(Some(status)),
            None => program.is_waiting("dead letters").then_some(None),
        },
    )
    .await;
    if let Some(status) = ended {
        let log = program.log();
        assert!(matches!(status.code(), Some(1 | 78)), "{log}");
        assert!(log.contains(&pipeline.letters), "{log}");
    }
    let next = pipeline
        .count("SELECT max(next_offset) FROM consumed_offset")
        .await;
    assert_eq!(next, 100, "not past the bad event");
    let topic = Topic {
        name: &pipeline.letters,
        partitions: 1,
        settings: &[],
    };
    create_topics(&pipeline.bootstrap, &[topic]).await;
    if ended.is_some() {
        program = pipeline.program("again", &[]);
    }
    pipeline.until_all_stored(Duration::from_secs(120)).await;
    program.stop().await;
    pipeline.assert_each_once(&[(0, 100)].into()).await;
}
