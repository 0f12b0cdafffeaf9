//! Impossible offsets, positions and checksums are findings.

use crate::strategies;
use crate::support::{Kind, Pipeline, numbered, on_every_database};

on_every_database!(
    #[ignore = "heavy"]
    impossible_numbers_among_the_stored_offsets_are_findings,
    rows_beyond_a_position_that_went_back_are_reported_and_it_is_repaired,
    no_altered_place_or_checksum_is_equal,
);

async fn impossible_numbers_among_the_stored_offsets_are_findings(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 2).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill(200, |i| {
        let mut event = numbered(&sample, i);
        // A part's rows need not begin where the partition does.
        if i < 4 {
            event.info.resource = None;
        }
        schemas::encode_event(&event).unwrap()
    });
    pipeline.store_all().await;
    pipeline.audit(&[]).assert_code(0);
    let contents = pipeline.contents().await;
    let stored = "SELECT CAST(part AS text), CAST(partition AS text), CAST(first_offset AS text), \
         CAST(next_offset AS text), CAST(anchor_offset AS text) FROM consumed_offset ORDER BY part, partition";
    let right = pipeline.rows(stored).await;
    let (max, min) = (i64::MAX, i64::MIN);
    for (column, number) in [
        ("first_offset", max),
        ("first_offset", -5),
        ("first_offset", min),
        ("next_offset", max),
        ("next_offset", -5),
        ("next_offset", min),
        ("anchor_offset", max),
        ("anchor_offset", -5),
        ("anchor_offset", min),
    ] {
        for only in ["part = 'metrics' AND partition = 1", "1 = 1"] {
            let update = format!("UPDATE consumed_offset SET {column} = {number} WHERE {only}");
            // (PostgreSQL parses the smallest number as the negation of one that is too large.)
            let update = update.replace(&min.to_string(), &format!("{} - 1", -max));
            pipeline.execute(&update).await;
            let audited = pipeline.audit(&[]);
            audited.assert_code(1);
            assert_eq!(audited.total("missing") + audited.total("extra"), 0);
            assert!(audited.total("differing") > 0, "{:#}", audited.report);
            pipeline.audit(&["--repair"]).assert_code(0);
            assert_eq!(pipeline.rows(stored).await, right, "{update}");
            assert_eq!(pipeline.contents().await, contents);
        }
    }
}

async fn rows_beyond_a_position_that_went_back_are_reported_and_it_is_repaired(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    pipeline.fill_numbered(&sample, 5, 0);
    pipeline.store_all().await;
    let anchor = "SELECT CAST(next_offset AS text), CAST(anchor_offset AS text), CAST(anchor_timestamp_ms AS text), \
         CAST(anchor_crc32 AS text) FROM consumed_offset ORDER BY part";
    let before: Vec<String> = pipeline.rows(anchor).await[0]
        .iter()
        .map(|text| text.clone().unwrap())
        .collect();
    pipeline.fill_numbered(&sample, 5, 0);
    pipeline.store_all().await;
    let (contents, right) = (pipeline.contents().await, pipeline.rows(anchor).await);
    let [next, offset, time, crc32] = &before[..] else {
        panic!("{before:?}");
    };
    pipeline
        .execute(&format!(
            "UPDATE consumed_offset SET next_offset = {next}, anchor_offset = {offset}, anchor_timestamp_ms = {time}, \
             anchor_crc32 = {crc32}"
        ))
        .await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(1);
    let totals = ["missing", "extra", "differing", "unprovable"].map(|it| audited.total(it));
    assert_eq!(totals, [0, 0, 3, 0]);
    assert!(
        audited.log.contains("would store them again"),
        "{}",
        audited.log
    );
    pipeline.audit(&["--repair"]).assert_code(0);
    assert_eq!(pipeline.rows(anchor).await, right);
    assert_eq!(pipeline.contents().await, contents);
}

async fn no_altered_place_or_checksum_is_equal(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    pipeline.fill_numbered(&strategies::sample_event(), 10, 0);
    pipeline.store_all().await;
    pipeline.audit(&[]).assert_code(0);
    let alter = "UPDATE consumed_offset SET anchor_crc32 = anchor_crc32";
    pipeline.execute(&format!("{alter} + 4294967296")).await;
    let audited = pipeline.audit(&[]);
    audited.assert_code(2);
    assert!(audited.log.contains("not a CRC-32"), "{}", audited.log);
    pipeline.execute(&format!("{alter} - 4294967296")).await;
    pipeline.audit(&[]).assert_code(0);
    if kind == Kind::Sqlite {
        // An extra row, at an impossible position.
        for (partition, offset) in [("0", "'abc'"), ("99999999999", "3")] {
            let columns = "task_id, reported_at, engine_running_tasks, metrics";
            pipeline
                .execute(&format!(
                    "INSERT INTO task_metrics ({columns}, event_partition, event_offset) \
                     SELECT {columns}, {partition}, {offset} FROM task_metrics WHERE event_offset = 3"
                ))
                .await;
            let audited = pipeline.audit(&[]);
            audited.assert_code(2);
            assert!(
                audited
                    .log
                    .contains("without a valid event_partition or event_offset"),
                "{}",
                audited.log
            );
            pipeline
                .execute(
                    "DELETE FROM task_metrics WHERE event_partition = 99999999999 OR event_offset = 'abc'",
                )
                .await;
            pipeline.audit(&[]).assert_code(0);
        }
    }
}
