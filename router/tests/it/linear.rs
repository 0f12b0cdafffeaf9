//! The cost of routing a record is proportional to its size, for any content: one record must not make a
//! router leave its group.

use crate::adversarial::Shape;
use crate::cost::Allowed;
use crate::{adversarial, cost, strategies};
use proptest::prelude::*;
use router::{Outcome, route};
use schemas::{Decoder, Framing, PlainSource};

/// Small items in a repaired record cost the most per byte: decoded, repaired, encoded.
const PER_BYTE: Allowed = Allowed {
    bytes: 200,
    calls: 4,
};

/// Routes a value; returns the event's bytes, or the kind of the reject.
fn routed(value: &[u8], max_event_bytes: usize) -> Result<usize, &'static str> {
    let source = PlainSource {
        topic: "t",
        partition: 1,
        offset: 2,
        timestamp: 3,
        topic_id: None,
    };
    let (decoder, mut buffer) = (Decoder::default(), Vec::new());
    match route(
        &decoder,
        Some(value),
        source,
        4,
        Framing::SingleObject,
        max_event_bytes,
        &mut buffer,
    ) {
        Outcome::Event { key, value, .. } => Ok(key.len() + value.len()),
        Outcome::DeadLetter(reject) => Err(reject.kind),
    }
}

fn value(shape: &Shape, items: usize) -> Vec<u8> {
    let info = shape.spoil(&strategies::sample_event().info, items);
    schemas::encode_info(&info).unwrap()
}

fn assert_linear(shape: &Shape, items: usize, max_event_bytes: usize) {
    let input = |items| {
        let value = value(shape, items);
        let bytes = value.len();
        (value, bytes)
    };
    cost::assert_linear(&format!("{shape:?}"), items, PER_BYTE, input, |value| {
        let _ = routed(value, max_event_bytes);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn routing_any_record_costs_in_proportion_to_its_bytes(shape in adversarial::shape()) {
        assert_linear(&shape, 2_000, 64 << 20);
    }
}

/// Both records have made a router leave its group: their names, all combinations of n characters U+0000 and
/// U+FFFD, become equal.
#[test]
fn names_that_all_become_the_same_cost_in_proportion_to_their_bytes() {
    let shape = Shape::of_colliding_keys();
    assert_linear(&shape, 2_048, 64 << 20);
    for (items, at_least) in [(2_048, 49_000), (8_192, 229_000)] {
        let value = value(&shape, items);
        assert!(value.len() >= at_least, "{}", value.len());
        let event = routed(&value, 1 << 20).unwrap();
        assert!(event < 3 * value.len(), "{event} of {}", value.len());
    }
}

/// A record that is too large is rejected before anything is allocated for its content.
#[test]
fn a_record_that_is_too_large_is_refused_before_it_is_read() {
    let value = value(&Shape::of_colliding_keys(), 40_000);
    let max_event_bytes = value.len() / 4;
    let (outcome, allocated) = cost::allocated(|| routed(&value, max_event_bytes));
    assert_eq!(outcome, Err("EventTooLarge"));
    assert!(allocated.bytes < 16 << 10, "{allocated:?}");
}
