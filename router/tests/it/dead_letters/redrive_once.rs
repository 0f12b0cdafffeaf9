//! Redrives that are fenced, killed, concurrent or waiting: each letter is sent back once.

use std::time::Duration;

use super::{Topics, place};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};
use schemas::dead_letter::Redriven;
use service::testing::{Process, alone, kafka, unique, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_fences_the_one_before_it_and_together_they_send_each_letter_once() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(400).await;
    let all = ["redrive", "--all", "--max-records", "1"];
    let mut first = topics.start("first", &all);
    until(
        "the first has sent some",
        Duration::from_secs(120),
        async || (topics.notes().len() >= 5).then_some(()),
    )
    .await;
    // Suspended until the second one runs, so that it does not finish before.
    first.signal("STOP");
    let before = topics.notes().len();
    assert!(before < values.len() - 5);
    let mut second = topics.start("second", &all);
    // The first one committed at most one of them before it was suspended.
    until(
        "the second has sent some",
        Duration::from_secs(120),
        async || (topics.notes().len() >= before + 2).then_some(()),
    )
    .await;
    first.signal("CONT");
    let (first_ended, second_ended) = (first.ended().await, second.ended().await);
    assert_eq!(first_ended.code(), Some(1), "{}", first.log());
    assert!(
        first.log().contains("fenced: another redrive"),
        "{}",
        first.log()
    );
    assert_eq!(second_ended.code(), Some(0), "{}", second.log());
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn redrives_started_together_send_each_letter_once() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(300).await;
    let all = ["redrive", "--all", "--max-records", "7"];
    let mut redrives: Vec<Process> = ["first", "second", "third"]
        .map(|name| topics.start(name, &all))
        .into();
    let mut codes = Vec::new();
    for redrive in &mut redrives {
        codes.push(redrive.ended().await.code().unwrap());
    }
    assert!(
        codes.contains(&0),
        "whoever came last has finished: {codes:?}"
    );
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_killed_in_the_middle_is_finished_by_the_next() {
    let _alone = alone();
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    let values = topics.fill(400).await;
    for round in 0..3 {
        let before = topics.notes().len();
        let mut killed = topics.start(
            &format!("killed-{round}"),
            &["redrive", "--all", "--max-records", "1"],
        );
        until("some are sent", Duration::from_secs(120), async || {
            (topics.notes().len() > before).then_some(())
        })
        .await;
        killed.signal("KILL");
        assert_eq!(killed.ended().await.code(), None);
    }
    let half = topics.notes().len();
    assert!(half < values.len(), "it was killed in the middle");
    let last = topics.run(&["redrive", "--all"]).await;
    assert_eq!(last.code, 0, "{}", last.err);
    topics.assert_each_redriven_once(&values);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_behind_a_transaction_that_is_still_open_is_waited_for() {
    let Some(bootstrap) = kafka() else { return };
    let topics = Topics::make(bootstrap, 1, &[], &[]).await;
    topics.fill(1).await;
    let letter = place(&topics.list(&[]).await[0]);
    let (partition, offset) = letter.split_once(':').unwrap();
    let (partition, offset): (i32, i64) = (partition.parse().unwrap(), offset.parse().unwrap());

    let transactional = |id: String| -> ThreadedProducer<_> {
        let producer: ThreadedProducer<_> = topics
            .client()
            .set("transactional.id", id)
            .create()
            .unwrap();
        producer.init_transactions(Duration::from_secs(30)).unwrap();
        producer.begin_transaction().unwrap();
        producer
    };
    let write = |producer: &ThreadedProducer<_>, headers: &[(&'static str, String)]| {
        let record = BaseRecord::<[u8], [u8]>::to(&topics.letters)
            .partition(partition)
            .headers(service::kafka::headers(headers));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    };
    // A router's transaction is open, and behind it another redrive has noted the letter.
    let router = transactional(unique("router"));
    write(&router, &[]);
    let other = transactional(format!("{}-redrive", topics.letters));
    let note = Redriven {
        topic: &topics.letters,
        partition,
        offset,
        at: "2026-11-25T14:05:00.123Z",
    };
    write(&other, &note.headers());
    other.commit_transaction(Duration::from_secs(30)).unwrap();
    let listed = topics.run(&["list"]).await;
    assert!(
        listed.err.contains("where a transaction is still open"),
        "{}",
        listed.err
    );

    let mut redrive = topics.start("redrive", &["redrive", &letter]);
    // The fencing shows that it runs and reads.
    until(
        "the redrive has fenced the other",
        Duration::from_secs(120),
        async || {
            let _ = other.begin_transaction();
            let record = BaseRecord::<[u8], [u8]>::to(&topics.source);
            let _ = other.send(record);
            other.client().fatal_error().map(drop)
        },
    )
    .await;
    // Time in which a redrive that does not wait for the open transaction would end.
    tokio::time::sleep(Duration::from_secs(2)).await;
    redrive.assert_running();
    router.abort_transaction(Duration::from_secs(30)).unwrap();
    assert_eq!(redrive.ended().await.code(), Some(2), "{}", redrive.log());
    assert!(
        redrive
            .log()
            .contains("it was redriven at 2026-11-25T14:05:00.123Z"),
        "{}",
        redrive.log()
    );
    assert_eq!(topics.redriven().len(), 0);
}
