//! Query parameters of a URL. Each is taken by name; unknown ones are rejected.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use service::time::timestamp;

use super::problem::{ParameterProblem, Problem};

/// Maximum number of parameters.
const PARAMETERS: usize = 100;

/// The parameters of a request. Problems are collected, and [returned](Self::end) together.
pub(crate) struct Parameters {
    given: Vec<(String, String)>,
    errors: Vec<ParameterProblem>,
    known: Vec<&'static str>,
    is_lenient: bool,
}

impl Parameters {
    fn of(given: Vec<(String, String)>) -> Self {
        Self {
            given,
            errors: Vec::new(),
            known: Vec::new(),
            is_lenient: false,
        }
    }

    /// Reads parameters as Linkis does: empty values count as absent, and unknown parameters are ignored.
    pub(crate) fn lenient(mut self) -> Self {
        self.given.retain(|(_, value)| !value.trim().is_empty());
        self.is_lenient = true;
        self
    }

    /// Replaces relative times of these parameters, as in `-2h`, by absolute ones before `moment`. Invalid ones are
    /// left to [`time`](Self::time).
    pub(crate) fn count_back(&mut self, names: &[&str], moment: Timestamp) {
        for (_, value) in self
            .given
            .iter_mut()
            .filter(|(name, _)| names.contains(&name.as_str()))
        {
            let back = value.strip_prefix('-').map(str::parse::<SignedDuration>);
            if let Some(Ok(back)) = back
                && let Ok(time) = moment.checked_sub(back)
            {
                *value = time.to_string();
            }
        }
    }

    /// Records that a parameter is invalid.
    pub(crate) fn refuse(&mut self, name: &str, why: impl Into<String>) {
        self.errors.push(ParameterProblem {
            parameter: name.to_owned(),
            detail: why.into(),
        });
    }

    /// All values of a parameter.
    pub(crate) fn all(&mut self, name: &'static str) -> Vec<String> {
        self.known.push(name);
        let of_name = |(given, _): &(String, String)| given == name;
        let taken = self.given.extract_if(.., |given| of_name(given));
        taken.map(|(_, value)| value).collect()
    }

    /// The value of a parameter that may be given once.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        let mut values = self.all(name);
        if values.len() > 1 {
            self.refuse(name, format!("given {} times; give it once", values.len()));
        }
        let value = values.pop()?;
        if value.is_empty() {
            self.refuse(name, "empty; give it a value, or leave it out");
            return None;
        }
        Some(value)
    }

    /// As [`text`](Self::text), parsed by `read`.
    pub(crate) fn read<T, E: Display>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(name)?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.refuse(name, why.to_string());
                None
            }
        }
    }

    /// The value of a parameter that has to be given; empty, and an error, if it is not.
    pub(crate) fn required(&mut self, name: &'static str) -> String {
        let errors = self.errors.len();
        let text = self.text(name);
        if text.is_none() && self.errors.len() == errors {
            self.refuse(name, "missing");
        }
        text.unwrap_or_default()
    }

    /// `true` or `false`.
    pub(crate) fn truth(&mut self, name: &'static str) -> Option<bool> {
        let read = |text: &str| text.parse().map_err(|_| "expected true or false");
        self.read(name, read)
    }

    /// `true` or `false`; absent is `false`.
    pub(crate) fn flag(&mut self, name: &'static str) -> bool {
        self.truth(name).unwrap_or(false)
    }

    /// A time, RFC 3339. Relative times, as on the command line, are not accepted: they would differ from page to page.
    pub(crate) fn time(&mut self, name: &'static str) -> Option<Timestamp> {
        self.read(name, |text| {
            let time = Some(text).filter(|text| !text.starts_with('-'));
            let time = time.and_then(|text| timestamp(text).ok());
            time.ok_or(
                "expected a time in RFC 3339 format in the years 1 to 9999, as in 2026-11-25T14:05:00Z",
            )
        })
    }

    /// A whole number from `least` to `most`.
    pub(crate) fn number<T: FromStr + PartialOrd + Display>(
        &mut self,
        name: &'static str,
        least: T,
        most: T,
    ) -> Option<T> {
        self.read(name, |text| match text.parse::<T>() {
            Ok(number) if number >= least && number <= most => Ok(number),
            _ => Err(format!("expected a number from {least} to {most}")),
        })
    }

    /// Rejects the remaining parameters.
    ///
    /// # Errors
    /// 400, with all problems.
    pub(crate) fn end(mut self) -> Result<(), Problem> {
        let known = match self.known.join(", ") {
            none if none.is_empty() => "this path takes none".to_owned(),
            known => format!("known are {known}"),
        };
        let untaken = match self.is_lenient {
            true => Vec::new(),
            false => std::mem::take(&mut self.given),
        };
        for (name, _) in untaken {
            self.refuse(&name, format!("unknown parameter; {known}"));
        }
        match self.errors.is_empty() {
            true => Ok(()),
            false => Err(Problem::parameters(self.errors)),
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        let Ok(Query(given)) = query else {
            return Err(Problem::parameter(
                "",
                "the query of the URL cannot be parsed",
            ));
        };
        match given.len() {
            ..=PARAMETERS => Ok(Self::of(given)),
            more => Err(Problem::parameter(
                "",
                format!("{more} parameters; at most {PARAMETERS} are allowed"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Parameters {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Parameters::of(pairs.iter().map(owned).collect())
    }

    #[test]
    fn all_problems_are_returned_together_and_by_name() {
        let mut parameters = given(&[
            ("at", "yesterday"),
            ("limit", "0"),
            ("user", "a"),
            ("user", "b"),
            ("running", "yes"),
            ("job_id", ""),
            ("offest", "3"),
        ]);
        assert_eq!(parameters.time("at"), None);
        assert_eq!(parameters.number("limit", 1, 1000), None);
        parameters.text("user");
        assert!(!parameters.flag("running"));
        assert_eq!(parameters.text("job_id"), None);
        assert!(parameters.all("status").is_empty());
        let refused = parameters.end().unwrap_err();
        for words in [
            "at: expected a time",
            "limit: expected a number from 1 to 1000",
            "user: given 2 times",
            "running: expected true or false",
            "job_id: empty",
            "offest: unknown parameter; known are at, limit, user, running, job_id, status",
        ] {
            assert!(refused.detail().contains(words), "{}", refused.detail());
        }
    }

    #[test]
    fn times_that_count_back_are_read_where_they_may_be() {
        let moment: Timestamp = "2026-11-25T14:05:00Z".parse().unwrap();
        let mut parameters = given(&[("from", "-2h"), ("to", "-soon"), ("at", "-1h")]);
        parameters.count_back(&["from", "to"], moment);
        let from = parameters.time("from").unwrap();
        assert_eq!(from.to_string(), "2026-11-25T12:05:00Z");
        parameters.time("to");
        parameters.time("at");
        let refused = parameters.end().unwrap_err();
        for name in ["to: expected a time", "at: expected a time"] {
            assert!(refused.detail().contains(name), "{}", refused.detail());
        }
    }

    #[test]
    fn what_is_right_is_taken() {
        let mut parameters = given(&[
            ("status", "Running"),
            ("status", "Failed"),
            ("at", "2026-11-25T14:05:00Z"),
            ("limit", "7"),
            ("running", "true"),
        ]);
        assert_eq!(parameters.all("status"), ["Running", "Failed"]);
        assert!(parameters.time("at").is_some());
        assert_eq!(parameters.number("limit", 1_u32, 1000), Some(7));
        assert!(parameters.flag("running"));
        parameters.end().unwrap();
    }
}
