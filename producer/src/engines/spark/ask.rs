//! One poll of one application, and what is logged when its answers are of no use.

use std::collections::BTreeMap;

use super::application::{Application, Poll};
use super::rest::{Fault, Rest};

/// The parts of a poll, each asked for on its own, and what each that failed says.
pub(super) async fn ask(
    rest: &Rest,
    application: &Application,
) -> (Poll, Vec<(&'static str, Fault)>) {
    let key = &application.key;
    let path = |part| -> Vec<&str> {
        let attempt = key.attempt.as_deref();
        [Some(key.id.as_str()), attempt, Some(part)]
            .into_iter()
            .flatten()
            .collect()
    };
    let (jobs, stages, environment, executors) = (
        path("jobs"),
        path("stages"),
        path("environment"),
        path("allexecutors"),
    );
    let (jobs, stages, executors, environment) = tokio::join!(
        rest.list(&jobs),
        rest.list(&stages),
        async {
            match rest.list(&executors).await {
                // Before Spark 2.1 there was only this.
                Err(Fault::NotFound(_)) => rest.list(&path("executors")).await,
                answer => answer,
            }
        },
        async {
            // It does not change while the application lives.
            match application.environment_known() {
                true => Ok(None),
                false => rest.get(&environment).await.map(Some),
            }
        },
    );
    let mut faults = Vec::new();
    let mut told = |part, fault| faults.push((part, fault));
    let poll = Poll {
        jobs: jobs.map_err(|fault| told("jobs", fault)).ok(),
        stages: stages.map_err(|fault| told("stages", fault)).ok(),
        executors: executors.map_err(|fault| told("executors", fault)).ok(),
        environment: environment
            .map_err(|fault| told("environment", fault))
            .ok()
            .flatten(),
    };
    (poll, faults)
}

/// `jobs, stages: it answers 503; executors: …`
pub(super) fn by_fault(faults: &[(&'static str, Fault)]) -> String {
    let mut by_fault: Vec<(String, Vec<&str>)> = Vec::new();
    for (part, fault) in faults {
        let fault = fault.to_string();
        match by_fault.iter_mut().find(|(known, _)| *known == fault) {
            Some((_, parts)) => parts.push(part),
            None => by_fault.push((fault, vec![part])),
        }
    }
    let each = by_fault
        .iter()
        .map(|(fault, parts)| format!("{}: {fault}", parts.join(", ")));
    each.collect::<Vec<_>>().join("; ")
}

/// Logs a complaint when it is another than before.
pub(super) fn complain(whose: &str, before: &mut String, now: Option<String>) {
    match now {
        Some(now) if *before != now => {
            tracing::warn!("{whose}: {now}; asking again");
            *before = now;
        }
        None if !before.is_empty() => {
            tracing::info!("{whose} answers again");
            before.clear();
        }
        _ => {}
    }
}

/// What several polls complain of one server: each complaint is logged when the first has it, and that it answers
/// again when none has any.
#[derive(Default)]
pub(super) struct Complaints(BTreeMap<String, usize>);

impl Complaints {
    /// One of them complains of something else than `before`, or no longer.
    pub(super) fn change(&mut self, whose: &str, before: &mut Option<String>, now: Option<String>) {
        if *before == now {
            return;
        }
        if let Some(now) = &now {
            let polls = self.0.entry(now.clone()).or_default();
            *polls += 1;
            if *polls == 1 {
                tracing::warn!("{whose}: {now}; asking again");
            }
        }
        self.end(before);
        if now.is_none() && self.0.is_empty() {
            tracing::info!("{whose} answers again");
        }
        *before = now;
    }

    /// One of them has ended, and with it what it complained of.
    pub(super) fn end(&mut self, complaint: &mut Option<String>) {
        let Some(complaint) = complaint.take() else {
            return;
        };
        if let Some(polls) = self.0.get_mut(&complaint) {
            *polls -= 1;
            if *polls == 0 {
                self.0.remove(&complaint);
            }
        }
    }
}
