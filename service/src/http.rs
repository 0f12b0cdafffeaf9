//! HTTP requests with limits on the time and size of responses and on redirects. Errors show neither
//! credentials nor queries.

use std::cell::RefCell;
use std::fmt;
use std::io::ErrorKind;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use reqwest::redirect::Policy;
pub use reqwest::{Certificate, Method, StatusCode, Url};
use reqwest::{Client, RequestBuilder, Response};
use tokio_util::bytes::Bytes;

use crate::address::{Credentials, host_and_path, host_and_port, is_loopback};

tokio::task_local! {
    /// The last redirect of a request. (reqwest's error of a redirected request has the URL of the first
    /// request.)
    static REDIRECTED_TO: RefCell<Option<Url>>;
}

/// Limits and settings of a client.
pub struct HttpOptions {
    /// Maximum time from the request to the end of the response.
    pub response_timeout: Duration,
    /// Maximum time to connect.
    pub connect_timeout: Duration,
    /// Whether redirects are followed, ten at most. (A redirected POST would become a GET.)
    pub follow_redirects: bool,
    /// The `User-Agent` header.
    pub user_agent: Option<&'static str>,
    /// Root certificates besides the system's.
    pub certificates: Vec<Certificate>,
}

/// A client of one server. Clones share its user and password.
#[derive(Clone)]
pub struct HttpClient {
    client: Client,
    base: Url,
    credentials: Arc<RwLock<Option<Credentials>>>,
}

impl HttpClient {
    /// `base` must not contain credentials: it is shown.
    ///
    /// # Errors
    /// If TLS cannot be set up.
    pub fn new(
        base: Url,
        credentials: Option<Credentials>,
        options: HttpOptions,
    ) -> Result<Self, String> {
        let redirects = match options.follow_redirects {
            false => Policy::none(),
            true => Policy::custom(|attempt| {
                let to = attempt.url().clone();
                let _ = REDIRECTED_TO.try_with(|redirected| redirected.replace(Some(to)));
                Policy::default().redirect(attempt)
            }),
        };
        // Answers are asked for compressed (reqwest's feature `gzip`): for large reads, hyper keeps up to 400 kB a connection,
        // also an idle one.
        let mut client = Client::builder()
            .timeout(options.response_timeout)
            .connect_timeout(options.connect_timeout)
            .redirect(redirects);
        if let Some(user_agent) = options.user_agent {
            client = client.user_agent(user_agent);
        }
        for certificate in options.certificates {
            client = client.add_root_certificate(certificate);
        }
        if is_loopback(&base) {
            // A proxy from the environment cannot reach this machine's ports.
            client = client.no_proxy();
        }
        Ok(Self {
            client: client.build().map_err(|error| error.to_string())?,
            base,
            credentials: Arc::new(RwLock::new(credentials)),
        })
    }

    /// A client of another server, with the same options and certificates: each [new](Self::new) one reads the system's
    /// certificates, and holds 2 MB of them. `None` if only one of both servers is on this machine.
    pub fn at(&self, base: Url, credentials: Option<Credentials>) -> Option<Self> {
        (is_loopback(&base) == is_loopback(&self.base)).then(|| Self {
            client: self.client.clone(),
            base,
            credentials: Arc::new(RwLock::new(credentials)),
        })
    }

    /// The server's URL.
    pub fn base(&self) -> &Url {
        &self.base
    }

    /// The server's URL, for people.
    pub fn shown(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// User and password of the requests.
    pub fn credentials(&self) -> Option<Credentials> {
        let credentials = self.credentials.read();
        credentials.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces user and password, for this client and its clones.
    pub fn set_credentials(&self, credentials: Option<Credentials>) {
        let current = self.credentials.write();
        *current.unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// A request for path segments below the base URL.
    pub fn request<'p>(
        &self,
        method: Method,
        path: impl IntoIterator<Item = &'p str>,
    ) -> RequestBuilder {
        let request = self.client.request(method, self.url(path));
        match self.credentials() {
            Some((user, password)) => request.basic_auth(user, password),
            None => request,
        }
    }

    fn url<'p>(&self, path: impl IntoIterator<Item = &'p str>) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url
    }

