//! One poll of one application: each part by a request of its own.

use super::answers::SqlExecution;
use super::application::{Application, Poll};
use crate::polling::rest::{Fault, Rest};

/// SQL executions of an answer. Spark keeps 1,000 by default (`spark.sql.ui.retainedExecutions`).
const SQL_EXECUTIONS_MAX: usize = 10_000;

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
    let (jobs, stages, environment, executors, sql) = (
        path("jobs"),
        path("stages"),
        path("environment"),
        path("allexecutors"),
        path("sql"),
    );
    let (jobs, stages, executors, environment, sql) = tokio::join!(
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
        sql_executions(rest, &sql),
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
        sql: sql.map_err(|fault| failed("sql", fault)).ok().flatten(),
    };
    (poll, faults)
}

/// Without plans. `None` before Spark 3.0, and if there may be more than the answer holds.
async fn sql_executions(rest: &Rest, path: &[&str]) -> Result<Option<Vec<SqlExecution>>, Fault> {
    let query = [
        ("details", "false".to_owned()),
        ("planDescription", "false".to_owned()),
        ("offset", "0".to_owned()),
        ("length", SQL_EXECUTIONS_MAX.to_string()),
    ];
    match rest.list_with(path, &query).await {
        Ok(executions) if executions.len() < SQL_EXECUTIONS_MAX => Ok(Some(executions)),
        Ok(_) | Err(Fault::NotFound(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}
