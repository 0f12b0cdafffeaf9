//! Addresses with a user and password: used, and never shown.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

use crate::support::{Reports, text};

const SECRET: &str = "hunter2";

/// Exit code and everything printed, with these variables set.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_producer"))
        .args(arguments)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(!said.contains(SECRET), "{arguments:?}: {said}");
    (output.status.code(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_a_spark_address_is_shown() {
    let url = format!("http://ada:{SECRET}@127.0.0.1:1");
    let variables = [
        ("SPARK_URL", &*url),
        ("SPARK_HISTORY_URL", &url),
        ("SCHEMA_REGISTRY_URL", &url),
    ];
    let (code, help) = run(&["spark", "--help"], &variables);
    assert_eq!(code, Some(0), "{help}");
    assert!(
        help.contains("SPARK_URL") && help.contains("SPARK_HISTORY_URL"),
        "{help}"
    );

    let token = format!("http://127.0.0.1:1/?token={SECRET}");
    for url in [&url, &url.replace("http://", ""), &token] {
        for option in ["--url", "--history-url", "--schema-registry"] {
            let (code, said) = run(&["spark", "--url", "localhost:1", option, url], &[]);
            assert_eq!(code, Some(2), "{said}");
            assert!(
                said.contains(option) && said.contains("command line"),
                "{said}"
            );
        }
        let (code, said) = run(
            &[
                "publish",
                "-X",
                &format!("schema.registry.url=http://{}", url.replace("http://", "")),
            ],
            &[],
        );
        assert_eq!(code, Some(2), "{said}");
    }
    for malformed in [
        format!("http://ada:{SECRET}@h:port"),
        format!("http://ada:{SECRET}"),
        format!("ftp://ada:{SECRET}@h"),
        format!("http://ada:{SECRET}@"),
    ] {
        for variable in ["SPARK_URL", "SPARK_HISTORY_URL"] {
            let variables = [("SPARK_URL", "http://localhost:1"), (variable, &*malformed)];
            let (code, said) = run(&["spark"], &variables);
            assert_eq!(code, Some(2), "{said}");
            assert!(said.contains("is malformed"), "{said}");
        }
    }

    // A server that takes the password, and redirects to an address with one.
    let Some(reports) = Reports::make("secrets").await else {
        return;
    };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = server.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let mut requests = Vec::new();
        let page = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>";
        let redirect = format!(
            "HTTP/1.1 302 Found\r\nlocation: http://eve:{SECRET}@{place}/login?token={SECRET}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            let request = text(&request[..length]);
            if request.starts_with("GET /end") {
                break;
            }
            let answer = if request.contains("/login") {
                page
            } else {
                &redirect
            };
            let _ = stream.write_all(answer.as_bytes());
            requests.push(request);
        }
        requests
    });
    let url = format!("http://ada:{SECRET}@{place}");
    let arguments = reports.arguments(&["spark", "--give-up-after", "1s", "--interval", "200ms"]);
    let more = ["--log-level", "debug"];
    let (code, said) = run(&[&arguments[..], &more].concat(), &[("SPARK_URL", &url)]);
    assert_eq!(code, Some(1), "{said}");
    let redirected = format!(
        "http://{place} never listed its applications: it answers with a page after a redirect to {place}/login"
    );
    assert!(said.contains(&redirected), "{said}");
    let mut end = std::net::TcpStream::connect(place).unwrap();
    end.write_all(b"GET /end HTTP/1.1\r\n\r\n").unwrap();
    let requests = serving.join().unwrap();
    // ada:hunter2
    assert!(
        requests[0].contains("Basic YWRhOmh1bnRlcjI="),
        "{requests:?}"
    );
}
