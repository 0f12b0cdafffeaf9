//! `consumer serve`: what it answers, to whom, and what while the database is away.

use std::process::Command;

use serde_json::{Value, json};
use service::testing::settings::refuses;

use crate::strategies;
use crate::support::{Answered, Kind, Pipeline, Server, numbered, on_both_databases};

/// A pipeline whose tables hold so many numbered events, one partition.
async fn stored(kind: Kind, count: usize) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 1).await?;
    let sample = strategies::sample_event();
    let events: Vec<_> = (0..count).map(|i| numbered(&sample, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    Some(pipeline)
}

on_both_databases!(
    a_task_is_told_as_the_command_tells_it,
    a_token_shows_what_is_its_users,
);

async fn a_task_is_told_as_the_command_tells_it(kind: Kind) {
    let Some(pipeline) = stored(kind, 100).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let mut told = server.json("/api/v1/tasks/exec-01").await;
    let watermark = told.as_object_mut().unwrap().remove("watermark");
    assert_eq!(watermark, Some(json!({"0": 100})));
    let printed: Value =
        serde_json::from_str(&pipeline.ask(&["task", "exec-01", "--json"])).unwrap();
    assert_eq!(told, printed);
    let status = server.json("/api/v1/status").await;
    assert_eq!(status["watermark"], json!({"0": 100}));
    assert_eq!(status["expired_before"], Value::Null);

    let one = server.json("/api/v1/tasks/exec-01?reports=1").await;
    assert_eq!(one["reports"].as_array().unwrap().len(), 1);
    let absent = server.get("/api/v1/tasks/exec-99").await.problem(404);
    assert!(absent.contains("exec-99"), "{absent}");
    let refused = server
        .get("/api/v1/tasks/exec-01?at=noon&reports=0&limit=3")
        .await;
    let detail = refused.problem(400);
    assert!(
        detail.contains("at: expected a time of RFC 3339"),
        "{detail}"
    );
    let errors = refused.json()["errors"].clone();
    let named: Vec<_> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|e| &e["parameter"])
        .collect();
    assert_eq!(named, ["at", "reports", "limit"], "{errors}");
    server.stop().await;
}

/// What every answer says of itself, a refused one too.
fn assert_guarded(answered: &Answered) {
    let policy = answered.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'"),
        "{answered:?}"
    );
    assert!(
        policy.contains("require-trusted-types-for 'script'"),
        "{policy}"
    );
    assert_eq!(answered.header("x-content-type-options"), "nosniff");
    assert_eq!(answered.header("referrer-policy"), "no-referrer");
    assert_eq!(answered.header("cross-origin-opener-policy"), "same-origin");
    assert_eq!(answered.header("cache-control"), "private, no-cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_error_is_a_problem_and_every_answer_is_guarded() {
    let Some(pipeline) = stored(Kind::Sqlite, 100).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let one = format!("{}/api/v1/tasks/exec-01", server.origin);
    let asked = |request: reqwest::RequestBuilder| async {
        Answered::of(request.send().await.unwrap()).await
    };
    for (answered, status) in [
        (server.get("/nothing").await, 404),
        (server.get("/api/v1/tasks/%ff").await, 400),
        (server.get("/api/v1/tasks/exec-01?x=1").await, 400),
        (asked(server.client.delete(&one)).await, 405),
        (
            asked(server.client.post(&one).body(vec![0; 1 << 20])).await,
            413,
        ),
        (
            asked(server.client.get(&one).header("host", "evil.example")).await,
            421,
        ),
    ] {
        answered.problem(status);
        assert_guarded(&answered);
    }
    let refused = asked(server.client.put(&one)).await;
    assert_eq!(refused.header("allow"), "GET,HEAD");
    // No page of another origin may read anything.
    let preflight = server
        .client
        .request(reqwest::Method::OPTIONS, &one)
        .header("origin", "https://a.example");
    let preflight = asked(preflight.header("access-control-request-method", "GET")).await;
    assert_eq!(preflight.header("access-control-allow-origin"), "");
    assert_eq!(preflight.status, 405);

    let answered = server.get("/api/v1/tasks/exec-01").await;
    assert_guarded(&answered);
    assert_eq!(answered.header("content-type"), "application/json");
    let tag = answered.header("etag").to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    let again = asked(server.client.get(&one).header("if-none-match", &tag)).await;
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    assert_eq!(again.header("etag"), tag);
    assert_guarded(&again);
    let other = asked(server.client.get(&one).header("if-none-match", "W/\"1\"")).await;
    assert_eq!(other.status, 200);
    let small = asked(server.client.get(&one).header("accept-encoding", "gzip")).await;
    assert_eq!(small.header("content-encoding"), "gzip");
    let head = asked(server.client.head(&one)).await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    let description = server.json("/openapi.json").await;
    assert_eq!(
        description["openapi"].as_str().map(|version| &version[..3]),
        Some("3.1")
    );
    assert!(description["paths"]["/api/v1/tasks/{exec_id}"]["get"].is_object());
    server.stop().await;
}

