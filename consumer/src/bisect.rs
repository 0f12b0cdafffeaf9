//! Which of many records a database refuses: found by trial, since its error does not say.

use std::ops::Range;

use crate::rows::Part;
use crate::store::StoreError;

/// A search for the records that are refused: what is refused is tried again in halves, until it is
/// one record.
pub(crate) struct Bisection {
    untried: Vec<Range<usize>>,
    /// What the database said of all of them. It is not tried again: it may show at the commit only, as
    /// of a deferred constraint.
    known: Option<String>,
}

/// What a trial found.
pub(crate) enum Found {
    /// The records at these places are taken, but for those that are set aside anyway.
    Accepted(Range<usize>),
    /// The record at this place is not, for this reason.
    Refused { place: usize, message: String },
}

impl Bisection {
    /// For so many records, of which `message` was said together.
    pub(crate) fn new(count: usize, message: String) -> Self {
        Self {
            untried: vec![Range {
                start: 0,
                end: count,
            }],
            known: Some(message),
        }
    }

    /// What is found next, in the order of the records, by `write`, which is to take back what it wrote; `None` at the end.
    ///
    /// # Errors
    /// What `write` fails with, other than that a record is refused.
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
            let mut trial = Bisection::new(10, "no".to_owned());
            let (mut found, mut next) = (Vec::new(), 0);
            while let Some(tried) = trial
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
        let mut trial = Bisection::new(2, "no".to_owned());
        let away = async |_| Err(StoreError::TooLong("away".to_owned()));
        assert!(trial.next(away).await.is_err());
    }
}