    /// A GET request for path segments below the base URL, with query fields. Authenticated by the bearer token if there
    /// is one, otherwise by the client's user and password.
    pub fn get<'p>(
        &self,
        path: impl IntoIterator<Item = &'p str>,
        query: &[(impl AsRef<str>, String)],
        token: Option<&str>,
    ) -> RequestBuilder {
        let mut url = self.url(path);
        if !query.is_empty() {
            let fields = query.iter().map(|(name, value)| (name.as_ref(), value));
            url.query_pairs_mut().extend_pairs(fields);
        }
        let request = self.client.get(url);
        match (token, self.credentials()) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some((user, password))) => request.basic_auth(user, password),
            (None, None) => request,
        }
    }

    /// Sends a request and waits for the response head, of any status.
    ///
    /// # Errors
    /// If there is no response.
    pub async fn send(&self, request: RequestBuilder) -> Result<HttpResponse, HttpError> {
        let request = request
            .build()
            .map_err(|error| HttpError::new(error, None))?;
        let url = request.url().clone();
        let sent = async {
            let sent = self.client.execute(request).await;
            (sent, REDIRECTED_TO.with(RefCell::take))
        };
        let (sent, redirected_to) = REDIRECTED_TO.scope(RefCell::default(), sent).await;
        match sent {
            Ok(response) => Ok(HttpResponse {
                redirected_to: (*response.url() != url).then(|| host_and_path(response.url())),
                response,
                bytes: 0,
            }),
            Err(error) => {
                let other_server = redirected_to
                    .filter(|to| !error.is_redirect() && host_and_port(to) != host_and_port(&url));
                Err(HttpError::new(error, other_server))
            }
        }
    }
}

/// A response whose body has not been read.
pub struct HttpResponse {
    response: Response,
    /// Target of a redirect: host and path.
    pub redirected_to: Option<String>,
    /// Bytes of the body read so far.
    bytes: usize,
}

impl HttpResponse {
    /// The status.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The next chunk of the body, which may have at most `max_bytes` in total; `None` at its end.
    ///
    /// # Errors
    /// If the body is larger, or ends early.
    pub async fn chunk(&mut self, max_bytes: usize) -> Result<Option<Bytes>, HttpError> {
        let chunk = self.response.chunk().await;
        let chunk = chunk.map_err(|error| HttpError::new(error, None))?;
        self.bytes = self
            .bytes
            .saturating_add(chunk.as_ref().map_or(0, Bytes::len));
        match self.bytes > max_bytes {
            true => Err(HttpError {
                kind: HttpErrorKind::TooLarge,
                redirected_to: None,
                causes: vec![format!("an answer of more than {max_bytes} bytes")],
            }),
            false => Ok(chunk),
        }
    }

    /// The body, at most `max_bytes`.
    ///
    /// # Errors
    /// If the body is larger, or ends early.
    pub async fn body(mut self, max_bytes: usize) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(max_bytes).await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// Why there is no complete response. Displays all causes, outermost first.
#[derive(Debug)]
pub struct HttpError {
    /// Kind of the error.
    pub kind: HttpErrorKind,
    /// Target of a redirect to another server: host and path.
    pub redirected_to: Option<String>,
    causes: Vec<String>,
}

/// Kinds of HTTP errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpErrorKind {
    /// The connection was refused.
    Refused,
    /// No connection or no complete response in time.
    Timeout,
    /// The body ended early.
    CutShort,
    /// The body exceeds the caller's limit.
    TooLarge,
    /// The server's certificate is of an authority that this program does not know.
    UnknownAuthority,
    /// The server's certificate is not valid: not for this host name, or not at this time.
    InvalidCertificate,
    /// The server does not speak TLS.
    NoTls,
    /// Any other error, such as an unknown host or too many redirects.
    Other,
}

impl HttpError {
    fn new(error: reqwest::Error, redirected_to: Option<Url>) -> Self {
        // The URL may contain a secret, for example that of a redirect.
        let error = error.without_url();
        let mut causes = Vec::new();
        let mut refused = false;
        let mut tls = None;
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(error) = cause {
            let io = error.downcast_ref::<std::io::Error>();
            refused |= io.is_some_and(|io| io.kind() == ErrorKind::ConnectionRefused);
            match tls_fault(&error.to_string()) {
                None => causes.push(error.to_string()),
                // The causes of it are OpenSSL's, too.
                Some((kind, meaning)) => {
                    causes.push(meaning);
                    tls = Some(kind);
                    break;
                }
            }
            cause = error.source();
        }
        let kind = if let Some(kind) = tls {
            kind
        } else if refused {
            HttpErrorKind::Refused
        } else if error.is_timeout() {
            HttpErrorKind::Timeout
        } else if error.is_body() || error.is_decode() {
            HttpErrorKind::CutShort
        } else {
            HttpErrorKind::Other
        };
        Self {
            kind,
            redirected_to: redirected_to.as_ref().map(host_and_path),
            causes,
        }
    }

