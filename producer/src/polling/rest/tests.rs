//! Responses of every kind, from a made-up server.

use super::*;

const API: Api = Api {
    server: "a Spark UI",
    version: "/api/v1",
    root: &["api", "v1", "applications"],
    lists: "applications",
    log_in: "give user and password in SPARK_URL",
    trust: TRUST_BY_ENVIRONMENT,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that answers every request with these bytes and closes.
async fn answering(answer: Vec<u8>) -> Rest {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    rest(&url)
}

fn rest(url: &str) -> Rest {
    new(url).unwrap()
}

fn http(status: &str, kind: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn new(url: &str) -> Result<Rest, String> {
    Clients::default().rest(&Address::http(url), &API, Access::default())
}

async fn fault(answer: Vec<u8>) -> Fault {
    let rest = answering(answer).await;
    let fault = rest.get::<Vec<serde_json::Value>>(&[]).await.unwrap_err();
    let of_list = rest.list::<serde_json::Value>(&[]).await.unwrap_err();
    assert_eq!(fault, of_list);
    fault
}

#[tokio::test]
async fn an_html_page_is_reported_as_a_page() {
    let error = fault(http("200 OK", "text/html", "\n<!DOCTYPE html><html>"))
        .await
        .to_string();
    assert!(
        error.starts_with("it answers with a page, not with JSON"),
        "{error}"
    );
}

#[tokio::test]
async fn a_redirect_to_a_login_page_names_where_it_went() {
    let page = answering(http("200 OK", "text/html", "<html>Log in</html>")).await;
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}/login?from=spark\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        page.shown()
    );
    let error = fault(redirect.into_bytes()).await.to_string();
    let went = format!("after a redirect to {}/login", page.instance());
    assert!(error.contains(&went), "{error}");
    assert!(!error.contains("from=spark"), "{error}");
}

#[tokio::test]
async fn a_password_is_sent_is_not_shown_and_is_no_redirect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let rest = rest(&format!(
        "http://ada:hunter%402@127.0.0.1:{port}/?token=hunter2"
    ));
    let asked = rest.get::<Vec<u8>>(&[]);
    let answered = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = vec![0; 4096];
        let read = stream.read(&mut request).await.unwrap();
        let page = http("200 OK", "text/html", "<html>");
        stream.write_all(&page).await.unwrap();
        String::from_utf8_lossy(&request[..read]).into_owned()
    };
    let (fault, request) = tokio::join!(asked, answered);
    // ada:hunter@2
    let sent = "authorization: basic ywrhomh1bnrlckay\r\n";
    assert!(request.to_lowercase().contains(sent), "{request}");
    let error = fault.unwrap_err().to_string();
    assert!(!error.contains("redirect"), "{error}");
    assert!(!format!("{error}{}", rest.shown()).contains("hunter"));
}

#[tokio::test]
async fn a_redirect_is_shown_without_its_user() {
    let redirect = |place: &str| {
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://ada:hunter2@{place}/?token=hunter2\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        )
    };
    let page = answering(http("200 OK", "text/html", "<html>")).await;
    let error = fault(redirect(&page.instance()).into_bytes()).await;
    let expected = format!("after a redirect to {}/, not", page.instance());
    assert!(error.to_string().contains(&expected), "{error}");
    // An error of reqwest holds the URL.
    let looping = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = looping.local_addr().unwrap().to_string();
    let answer = redirect(&place).into_bytes();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = looping.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(&answer).await;
        }
    });
    let error = self::rest(&place).get::<Vec<u8>>(&[]).await.unwrap_err();
    assert_eq!(error.to_string(), "too many redirects");
}

#[tokio::test]
async fn a_redirect_to_where_nobody_answers_is_not_taken_for_a_server_that_is_gone() {
    let redirect = |place: &str| {
        format!(
            "HTTP/1.1 302 Found\r\nlocation: http://ada:hunter2@{place}/login;hunter2?token=hunter2\r\n\
             content-length: 0\r\nconnection: close\r\n\r\n"
        )
    };
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = nobody.local_addr().unwrap().to_string();
    drop(nobody);
    let error = fault(redirect(&place).into_bytes()).await;
    let refused = format!(
        "no answer after a redirect to {place}/login: nobody listens there (connection refused)"
    );
    assert_eq!(error, Fault::Unusable(refused));
    assert_eq!(error.never(&API), "never listed its applications");

    let error = fault(redirect("nobody.invalid:81").into_bytes()).await;
    let Fault::Unusable(error) = error else {
        panic!("{error:?}")
    };
    let looked_up = "no answer after a redirect to nobody.invalid:81/login: ";
    assert!(error.starts_with(looked_up), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn an_unknown_path_differs_from_a_server_in_trouble() {
    let unknown = fault(http("404 Not Found", "text/plain", "no such app: app-9")).await;
    assert_eq!(unknown, Fault::NotFound("no such app: app-9".into()));
    let trouble = fault(http("503 Service Unavailable", "text/plain", "busy")).await;
    assert_eq!(trouble.to_string(), "it answers 503 Service Unavailable");
}

#[tokio::test]
async fn half_an_answer_is_reported_as_cut_short() {
    let cut = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n[{\"jobId\": 1,".to_vec();
    assert_eq!(fault(cut).await.to_string(), "its answer is cut short");
    let short = http("200 OK", "application/json", "[{\"jobId\": 1,");
    assert_eq!(
        fault(short).await.to_string(),
        "its answer ends in the middle"
    );
}

#[tokio::test]
async fn an_enormous_answer_is_refused() {
    // As large as it is once read, in far fewer bytes: `[0,0,0,…`.
    let read = size_of::<serde_json::Value>();
    let small = "0,".repeat(BODY_MAX_BYTES / read + 1);
    for body in [" ".repeat(BODY_MAX_BYTES + 1), format!("[{small}0]")] {
        let rest = answering(http("200 OK", "application/json", &body)).await;
        let list = rest.list::<serde_json::Value>(&["app-1", "jobs"]).await;
        let error = list.unwrap_err().to_string();
        assert_eq!(
            error,
            "its answer is larger than 16 MiB, which is not taken in"
        );
    }
    let text = format!("\"{}\"", " ".repeat(BODY_MAX_BYTES));
    let rest = answering(http("200 OK", "application/json", &text)).await;
    let error = rest.get::<String>(&["app-1"]).await.unwrap_err();
    assert!(error.to_string().contains("larger than 16 MiB"), "{error}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let rest = rest(&listener.local_addr().unwrap().to_string());
    drop(listener);
    assert_eq!(rest.get::<Vec<u8>>(&[]).await, Err(Fault::Refused));
}

#[test]
fn an_address_may_be_a_host_a_proxys_path_or_the_api_itself() {
    for (url, shown, instance) in [
        ("localhost:4040", "http://localhost:4040", "localhost:4040"),
        (
            "http://rm:8088/proxy/application_1_2/",
            "http://rm:8088/proxy/application_1_2",
            "rm:8088",
        ),
        ("https://history/api/v1", "https://history", "history:443"),
        (
            "http://ada:secret@node-1:4040/?x#y",
            "http://node-1:4040",
            "node-1:4040",
        ),
    ] {
        let rest = rest(url);
        assert_eq!(
            (rest.shown().as_str(), rest.instance().as_str()),
            (shown, instance)
        );
    }
    assert!(new("ftp://host").is_err());
    assert!(new("").is_err());
}
