//! Bytes with false claims: each is refused with its own reason, in little time and memory, by the reader of
//! the current version and by that of a version from a file.

mod readers;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::{adversarial, cost, strategies};
use readers::{Read, RecordReader, measured, readers};

fn number(number: i64) -> Vec<u8> {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = vec![];
    while zigzag > 0x7F {
        bytes.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    bytes.push(zigzag as u8);
    bytes
}

#[test]
fn lengths_that_no_record_can_have_are_refused() {
    for reader in readers() {
        for length in [i64::MAX, i64::MIN, -7, 1 << 40, 1 << 30, 1 << 24] {
            let value = [&reader.header[..], &number(length), b"exec"].concat();
            reader.refuse(
                Some(&value),
                &format!("at byte 0: a text of {length} bytes, where 4 are left"),
            );
            // The key of a metric.
            let value = [reader.up_to_block(false), number(1), number(length)].concat();
            reader.refuse(
                Some(&value),
                &format!("a text of {length} bytes, where 0 are left"),
            );
        }
    }
}

#[test]
fn the_body_of_another_schema_under_a_right_header_is_refused() {
    let readers = readers();
    for (i, reader) in readers.iter().enumerate() {
        for other in readers.iter().skip(i + 1).chain(&readers[..i]) {
            // A newer info differs late from an info, so the reader gets far into the record.
            let body = &other.encode(other.sample.clone())[10..];
            reader.refuse(Some(&[&reader.header[..], body].concat()), " at byte ");
        }
    }
}

#[test]
fn blocks_of_more_items_than_there_are_bytes_are_refused() {
    for reader in readers() {
        for array in [true, false] {
            let begun = reader.up_to_block(array);
            for items in [1 << 40, 1 << 30, 1 << 20, i64::MAX] {
                let value = [&begun[..], &number(items), &[0; 100]].concat();
                reader.refuse(
                    Some(&value),
                    &format!("a block of {items} items, where 100 bytes are left"),
                );
                let value = [&begun[..], &number(-items), &number(50), &[0; 100]].concat();
                reader.refuse(
                    Some(&value),
                    &format!("a block of {items} items, where 100 bytes are left"),
                );
            }
            let value = [&begun[..], &number(i64::MIN), &number(1), &[0; 100]].concat();
            reader.refuse(Some(&value), "a block of 9223372036854775808 items");
        }
    }
}

#[test]
fn blocks_whose_size_in_bytes_is_wrong_are_refused() {
    let job = [&number(1)[..], b"0", &[0, 0, 0, 0]].concat();
    let metric = [&number(1)[..], b"m", &[0]].concat();
    for reader in readers() {
        for (array, item) in [(true, &job), (false, &metric)] {
            let begun = reader.up_to_block(array);
            let end: &[u8] = if array { &[0, 0, 0] } else { &[0] };
            let block = |size: usize| {
                let size = number(size as i64);
                [&begun[..], &number(-1), &size, item, end].concat()
            };
            (reader.read)(Some(&block(item.len()))).unwrap();
            for size in [0, item.len() - 1, item.len() + 1] {
                reader.refuse(Some(&block(size)), "a block of 1 items that should end at");
            }
            reader.refuse(Some(&block(1 << 30)), "a block of 1073741824 bytes, where");
            let below = [&begun[..], &number(-1), &number(-9), item, end].concat();
            reader.refuse(Some(&below), "a block of -9 bytes, where");
        }
    }
}

#[test]
fn numbers_that_are_cut_off_or_too_long_are_refused() {
    for reader in readers() {
        let long = [&reader.header[..], &[0x80; 10], &[0]].concat();
        reader.refuse(Some(&long), "at byte 0: a number of more than 10 bytes");
        let wide = [&reader.header[..], &[0xFF; 9], &[2]].concat();
        reader.refuse(Some(&wide), "at byte 0: a number of more than 64 bits");
        let cut = [&reader.header[..], &[0xFF; 3]].concat();
        reader.refuse(Some(&cut), "at byte 0: cut off: a number");
        // An invalid int.
        let job = [&number(0)[..], &number(1 << 40), &[0, 0, 0, 0, 0, 0]].concat();
        let value = [reader.up_to_block(true), number(1), job].concat();
        let reason = if reader.name.starts_with("newer") {
            "progress.progressInfo.totalTasks at byte"
        } else {
            "1099511627776 is no int of 32 bits"
        };
        reader.refuse(Some(&value), reason);
    }
}

#[test]
fn branches_symbols_and_truth_values_that_do_not_exist_are_refused() {
    for reader in readers() {
        let metrics = reader.up_to_block(false);
        for (value, reason) in [
            (number(17), "branch 17 of "),
            (number(-1), "branch -1 of "),
            (
                // Boolean comes after the type that the newer version added.
                [
                    number(if reader.name.starts_with("newer") {
                        2
                    } else {
                        1
                    }),
                    vec![7],
                ]
                .concat(),
                "a boolean of [7]",
            ),
        ] {
            let value = [&metrics[..], &number(1), &number(0), &value].concat();
            reader.refuse(Some(&value), reason);
        }
        let mut json = reader.sample.clone();
        reader.info_of(&mut json)["status"] = json!("Timeout");
        let bytes = reader.encode(json);
        let last = if reader.name.starts_with("newer") {
            9
        } else {
            8
        };
        let wanted = [&number(last)[..], &number(1_764_079_500_123_456)].concat();
        let at = bytes
            .windows(wanted.len())
            .position(|bytes| bytes == wanted);
        let mut bytes = bytes.clone();
        bytes[at.unwrap()] += 2;
        reader.refuse(
            Some(&bytes),
            &format!("symbol {} of {}", last + 1, last + 1),
        );
    }
}

#[test]
fn values_that_are_not_records_are_refused_each_for_its_reason() {
    for reader in readers() {
        reader.refuse(None, "the record has no value (null)");
        reader.refuse(Some(b""), "the value is empty (0 bytes)");
        reader.refuse(Some(&[0xC3]), "begins with C3 (cut off in the header)");
        reader.refuse(Some(b"{"), "begins with 7B (JSON)");
        reader.refuse(Some(&reader.header), "at byte 0: cut off: a number");
        let mut more = reader.encode(reader.sample.clone());
        (reader.read)(Some(&more)).unwrap();
        more.extend([0; 3]);
        reader.refuse(Some(&more), "3 bytes are left after the TaskRunningInfo");
    }
}

/// Skipping a newer version's fields does not iterate over claimed items that do not exist.
#[test]
fn items_that_take_no_bytes_take_no_time_either() {
    for reader in &readers()[2..] {
        let mut json = reader.sample.clone();
        let info = reader.info_of(&mut json);
        for part in ["progress", "resource", "metrics"] {
            info[part] = Json::Null;
        }
        let mut begun = reader.encode(json.clone());
        // The four added fields, followed by the three parts.
        begun.truncate(begun.len() - 7);
        let read = |added: &[&[u8]]| {
            let value = [&begun[..], &added.concat(), &[0, 0, 0]].concat();
            let tries = [(); 5].map(|()| {
                let begun = Instant::now();
                let (read, bytes) = measured(|| (reader.read)(Some(&value)));
                assert!(bytes < 1 << 20, "{bytes} bytes");
                (begun.elapsed(), read)
            });
            // The minimum, because the machine may be busy.
            let least = tries.iter().map(|(took, _)| *took).min();
            assert!(least < Some(Duration::from_millis(100)), "{least:?}");
            let [(_, read), ..] = tries;
            read
        };
        let huge = [number(1 << 40), vec![0]].concat();
        let nested = [number(20), huge.repeat(20), vec![0]].concat();
        let named = [&number(1)[..], &number(1), b"k", &huge, &[0]].concat();
        assert!(nested.len() > 130);
        read(&[&huge, &nested, &named, &huge]).unwrap();
        let sized = [number(-(1 << 40)), number(0), vec![0]].concat();
        read(&[&sized, &[0], &[0], &sized]).unwrap();
        let lying = [number(-(1 << 40)), number(1), vec![0]].concat();
        let error = read(&[&lying, &[0], &[0], &[0]]).unwrap_err().to_string();
        assert!(error.contains("nothing at byte"), "{error}");
    }
}

/// A record has at most a few MiB, which bounds its decoded size and its error message.
#[test]
fn a_mebibyte_of_the_smallest_items_is_read_in_bounded_memory() {
    const MEBIBYTE: usize = 1 << 20;
    for reader in readers() {
        let job = [1, 0, 1, 1, 1, 1];
        let jobs = MEBIBYTE / 5;
        let smallest = [&[0_u8][..], &job[2..]].concat();
        let value = [
            reader.up_to_block(true),
            number(jobs as i64),
            smallest.repeat(jobs),
            vec![0, 0, 0],
        ]
        .concat();
        let (problems, bytes) = measured(|| match (reader.read)(Some(&value)).unwrap() {
            Read::Info(info) => info.problems().len(),
            Read::Event(event) => event.info.problems().len(),
        });
        assert!(problems > 0 && bytes < 64 << 20, "{}: {bytes}", reader.name);

        // Each metric has another name.
        let mut metrics = reader.up_to_block(false);
        let count = MEBIBYTE / 5;
        metrics.extend(number(count as i64));
        for i in 0..count {
            metrics.extend([6, b' ' + (i % 90) as u8, b' ' + (i / 90 % 90) as u8]);
            metrics.extend([b' ' + (i / 8_100) as u8, 0]);
        }
        metrics.push(0);
        let (read, bytes) = measured(|| (reader.read)(Some(&metrics)));
        read.unwrap();
        assert!(bytes < 64 << 20, "{}: {bytes}", reader.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn reading_any_record_costs_in_proportion_to_its_bytes(reader in 0..4_usize, shape in adversarial::shape()) {
        let reader = &readers()[reader];
        let input = |items| {
            let spoilt = shape.spoil(&strategies::sample_event().info, items);
            let mut json = reader.sample.clone();
            let info = reader.info_of(&mut json);
            info["execId"] = json!(spoilt.exec_id);
            info["progress"] = json!(null);
            if let Some(progress) = spoilt.progress {
                info["progress"] = json!({"progress": 0.5, "progressInfo": progress.progress_info});
            }
            info["resource"] = json!(spoilt.resource);
            info["metrics"] = json!(spoilt.metrics);
            let value = reader.encode(json);
            let bytes = value.len();
            (value, bytes)
        };
        let per_byte = cost::Allowed { bytes: 100, calls: 2 };
        let what = format!("{} {shape:?}", reader.name);
        cost::assert_linear(&what, 1_000, per_byte, input, |value| {
            match (reader.read)(Some(value)).unwrap() {
                Read::Info(info) => drop(info.problems()),
                Read::Event(event) => drop(event.info.problems()),
            }
        });
    }
}

/// A change to bytes.
#[derive(Clone, Debug)]
enum Change {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Remove(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<prop::sample::Index>;
    let large = prop_oneof![any::<i64>(), Just(1 << 40), Just(1 << 24), Just(-7)];
    prop_oneof![
        (index(), 1..=255_u8).prop_map(|(at, with)| Change::Flip(at, with)),
        index().prop_map(Change::Cut),
        index().prop_map(Change::Remove),
        (index(), prop::collection::vec(any::<u8>(), 1..12))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (index(), large).prop_map(|(at, large)| Change::Insert(at, number(large))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn changed_bytes_are_a_record_or_an_error_in_bounded_memory(
        reader in 0..4_usize,
        changes in prop::collection::vec(change(), 1..4),
    ) {
        static READERS: LazyLock<Vec<(RecordReader, Vec<u8>)>> = LazyLock::new(|| {
            let with_bytes = |reader: RecordReader| {
                let bytes = reader.encode(reader.sample.clone());
                (reader, bytes)
            };
            readers().into_iter().map(with_bytes).collect()
        });
        let (reader, bytes) = &READERS[reader];
        let mut bytes = bytes[10..].to_vec();
        for change in changes {
            if bytes.is_empty() {
                break;
            }
            match change {
                Change::Flip(at, with) => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= with;
                }
                Change::Cut(at) => bytes.truncate(at.index(bytes.len())),
                Change::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
                Change::Insert(at, more) => {
                    let at = at.index(bytes.len());
                    bytes.splice(at..at, more);
                }
            }
        }
        let value = [&reader.header[..], &bytes].concat();
        let (_, held) = measured(|| (reader.read)(Some(&value)));
        prop_assert!(held < 1 << 20, "{held} bytes");
    }
}
