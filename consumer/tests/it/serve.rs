//! `consumer serve`: its answers, access control, and behaviour while the database is unavailable.
//!
//! Long because each kind of rejection, by the database, the guard or authentication, is tested over a socket.

use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use service::testing::settings::refuses;
use service::testing::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sql::Sql;
use crate::strategies;
use crate::support::{Answered, Kind, Pipeline, Proxy, Server, numbered, on_every_database};

/// A pipeline with this many stored events, in one partition.
async fn stored(kind: Kind, count: usize) -> Option<Pipeline> {
    let pipeline = Pipeline::make(kind, 1).await?;
    let sample = strategies::sample_event();
    let events: Vec<_> = (0..count).map(|i| numbered(&sample, i)).collect();
    pipeline.send_events(&events);
    pipeline.store_all().await;
    Some(pipeline)
}

on_every_database!(
    the_api_and_the_command_agree_on_a_task,
    a_token_shows_only_its_users_tasks,
    lists_are_the_commands_and_pages_are_linked,
    tasks_with_ids_of_dots_are_found,
    it_serves_beside_a_consumer_that_writes,
);

async fn the_api_and_the_command_agree_on_a_task(kind: Kind) {
    let Some(pipeline) = stored(kind, 100).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let mut actual = server.json("/api/v1/tasks/exec-01").await;
    let watermark = actual.as_object_mut().unwrap().remove("watermark");
    assert_eq!(watermark, Some(json!({"0": 100})));
    let printed: Value =
        serde_json::from_str(&pipeline.ask(&["task", "exec-01", "--json"])).unwrap();
    assert_eq!(actual, printed);
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
        detail.contains("at: expected a time in RFC 3339"),
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

/// The headers of every answer, including errors.
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
            asked(server.client.get(&one).header("host", "evil.example")).await,
            421,
        ),
    ] {
        answered.problem(status);
        assert_guarded(&answered);
    }
    let stale = server.get("/static/0/page.js").await.problem(404);
    assert!(stale.contains("reload the page"), "{stale}");
    let large =
        "POST /api/v1/tasks/exec-01 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n";
    let large = raw(&server, large).await;
    assert!(large.starts_with("HTTP/1.1 413 "), "{large}");
    assert!(
        large.contains("content-type: application/problem+json"),
        "{large}"
    );
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

