//! One poll of one application: each part by a request of its own.

use super::application::{Application, Poll};
use crate::polling::rest::{Fault, Rest};

/// Requests the parts of a poll, and returns the fault of each that failed.
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
            // It does not change during the application's life.
            match application.environment_known() {
                true => Ok(None),
                false => rest.get(&environment).await.map(Some),
            }
        },
    );
    let mut faults = Vec::new();
    let mut failed = |part, fault| faults.push((part, fault));
    let poll = Poll {
        jobs: jobs.map_err(|fault| failed("jobs", fault)).ok(),
        stages: stages.map_err(|fault| failed("stages", fault)).ok(),
        executors: executors.map_err(|fault| failed("executors", fault)).ok(),
        environment: environment
            .map_err(|fault| failed("environment", fault))
            .ok()
            .flatten(),
    };
    (poll, faults)
}
