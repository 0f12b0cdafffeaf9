//! Finds the records that a database refuses, by bisecting, because its error does not name them.

use std::ops::Range;

use crate::rows::Part;
use crate::store::StoreError;

/// A search for refused records: a refused range is tried again in halves, down to one record.
pub(crate) struct Bisection {
    untried: Vec<Range<usize>>,
    /// The database's error for the whole range, which is not tried again: some errors, such as those of deferred
    /// constraints, occur only at commit.
    known: Option<String>,
}

/// The result of a step of the search.
pub(crate) enum Found {
    /// The database accepts the records at these places.
    Accepted(Range<usize>),
    /// The database refuses the record at this place, for this reason.
    Refused { place: usize, message: String },
}

impl Bisection {
    /// A search among `count` records that the database refused together with `message`.
    pub(crate) fn new(count: usize, message: String) -> Self {
        Self {
            untried: vec![Range {
                start: 0,
                end: count,
            }],
            known: Some(message),
        }
    }

    /// The next result, in the order of the records; `None` at the end. `write` writes a range and rolls back.
    ///
    /// # Errors
    /// Any error of `write` except [`StoreError::Refused`].
    pub(crate) async fn next(
        &mut self,
        mut write: impl AsyncFnMut(Range<usize>) -> Result<Vec<(Part, u64)>, StoreError>,
    ) -> Result<Option<Found>, StoreError> {
        while let Some(piece) = self.untried.pop() {
            let refused = match self.known.take() {
                Some(message) => Some(message),
                None => match write(piece.clone()).await {
                    Ok(_) => None,
                    Err(StoreError::Refused(message)) => Some(message),
                    Err(error) => return Err(error),
                },
            };
            match (refused, piece.len()) {
                (None, _) => return Ok(Some(Found::Accepted(piece))),
                (Some(message), 1) => {
                    return Ok(Some(Found::Refused {
                        place: piece.start,
                        message,
                    }));
                }
                (Some(_), length) => {
                    let middle = piece.start + length / 2;
                    self.untried.push(middle..piece.end);
                    self.untried.push(piece.start..middle);
                }
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_refused_record_is_found_and_no_other() {
        for refused in [vec![0], vec![9], vec![3, 4, 8], (0..10).collect(), vec![]] {
            let refuses = || StoreError::Refused("no".to_owned());
            let mut bisection = Bisection::new(10, "no".to_owned());
            let (mut found, mut next) = (Vec::new(), 0);
            while let Some(tried) = bisection
                .next(
                    async |piece| match refused.iter().any(|i| piece.contains(i)) {
                        true => Err(refuses()),
                        false => Ok(Vec::new()),
                    },
                )
                .await
                .unwrap()
            {
                // Each is judged once, in order.
                let places = match tried {
                    Found::Accepted(places) => places,
                    Found::Refused { place, .. } => {
                        found.push(place);
                        place..place + 1
                    }
                };
                assert_eq!(places.start, next);
                next = places.end;
            }
            assert_eq!((found, next), (refused, 10));
        }
        let mut bisection = Bisection::new(2, "no".to_owned());
        let away = async |_| Err(StoreError::TooLong("away".to_owned()));
        assert!(bisection.next(away).await.is_err());
    }
}