/// The server's answer until it closes the connection or pauses.
async fn raw(server: &Server, request: &str) -> String {
    let address = server.origin.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut buffer = vec![0; 64 << 10];
    let mut length = 0;
    while let Ok(Ok(more @ 1..)) =
        timeout(Duration::from_secs(1), stream.read(&mut buffer[length..])).await
    {
        length += more;
    }
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn https_is_served_by_files() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-days",
            "2",
        ])
        .args([
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .args(["-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(pipeline.folder())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| pipeline.folder().join(name));
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    let mut server = pipeline
        .serve("serve", &["--tls-cert", &cert, "--tls-key", &key])
        .await;
    let root = reqwest::Certificate::from_pem(&std::fs::read(&cert).unwrap()).unwrap();
    server.client = reqwest::Client::builder()
        .tls_certs_only([root])
        .build()
        .unwrap();
    server.origin = server.origin.replace("127.0.0.1", "localhost");
    assert!(server.origin.starts_with("https://"), "{}", server.origin);
    server.json("/api/v1/tasks").await;
    server.stop().await;
    // Swapped.
    let swapped = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        &key,
        "--tls-key",
        &cert,
    ];
    let refused = pipeline.fails(&swapped, 78);
    assert!(
        refused.contains("are not a certificate and its key"),
        "{refused}"
    );
    let absent = ["serve", "--listen", "127.0.0.1:0", "--tokens", "/absent"];
    let refused = pipeline.fails(&absent, 78);
    assert!(refused.contains("--tokens /absent"), "{refused}");
}

/// A file with the tokens `of-ada` and `of-operator`.
pub(crate) fn tokens(pipeline: &Pipeline, user: &str) -> String {
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

async fn a_token_shows_only_its_users_tasks(kind: Kind) {
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
        // A stream does not end, so only its beginning is read.
        let origin = server.origin.replace("0.0.0.0", "127.0.0.1");
        let request = server.client.get(format!("{origin}{path}"));
        let request = request.header("authorization", "Bearer of-operator");
        assert_ne!(request.send().await.unwrap().status(), 401, "{path}");
    }
    let one = "/api/v1/tasks/exec-01";
    assert_eq!(ask(one, "of-operator").await.status, 200);
    assert_eq!(ask(one, "of-ada").await.status, 200);
    // Another user's task looks like a missing one.
    let others = ask(one, "of-bob").await.problem(404);
    let absent = ask("/api/v1/tasks/exec-99", "of-bob").await.problem(404);
    assert_eq!(others.replace("exec-01", "exec-99"), absent);
    let list = "/api/v1/tasks?user=of-nobody&limit=5&order=progress";
    ask(list, "of-bob").await.problem(403);
    // Not in a URL, which ends up in logs.
    ask("/api/v1/status?access_token=of-operator", "")
        .await
        .problem(401);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_of_tokens_is_in_use_without_a_restart() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let user = strategies::sample_event().info.engine.user;
    let file = tokens(&pipeline, &user);
    let server = pipeline.serve("serve", &["--tokens", &file]).await;
    let status = async |token: &str| {
        let request = server.request("/api/v1/status");
        let request = request.header("authorization", format!("Bearer {token}"));
        request.send().await.unwrap().status().as_u16()
    };
    let lines = std::fs::read_to_string(&file).unwrap();
    assert_eq!(status("of-bob").await, 200);
    let without_bob: Vec<&str> = lines.lines().filter(|line| !line.contains("bob")).collect();
    std::fs::write(&file, without_bob.join("\n")).unwrap();
    let within = Duration::from_secs(30);
    until("the token is refused", within, async || {
        (status("of-bob").await == 401).then_some(())
    })
    .await;
    assert_eq!(status("of-operator").await, 200);
    // An invalid file leaves the tokens read before in use.
    std::fs::write(&file, "secret operator").unwrap();
    let kept = "stays in use";
    until("the file is found invalid", within, async || {
        assert_eq!(status("of-operator").await, 200);
        server.process.log().contains(kept).then_some(())
    })
    .await;
    assert!(!server.process.log().contains("secret"));
    std::fs::write(&file, &lines).unwrap();
    until("the token is accepted again", within, async || {
        (status("of-bob").await == 200).then_some(())
    })
    .await;
    assert_eq!(server.process.log().matches(kept).count(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_asked_for_its_token() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let user = strategies::sample_event().info.engine.user;
    let file = tokens(&pipeline, &user);
    let mut server = pipeline.serve("serve", &["--tokens", &file]).await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    server.client = client.build().unwrap();
    let asked = |request: reqwest::RequestBuilder| async {
        Answered::of(request.send().await.unwrap()).await
    };
    let one = "/api/v1/tasks/exec-01";
    let html = "text/html,application/xhtml+xml;q=0.9";
    let sent = asked(server.request(one).header("accept", html)).await;
    let to_form = "/login?next=%2Fapi%2Fv1%2Ftasks%2Fexec%2D01";
    assert_eq!((sent.status, sent.header("location")), (303, to_form));
    let form = server.get(to_form).await;
    assert_eq!(form.status, 200);
    assert_guarded(&form);
    let field = format!("name=\"next\" value=\"{one}\"");
    assert!(form.body.contains(&field), "{form:?}");
    let login = format!("{}/login", server.origin);
    let give = |body: &'static str| server.client.post(&login).body(body);
    let refused = asked(give("token=of-nobody")).await;
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("Unknown token"), "{refused:?}");
    let other_site = give("token=of-ada").header("sec-fetch-site", "cross-site");
    asked(other_site).await.problem(403);
    let other_origin = give("token=of-ada").header("origin", "https://evil.example");
    asked(other_origin).await.problem(403);
    let own_origin = give("token=of-ada").header("origin", &server.origin);
    assert_eq!(asked(own_origin).await.status, 303);
    let given = asked(give("token=of%2Dada").header("sec-fetch-site", "same-origin")).await;
    assert_eq!((given.status, given.header("location")), (303, "/"));
    for (body, next) in [
        ("next=%2Fapi%2Fv1%2Ftasks%2Fexec-01&token=of-ada", one),
        ("token=of-ada&next=%2F%2Fevil.example", "/"),
        ("token=of-ada&next=%2F%5Cevil.example", "/"),
        ("token=of-ada&next=https%3A%2F%2Fevil.example", "/"),
    ] {
        let sent_on = asked(give(body)).await;
        assert_eq!((sent_on.status, sent_on.header("location")), (303, next));
    }
    // The address outlives a token that was mistyped.
    let mistyped = asked(give("token=of-ad&next=%2Fapi%2Fv1%2Ftasks%2Fexec-01")).await;
    assert_eq!(mistyped.status, 403);
    assert!(mistyped.body.contains(&field), "{mistyped:?}");
    let (cookie, attributes) = given.header("set-cookie").split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
    assert!(!cookie.contains("of-ada"), "{cookie}");
    let cookie = format!("other=1; {cookie}");
    assert_eq!(
        asked(server.request(one).header("cookie", &cookie))
            .await
            .status,
        200
    );
    let page = asked(server.request("/tasks").header("cookie", &cookie)).await;
    assert!(page.body.contains("action=\"/logout\""), "{page:?}");
    let by_token = server
        .request("/tasks")
        .header("authorization", "Bearer of-ada");
    let page = asked(by_token).await;
    assert_eq!((page.status, page.body.contains("/logout")), (200, false));
    let logout = format!("{}/logout", server.origin);
    let leave = || server.client.post(&logout).header("cookie", &cookie);
    let other_site = leave().header("sec-fetch-site", "cross-site");
    let kept = asked(other_site).await;
    kept.problem(403);
    assert_eq!(kept.header("set-cookie"), "");
    asked(leave().header("origin", "https://evil.example"))
        .await
        .problem(403);
    asked(server.request("/logout").header("cookie", &cookie))
        .await
        .problem(405);
    let left = asked(leave().header("sec-fetch-site", "same-origin")).await;
    assert_eq!((left.status, left.header("location")), (303, "/login"));
    assert_eq!(
        left.header("set-cookie"),
        "taskrunning-token=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"
    );
    let unknown = "taskrunning-token=b2Y";
    asked(server.request(one).header("cookie", unknown))
        .await
        .problem(401);
    // It does not keep the browser from the form either.
    for (path, status) in [(one, 303), ("/login", 200)] {
        let request = server.request(path).header("cookie", unknown);
        let answered = asked(request.header("accept", html)).await;
        assert_eq!(answered.status, status, "{path}");
    }
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
        .serve("believed", &of_proxy("10.0.0.1,127.0.0.0/8"))
        .await;
    let refused = pipeline.serve("refused", &of_proxy("10.0.0.0/8")).await;
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
            (
                &serve(&["--user-header", "X-User", "--trusted-proxy", "10.0.0.1/8"]),
                "10.0.0.0/8",
            ),
            (&serve(&["--operator", "root"]), "--user-header"),
            (
                &serve(&["--user-header", "Host", "--trusted-proxy", "10.0.0.1"]),
                "--user-header host: clients set",
            ),
            (&serve(&["--allow-origin", "*"]), "expected an origin"),
            (&serve(&["--tls-cert", "a.pem"]), "--tls-key"),
        ],
    );
}

/// Clients remove the path segments `.` and `..`: a link of the page leads to such a task all the same.
async fn tasks_with_ids_of_dots_are_found(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    let sample = strategies::sample_event();
    let events = [".", "..", "exec-1"].map(|id| {
        let mut event = sample.clone();
        id.clone_into(&mut event.info.exec_id);
        event
    });
    pipeline.send_events(&events);
    pipeline.store_all().await;
    let server = pipeline.serve("serve", &[]).await;
    let list = server.get("/tasks").await.body;
    for id in [".", "..", "exec-1"] {
        let task = server.json(&format!("/api/v1/task?exec_id={id}")).await;
        assert_eq!(task["task"]["exec_id"], id);
        let path = format!("/api/v1/task/series?exec_id={id}&points=4");
        assert_eq!(server.json(&path).await["exec_id"], id);
        let link = match id {
            "exec-1" => "/tasks/exec-1".to_owned(),
            dots => format!("/task?exec_id={dots}"),
        };
        assert!(list.contains(&format!("href=\"{link}\"")), "{list}");
        let page = server.get(&link).await;
        assert_eq!(page.status, 200);
        assert!(page.body.contains(&format!("data-id=\"{id}\"")), "{page:?}");
    }
    let led = server
        .get("/task?exec_id=exec-1&at=2999-01-01T00:00:00Z")
        .await;
    assert_eq!(led.status, 200);
    let missing = server.get("/api/v1/task?reports=1").await.problem(400);
    assert!(missing.contains("exec_id: missing"), "{missing}");
    assert_eq!(server.get("/task").await.status, 400);
    server.stop().await;
}

async fn lists_are_the_commands_and_pages_are_linked(kind: Kind) {
    let Some(pipeline) = stored(kind, 300).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let printed: Value =
        serde_json::from_str(&pipeline.ask(&["tasks", "--json", "--limit", "0"])).unwrap();
    let names = |items: &Value| -> Vec<String> {
        let items = items.as_array().unwrap().iter();
        items
            .map(|item| item["exec_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&printed).len(), 97);
    let mut listed = Vec::new();
    let mut path = "/api/v1/tasks?limit=10&user=%61da".to_owned();
    path = path.replace("%61da", &strategies::sample_event().info.engine.user);
    loop {
        let answered = server.get(&path).await;
        let page = answered.json();
        assert_eq!(page["watermark"], json!({"0": 300}));
        listed.extend(names(&page["items"]));
        let Some(next) = page["next"].as_str() else {
            assert_eq!(answered.header("link"), "");
            break;
        };
        let link = answered.header("link").strip_prefix('<').unwrap();
        let (link, relation) = link.split_once('>').unwrap();
        assert_eq!(relation, "; rel=\"next\"");
        assert!(link.ends_with(&format!("&cursor={next}")), "{link}");
        path = link.to_owned();
    }
    assert_eq!(listed, names(&printed));
    let whole = server.json("/api/v1/tasks").await;
    let first = &whole["items"][0];
    let reported_at = first["reported_at"].as_str().unwrap();
    assert!(
        reported_at.ends_with('Z') && reported_at.len() == 27,
        "{reported_at}"
    );
    for (key, value) in printed[0].as_object().unwrap() {
        // Time passes between the two.
        if !key.ends_with("_seconds") {
            assert_eq!(value, &first[key], "{key}");
        }
    }
    let some = server
        .json("/api/v1/tasks?exec_id_prefix=exec-1&order=progress&descending=false")
        .await;
    assert_eq!(some["items"].as_array().unwrap().len(), 10);
    let refused = server
        .get("/api/v1/tasks?limit=1001&order=size&silent_after=5&offset=3&cursor=x&stalled=1")
        .await;
    refused.problem(400);
    let errors = refused.json()["errors"].clone();
    let named: Vec<_> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["parameter"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        named,
        ["stalled", "order", "limit", "silent_after", "offset"]
    );
    for (query, name) in [
        ("cursor=x", "cursor"),
        ("status=Runing", "status"),
        ("user=%00", "user"),
        ("at=-2h", "at"),
    ] {
        let refused = server.get(&format!("/api/v1/tasks?{query}")).await;
        refused.problem(400);
        assert_eq!(
            refused.json()["errors"][0]["parameter"],
            name,
            "{refused:?}"
        );
    }
    server.get("/api/v1/tasks/a%00b").await.problem(404);
    let (_, measured) = server.process.get("/metrics").unwrap();
    let route = "http_server_request_duration_seconds_count{http_request_method=\"GET\",http_route=\"/api/v1/tasks\",http_response_status_code=\"400\"} 5";
    assert!(measured.lines().any(|line| line == route), "{measured}");
    // A rejected request is not the database's fault.
    assert_eq!(server.process.get("/readyz").unwrap().0, 200);
    server.stop().await;
}

/// Each route's parameters are documented: it lists the known ones in the error about an unknown one.
#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_every_parameter() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    let description = server.json("/openapi.json").await;
    for (path, item) in description["paths"].as_object().unwrap() {
        let described = item["get"]["parameters"].as_array().into_iter().flatten();
        let described = described.filter(|parameter| parameter["in"] == "query");
        let mut described: Vec<_> = described.map(|one| one["name"].as_str().unwrap()).collect();
        let path = path.replace("{exec_id}", "exec-01");
        let detail = server.get(&format!("{path}?no_such=1")).await.problem(400);
        let (_, known) = detail.split_once("no_such: unknown parameter; ").unwrap();
        let known = known.strip_prefix("known are ");
        let mut known: Vec<_> = known.map_or(Vec::new(), |known| known.split(", ").collect());
        described.sort_unstable();
        known.sort_unstable();
        assert_eq!(described, known, "{path}");
    }
    server.stop().await;
}

async fn it_serves_beside_a_consumer_that_writes(kind: Kind) {
    let Some(pipeline) = Pipeline::make(kind, 1).await else {
        return;
    };
    // The tables do not exist yet.
    let server = pipeline.serve("serve", &[]).await;
    let away = server.get("/api/v1/status").await;
    away.problem(503);
    assert_ne!(away.header("retry-after"), "");
    assert_guarded(&away);
    assert_eq!(server.process.get("/readyz").unwrap().0, 503);
    let consumer = pipeline.consumer(&[]);
    pipeline.fill_numbered(&strategies::sample_event(), 5_000, 0);
    let mut last = 0;
    until("all is told", Duration::from_secs(120), async || {
        let page = server.get("/api/v1/tasks").await;
        if last == 0 && page.status == 503 {
            return None;
        }
        assert_eq!(page.status, 200, "{page:?}");
        let page = page.json();
        let next = page["watermark"]["0"].as_i64().unwrap_or(0);
        // Each answer is from one moment: no task is beyond the watermark, and it never goes back.
        assert!(next >= last, "{next} after {last}");
        for item in page["items"].as_array().unwrap() {
            assert!(
                item["event_offset"].as_i64().unwrap() < next.max(1),
                "{item}"
            );
        }
        last = next;
        (next == 5_000).then_some(())
    })
    .await;
    until("it is ready", Duration::from_secs(30), async || {
        (server.process.get("/readyz")?.0 == 200).then_some(())
    })
    .await;
    consumer.stop().await;
    server.stop().await;
}

/// A file does not keep readers waiting.
mod servers {
    use super::*;
    use crate::support::on_servers;

    on_servers!(
        a_database_that_is_away_comes_back_by_itself,
        #[ignore = "heavy"]
        neither_queries_nor_callers_wait_for_ever,
    );
}

async fn a_database_that_is_away_comes_back_by_itself(kind: Kind) {
    let Some(pipeline) = stored(kind, 10).await else {
        return;
    };
    let proxy = Proxy::to(&pipeline.database_url).await;
    let url = proxy.url(&pipeline.database_url);
    let server = pipeline.serve_on(&url, "serve", &[]).await;
    server.json("/api/v1/tasks").await;
    // Terminated sessions are not logged.
    pipeline.end_sessions().await;
    server.json("/api/v1/tasks").await;
    proxy.set_silent(true);
    let begun = std::time::Instant::now();
    let away = server.get("/api/v1/tasks").await;
    away.problem(503);
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(away.header("retry-after"), "5");
    let (status, why) = server.process.get("/readyz").unwrap();
    assert_eq!(status, 503);
    assert!(why.contains("waiting for"), "{why}");
    proxy.set_silent(false);
    until("it is back", Duration::from_secs(60), async || {
        (server.get("/api/v1/tasks").await.status == 200).then_some(())
    })
    .await;
    until("it is ready", Duration::from_secs(60), async || {
        (server.process.get("/readyz")?.0 == 200).then_some(())
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_is_opened_again() {
    let Some(pipeline) = stored(Kind::Sqlite, 10).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    server.json("/api/v1/tasks").await;
    let file = pipeline.folder().join("tasks.db");
    let aside = pipeline.folder().join("aside.db");
    std::fs::rename(&file, &aside).unwrap();
    server.get("/api/v1/tasks").await.problem(503);
    std::fs::rename(&aside, &file).unwrap();
    server.json("/api/v1/tasks").await;
    server.stop().await;
}

/// The database cancels long queries, and the number of waiting requests is limited.
async fn neither_queries_nor_callers_wait_for_ever(kind: Kind) {
    let Some(pipeline) = stored(kind, 10).await else {
        return;
    };
    let server = pipeline.serve("serve", &[]).await;
    server.json("/api/v1/tasks").await;
    let mut locking = Sql::connect(&pipeline.database_url).await.unwrap();
    let (lock, unlock, message) = match kind {
        Kind::Mariadb => (
            "LOCK TABLES task WRITE",
            "UNLOCK TABLES",
            "max_statement_time exceeded",
        ),
        _ => (
            "BEGIN; LOCK TABLE task IN ACCESS EXCLUSIVE MODE",
            "ROLLBACK",
            "statement timeout",
        ),
    };
    locking.run(lock).await.unwrap();
    let ask = || {
        let request = server.request("/api/v1/tasks");
        tokio::spawn(async move { Answered::of(request.send().await.unwrap()).await })
    };
    let asked: Vec<_> = (0..100).map(|_| ask()).collect();
    let (mut crowded, mut late) = (0, 0);
    for answered in asked {
        let answered = answered.await.unwrap();
        assert_ne!(answered.header("retry-after"), "", "{answered:?}");
        match answered.status {
            429 => crowded += 1,
            _ => {
                answered.problem(503);
                late += 1;
            }
        }
    }
    assert!(crowded >= 20 && late >= 50, "{crowded} and {late}");
    let log = server.process.log();
    assert!(log.contains(message), "{log}");
    // It was never unavailable.
    assert!(!log.contains("until it is back"), "{log}");
    locking.run(unlock).await.unwrap();
    locking.close().await;
    until("it answers", Duration::from_secs(60), async || {
        (server.get("/api/v1/tasks").await.status == 200).then_some(())
    })
    .await;
    server.stop().await;
}