/// Those of the tokens `of-ada`, `of-operator`.
fn tokens(pipeline: &Pipeline, user: &str) -> String {
    let file = pipeline.folder().join("tokens");
    let line = |token: &str, role: &str| {
        let sum = Command::new("sh")
            .args(["-c", "printf %s \"$0\" | sha256sum", token])
            .output()
            .unwrap();
        let sum = String::from_utf8(sum.stdout).unwrap();
        format!("sha256:{} {role}\n", sum.split(' ').next().unwrap())
    };
    let lines = [
        line("of-ada", &format!("viewer={user}")),
        line("of-bob", "viewer=bob"),
        line("of-operator", "operator"),
    ];
    std::fs::write(&file, lines.concat()).unwrap();
    file.display().to_string()
}

async fn a_token_shows_what_is_its_users(kind: Kind) {
    let Some(pipeline) = stored(kind, 10).await else {
        return;
    };
    let user = strategies::sample_event().info.engine.user;
    let file = tokens(&pipeline, &user);
    let listen = ["--listen", "0.0.0.0:0", "--tokens", &file];
    let server = pipeline.serve("serve", &listen).await;
    assert!(server.process.log().contains("add --tls-cert"));
    let ask = async |path: &str, token: &str| {
        let origin = server.origin.replace("0.0.0.0", "127.0.0.1");
        let request = server.client.get(format!("{origin}{path}"));
        let request = match token {
            "" => request,
            token => request.header("authorization", format!("Bearer {token}")),
        };
        Answered::of(request.send().await.unwrap()).await
    };
    let description: Value = ask("/openapi.json", "").await.json();
    for path in description["paths"].as_object().unwrap().keys() {
        let path = path.replace("{exec_id}", "exec-01");
        for token in ["", "of-nobody", "of-ad"] {
            let answered = ask(&path, token).await;
            answered.problem(401);
            assert_eq!(
                answered.header("www-authenticate"),
                "Bearer realm=\"taskrunning\""
            );
            assert_guarded(&answered);
        }
        assert_ne!(ask(&path, "of-operator").await.status, 401, "{path}");
    }
    let one = "/api/v1/tasks/exec-01";
    assert_eq!(ask(one, "of-operator").await.status, 200);
    assert_eq!(ask(one, "of-ada").await.status, 200);
    // Another's task is as one that is not there.
    let others = ask(one, "of-bob").await.problem(404);
    let absent = ask("/api/v1/tasks/exec-99", "of-bob").await.problem(404);
    assert_eq!(others.replace("exec-01", "exec-99"), absent);
    // Not in a URL, where logs keep it.
    ask("/api/v1/status?access_token=of-operator", "")
        .await
        .problem(401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxys_header_is_believed_from_that_proxy_only() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let header = ["--user-header", "X-User", "--operator", "root,admin"];
    let of_proxy = |proxy| [&header[..], &["--trusted-proxy", proxy]].concat();
    let believed = pipeline
        .serve("believed", &of_proxy("10.0.0.1,127.0.0.1"))
        .await;
    let refused = pipeline.serve("refused", &of_proxy("10.0.0.1")).await;
    let user = strategies::sample_event().info.engine.user;
    let ask = async |server: &Server, user: &str| {
        let request = server
            .request("/api/v1/tasks/exec-01")
            .header("x-user", user);
        Answered::of(request.send().await.unwrap()).await
    };
    assert_eq!(ask(&believed, &user).await.status, 200);
    assert_eq!(ask(&believed, "root").await.status, 200);
    ask(&believed, "bob").await.problem(404);
    ask(&believed, " ").await.problem(403);
    believed.get("/api/v1/tasks/exec-01").await.problem(401);
    ask(&refused, "root").await.problem(403);
    refused.get("/api/v1/tasks/exec-01").await.problem(401);
    believed.stop().await;
    refused.stop().await;
}

#[test]
fn nothing_is_served_to_everybody() {
    let serve = |more: &[&'static str]| [&["serve", "--database-url", "sqlite:a"], more].concat();
    refuses(
        env!("CARGO_BIN_EXE_consumer"),
        &[
            (
                &serve(&["--listen", "0.0.0.0:0"]),
                "add --tokens FILE, or --user-header NAME",
            ),
            (&serve(&["--listen", "[::]:0"]), "add --tokens FILE"),
            (&serve(&["--user-header", "X-User"]), "--trusted-proxy"),
            (&serve(&["--trusted-proxy", "10.0.0.1"]), "--user-header"),
            (&serve(&["--operator", "root"]), "--user-header"),
            (&serve(&["--allow-origin", "*"]), "expected an origin"),
            (&serve(&["--tls-cert", "a.pem"]), "--tls-key"),
        ],
    );
}
