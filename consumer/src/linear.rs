//! The consumer's cost of an event is proportional to its size, whatever it contains: reading it, deriving its rows,
//! writing them, and comparing them with those of a table.

use proptest::prelude::*;
use router::{Outcome, route};
use schemas::{Decoder, Framing, PlainSource, TaskRunningInfo};

use crate::adversarial::{self, Shape};
use crate::audit::finding::Findings;
use crate::audit::fingerprint::Marks;
use crate::audit::merge::{Evidence, compare_event};
use crate::cost::{self, Allowed};
use crate::row_format::{self, RowWriter};
use crate::rows::{plain, rows};
use crate::store::Held;
use crate::strategies;
use crate::tables::{Table, TaskKey};

/// Every row repeats task, partition and offset, and an audit copies each row several times. So for events that consist
/// of short keys, rows are many times as large.
const PER_BYTE: Allowed = Allowed {
    bytes: 600,
    calls: 6,
};

/// The event that a router makes of a record, and an event with the record's unrepaired contents.
fn events(info: TaskRunningInfo) -> Vec<Vec<u8>> {
    let source = PlainSource {
        topic: "t",
        partition: 1,
        offset: 2,
        timestamp: 3,
        topic_id: None,
    };
    let (value, mut buffer) = (schemas::encode_info(&info).unwrap(), Vec::new());
    let mut events = Vec::new();
    let routed = route(
        &Decoder::default(),
        Some(&value),
        source,
        4,
        Framing::SingleObject,
        64 << 20,
        &mut buffer,
    );
    if let Outcome::Event { value, .. } = routed {
        events.push(value.to_vec());
    }
    let mut unrouted = strategies::sample_event();
    unrouted.info = info;
    events.push(schemas::encode_event(&unrouted).unwrap());
    events
}

/// Everything that storing and auditing do with a record's value.
fn store_and_compare(value: &[u8]) {
    let (decoder, mut buffer) = (Decoder::default(), Vec::new());
    let is_event = plain(&decoder, Some(value)).is_ok();
    let event = rows(&decoder, Some(value), 1, 2, &mut buffer);
    assert_eq!(event.is_ok(), is_event);
    let Ok(event) = event else { return };
    for table in Table::ALL {
        let mut written = RowWriter::default();
        table.write(&mut written, &event, TaskKey::ExecId);
        let expected: Vec<Vec<u8>> = row_format::rows(written.rows())
            .map(<[u8]>::to_vec)
            .collect();
        let held = |row: &Vec<u8>| Held {
            address: String::new(),
            task_id: None,
            row: row.clone(),
        };
        // The same rows in another order.
        let same = expected.iter().rev().map(held).collect();
        let mut findings = Findings::default();
        let evidence = Evidence {
            dead_lettered: &Marks::default(),
            records: None,
        };
        compare_event(table, expected.clone(), same, &evidence, &mut findings);
        assert!(findings.found.is_empty());
        // All rows changed.
        let mut changed: Vec<Held> = expected.iter().rev().map(held).collect();
        for held in &mut changed {
            *held.row.last_mut().unwrap() ^= 1;
        }
        compare_event(table, expected, changed, &evidence, &mut findings);
    }
}

fn assert_linear(shape: &Shape, items: usize) {
    let input = |items| {
        let events = events(shape.spoil(&strategies::sample_event().info, items));
        let bytes = events.iter().map(Vec::len).sum();
        (events, bytes)
    };
    cost::assert_linear(&format!("{shape:?}"), items, PER_BYTE, input, |events| {
        events.iter().for_each(|event| store_and_compare(event));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn storing_and_auditing_any_event_costs_in_proportion_to_its_bytes(shape in adversarial::shape()) {
        assert_linear(&shape, 1_000);
    }
}

#[test]
fn applications_whose_ids_share_their_beginnings_cost_in_proportion_to_their_bytes() {
    assert_linear(&Shape::of_applications(), 4_000);
}
