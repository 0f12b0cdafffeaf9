//! `/openapi.json` is accurate: schemathesis generates valid and invalid requests from it, and checks every answer.

use std::path::Path;
use std::time::Duration;

use service::testing::{Process, service, until};

use crate::serve::tokens;
use crate::strategies;
use crate::support::{Kind, Pipeline, on_every_database, varied_parts};

on_every_database!(
    #[ignore = "heavy"]
    every_answer_is_as_it_is_described
);

/// Random requests per operation, besides those for each parameter's limits.
const EXAMPLES: &str = "10";
/// It takes about 20 s on an idle machine.
const RUN: Duration = Duration::from_secs(240);
const HOOKS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");
/// All checks except those for writing and for headers that are not needed.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
    response_schema_conformance,negative_data_rejection,positive_data_acceptance,unsupported_method,\
    allow_header_conformance,ignored_auth";

async fn every_answer_is_as_it_is_described(kind: Kind) {
    let Some(python) = service("TEST_PYTHON") else {
        return;
    };
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let events: Vec<_> = (0..300).map(|i| varied_parts(&sample, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let tokens = tokens(&pipeline, &sample.info.engine.user);
    // Once without authentication, and once as a viewer, who may not see everything.
    let (options, token): (&[&str], _) = match kind {
        Kind::Postgres | Kind::Mariadb => (&["--linkis"], None),
        Kind::Sqlite => (&["--linkis", "--tokens", &tokens], Some("of-ada")),
    };
    let server = pipeline.serve("serve", options).await;
    let document = format!("{}/openapi.json", server.origin);
    let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
    let folder = format!("--chdir={}", pipeline.folder().display());
    let schemathesis = Path::new(&python).with_file_name("schemathesis");
    let mut arguments = vec![&folder, schemathesis.to_str().unwrap()];
    arguments.extend(["--no-color", "run", &document]);
    // An endless stream.
    arguments.extend(["--exclude-path", "/api/v1/changes"]);
    arguments.extend(["--checks", CHECKS, "--phases", "coverage,fuzzing"]);
    arguments.extend(["--max-examples", EXAMPLES, "--generation-deterministic"]);
    arguments.extend(["--no-shrink", "--continue-on-failure", "--warnings", "off"]);
    // Tables contain no U+0000. A path that accepts any text has no invalid values.
    arguments.extend(["--generation-allow-x00", "false"]);
    arguments.extend(["--suppress-health-check", "filter_too_much"]);
    arguments.extend(["--request-timeout", "10"]);
    if let Some(authorization) = &authorization {
        arguments.extend(["--header", authorization]);
    }
    let environment = [
        ("SCHEMATHESIS_HOOKS", "hooks"),
        ("PYTHONPATH", HOOKS),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("EXEC_ID", "exec-01"),
        ("JOB_ID", &sample.info.job_id),
    ];
    let program = Path::new("env");
    let mut run = Process::start_with(
        pipeline.folder(),
        "schemathesis",
        program,
        &arguments,
        &environment,
    );
    let ended = until("schemathesis ends", RUN, async || run.status()).await;
    let printed = run.log();
    assert!(ended.success(), "{printed}");
    // All operations were tested.
    assert!(printed.contains("Tested: 16"), "{printed}");
    let log = server.process.log();
    assert!(!log.contains("ERROR"), "{log}");
    server.stop().await;
}