    /// The innermost cause.
    pub fn cause(&self) -> &str {
        self.causes.last().map_or("", String::as_str)
    }
}

/// What an error text of OpenSSL means: the kind, and a sentence. `None` for other errors.
fn tls_fault(text: &str) -> Option<(HttpErrorKind, String)> {
    if text.contains("wrong version number") || text.contains("http request") {
        let meaning = "it does not speak TLS: is it an http:// address?";
        return Some((HttpErrorKind::NoTls, meaning.to_owned()));
    }
    let (_, detail) = text.split_once("certificate verify failed")?;
    let reason = detail
        .rsplit_once('(')
        .and_then(|(_, reason)| reason.split(')').next())
        .unwrap_or("certificate verify failed");
    let is_unknown = reason.contains("issuer certificate")
        || reason.contains("self-signed")
        || reason.contains("self signed")
        || reason.contains("unable to verify");
    Some(match is_unknown {
        true => (
            HttpErrorKind::UnknownAuthority,
            format!("its certificate is not trusted ({reason})"),
        ),
        false => (
            HttpErrorKind::InvalidCertificate,
            format!("its certificate is not valid ({reason})"),
        ),
    })
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.causes.join(": "))
    }
}

impl std::error::Error for HttpError {}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn answers_are_asked_for_compressed_and_limited_by_what_they_hold() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
        gzip.write_all(&[b' '; 1 << 20]).unwrap();
        let compressed = gzip.finish().unwrap();
        let serving = tokio::spawn(async move {
            for _ in 0..2 {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(client.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap().to_ascii_lowercase();
                assert!(request.contains("\naccept-encoding: gzip\r"), "{request}");
                let head = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n";
                client.write_all(head.as_bytes()).await.unwrap();
                // A client that has read enough closes the connection.
                let _ = client.write_all(&compressed).await;
            }
        });
        let options = HttpOptions {
            response_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(60),
            follow_redirects: false,
            user_agent: None,
            certificates: Vec::new(),
        };
        let base = Url::parse(&format!("http://{address}")).unwrap();
        let client = HttpClient::new(base, None, options).unwrap();
        let query: [(&str, String); 0] = [];
        let body = async |max_bytes| {
            let response = client.send(client.get([], &query, None)).await.unwrap();
            response.body(max_bytes).await
        };
        assert_eq!(body(1 << 20).await.unwrap(), [b' '; 1 << 20]);
        let too_large = body((1 << 20) - 1).await.unwrap_err();
        assert_eq!(too_large.kind, HttpErrorKind::TooLarge);
        serving.await.unwrap();
    }

    #[test]
    fn errors_of_openssl_are_told_in_words() {
        let of_openssl = |reason: &str| {
            format!(
                "error:0A000086:SSL routines:tls_post_process_server_certificate:certificate verify failed:\
                 ../ssl/statem/statem_clnt.c:1889: ({reason})"
            )
        };
        for (reason, kind) in [
            (
                "unable to get local issuer certificate",
                HttpErrorKind::UnknownAuthority,
            ),
            (
                "self-signed certificate in certificate chain",
                HttpErrorKind::UnknownAuthority,
            ),
            ("self signed certificate", HttpErrorKind::UnknownAuthority),
            (
                "unable to verify the first certificate",
                HttpErrorKind::UnknownAuthority,
            ),
            ("hostname mismatch", HttpErrorKind::InvalidCertificate),
            ("certificate has expired", HttpErrorKind::InvalidCertificate),
        ] {
            let (found, meaning) = tls_fault(&of_openssl(reason)).unwrap();
            assert_eq!(found, kind, "{reason}");
            assert!(meaning.ends_with(&format!("({reason})")), "{meaning}");
            assert!(!meaning.contains("SSL routines"), "{meaning}");
        }
        let plain = "error:0A00010B:SSL routines:ssl3_get_record:wrong version number:../ssl/record/ssl3_record.c:354:";
        let (found, _) = tls_fault(plain).unwrap();
        assert_eq!(found, HttpErrorKind::NoTls);
        assert_eq!(tls_fault("connection reset by peer"), None);
    }
}
