//! Text forms of a record's position in a topic and of the bounds of a range.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;

use crate::time::timestamp;

/// Position of a record in a topic, written `PARTITION:OFFSET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.partition, self.offset))
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(partition, offset)| {
            Some(Self {
                partition: partition.parse().ok()?,
                offset: offset.parse().ok()?,
            })
        });
        parsed
            .filter(|position| position.partition >= 0 && position.offset >= 0)
            .ok_or_else(|| "expected PARTITION:OFFSET as `list` prints it, e.g. 3:17".to_owned())
    }
}

/// Start or end of a range of a topic: see [`Bound::from_str`].
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// The first offset of each partition's log.
    Earliest,
    /// The last stable offset of each partition.
    Latest,
    /// These offsets, by partition; other partitions are omitted.
    Offsets(BTreeMap<i32, i64>),
    /// The first record of each partition with this timestamp or a later one.
    Time(Timestamp),
}

impl FromStr for Bound {
    type Err = String;

    /// Parses `earliest`, `latest`, `offset:P=N,…`, `time:2026-11-25T10:00Z` or a time back from now as in
    /// `-2h`.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(offsets) = text.strip_prefix("offset:") {
            return offsets_by_partition(offsets).map(Self::Offsets);
        }
        match text {
            "earliest" => Ok(Self::Earliest),
            "latest" => Ok(Self::Latest),
            _ => timestamp(text.strip_prefix("time:").unwrap_or(text))
                .map(Self::Time)
                .map_err(|_| {
                    "expected earliest, latest, offset:PARTITION=OFFSET,…, time:2026-11-25T10:00Z, or a time back \
                     from now as in -2h"
                        .to_owned()
                }),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Earliest => f.write_str("earliest"),
            Self::Latest => f.write_str("latest"),
            Self::Offsets(offsets) => {
                let offsets: Vec<String> =
                    offsets.iter().map(|(p, o)| format!("{p}={o}")).collect();
                write!(f, "offset:{}", offsets.join(","))
            }
            Self::Time(time) => write!(f, "time:{time}"),
        }
    }
}

fn offsets_by_partition(text: &str) -> Result<BTreeMap<i32, i64>, String> {
    let mut offsets = BTreeMap::new();
    for pair in text.split(',') {
        let parsed = pair.split_once('=').and_then(|(partition, offset)| {
            let partition: i32 = partition.trim().parse().ok()?;
            let offset: i64 = offset.trim().parse().ok()?;
            (partition >= 0 && offset >= 0).then_some((partition, offset))
        });
        let (partition, offset) = parsed
            .ok_or_else(|| format!("{pair:?} is not PARTITION=OFFSET, as in offset:0=17,3=20"))?;
        if offsets.insert(partition, offset).is_some() {
            return Err(format!("partition {partition} is named twice"));
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_parsed_and_printed_in_the_same_form() {
        for input in [
            "earliest",
            "latest",
            "offset:0=17,3=20",
            "time:2026-11-25T10:00:00Z",
        ] {
            assert_eq!(input.parse::<Bound>().unwrap().to_string(), input);
        }
        assert_eq!(
            "time:2026-11-25T10:00Z".parse::<Bound>(),
            "2026-11-25T11:00+01:00".parse()
        );
        let Ok(Bound::Time(back)) = "-2h".parse() else {
            panic!("no time")
        };
        let ago = Timestamp::now().duration_since(back);
        assert!((7_200..7_260).contains(&ago.as_secs()), "{ago}");
        for wrong in [
            "",
            "first",
            "2h",
            "-2",
            "2026-11-25",
            "offset:",
            "offset:1",
            "offset:1=2,1=3",
            "offset:-1=2",
            "time:noon",
        ] {
            assert!(wrong.parse::<Bound>().is_err(), "{wrong}");
        }
    }
}
