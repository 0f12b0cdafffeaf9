//! The stored offsets of the events topic, as seen by an answer.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{Session, StoreError};

/// For each partition of the events topic, the next offset to be stored: every event before it is in the tables. As
/// text: `0:123,1:99`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(value_type = std::collections::HashMap<String, i64>, example = json!({"0": 123, "1": 99}))]
pub(crate) struct Watermark(pub(crate) BTreeMap<i32, i64>);

impl Watermark {
    /// If a partition's parts are stored separately, the lowest offset counts.
    pub(super) async fn read(session: &mut dyn Session) -> Result<Self, StoreError> {
        let select = "SELECT \"partition\", min(next_offset) AS next_offset FROM consumed_offset GROUP BY \"partition\"";
        let rows = session.select(select, &[]).await?.into_iter();
        let each = rows.map(|mut row| Ok((row.take("partition")?, row.take("next_offset")?)));
        each.collect::<Result<_, StoreError>>().map(Self)
    }

    /// The next offset to be stored in a partition; 0 if none was.
    pub(crate) fn next_offset(&self, partition: i32) -> i64 {
        self.0.get(&partition).copied().unwrap_or_default()
    }

    /// Whether this has seen everything that `that` has seen.
    pub(crate) fn covers(&self, that: &Self) -> bool {
        let mut those = that.0.iter();
        those.all(|(partition, next)| *next <= self.next_offset(*partition))
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (partition, next)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{partition}:{next}")?;
        }
        Ok(())
    }
}

impl FromStr for Watermark {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected PARTITION:OFFSET,…, each partition once, as in 0:123,1:99";
        let mut offsets = BTreeMap::new();
        for one in text.split(',').filter(|_| !text.is_empty()) {
            let (partition, next) = one.split_once(':').ok_or(expected)?;
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(partition) || !digits(next) {
                return Err(expected);
            }
            let partition: i32 = partition.parse().map_err(|_| expected)?;
            let next: i64 = next.parse().map_err(|_| expected)?;
            if offsets.insert(partition, next).is_some() {
                return Err(expected);
            }
        }
        Ok(Self(offsets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watermark_is_read_as_it_is_written() {
        for text in ["", "0:123", "0:123,1:99,10:9223372036854775807"] {
            let read: Watermark = text.parse().unwrap();
            assert_eq!(read.to_string(), text);
        }
        for text in [
            "0",
            "0:",
            ":1",
            "0:-1",
            "+0:1",
            "0:1,",
            "0:1,0:2",
            "0:9223372036854775808",
        ] {
            assert!(text.parse::<Watermark>().is_err(), "{text}");
        }
        let json = serde_json::to_string(&"0:123,1:99".parse::<Watermark>().unwrap());
        assert_eq!(json.unwrap(), r#"{"0":123,"1":99}"#);
    }
}
