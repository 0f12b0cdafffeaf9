//! A client of an engine's REST API: a GET that gives typed JSON, or one sentence on why not. Time and size of every
//! response are limited.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use service::address::{Address, Credentials, host_and_port};
use service::http::{
    Certificate, HttpClient, HttpError, HttpErrorKind, HttpOptions, HttpResponse, StatusCode, Url,
};
use tokio::io::AsyncReadExt;

use super::elements::{ELEMENT_MAX_BYTES, Elements, NotAList};

/// Maximum size of a response, except for lists that are read element by element. A poll sends up to four requests at
/// once, and by default up to 32 polls of a server run at once.
const BODY_MAX_BYTES: usize = 16 << 20;
/// A History Server reads an application's whole log before its first answer about it.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a token. It is sent in a header, and servers take headers of 8 kB or little more.
const TOKEN_MAX_BYTES: u64 = 64 << 10;

/// Why there is no usable response. The same fault has the same text in every part of a poll and in every poll, because
/// only a change of the text is logged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Fault {
    /// Nobody listens there (any more).
    #[error("nobody listens there (connection refused)")]
    Refused,
    /// No response; perhaps the network's fault.
    #[error("{0}")]
    NoAnswer(String),
    /// It does not know the path.
    #[error("it answers 404: {0}")]
    NotFound(String),
    /// It does not know the path any more.
    #[error("it answers 410 Gone")]
    Gone,
    /// It answers, but not as the engine's API does.
    #[error("{0}")]
    Unusable(String),
}

/// An engine's REST API.
#[derive(Debug)]
pub(crate) struct Api {
    /// What has the API, as in `not the address of a Spark UI`.
    pub(crate) server: &'static str,
    /// The end of an address that people may give or leave out, such as `/api/v1`.
    pub(crate) version: &'static str,
    /// The segments that every path begins with.
    pub(crate) root: &'static [&'static str],
    /// What its main list holds, as in `never listed its applications`.
    pub(crate) lists: &'static str,
    /// How to give a user and password, for those whom it answers 401.
    pub(crate) log_in: &'static str,
    /// How to give the root certificate of an authority that this machine does not know.
    pub(crate) trust: &'static str,
}

/// [`Api::trust`] of an adapter without an option for it. OpenSSL reads the variable.
pub(crate) const TRUST_BY_ENVIRONMENT: &str =
    "give the file of its root certificate by the environment variable SSL_CERT_FILE";

/// What requests carry beside the user and password of the address.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// A header by name.
    pub(crate) header: Option<(&'static str, String)>,
    /// A file with a bearer token, which takes the place of user and password. Read for each request, because tokens
    /// expire and are renewed.
    pub(crate) token_file: Option<Arc<PathBuf>>,
}

impl Fault {
    /// What to say of an address that never did better than this.
    pub(crate) fn never(&self, api: &Api) -> String {
        match self {
            Self::Refused => "was never reached".to_owned(),
            Self::NoAnswer(_) => "never answered".to_owned(),
            Self::NotFound(_) | Self::Gone | Self::Unusable(_) => {
                format!("never listed its {}", api.lists)
            }
        }
    }
}

/// A client of one server.
#[derive(Clone)]
pub(crate) struct Rest {
    client: HttpClient,
    api: &'static Api,
    access: Access,
}

/// Makes the clients of a run, which share certificates and connections: each that reads the system's certificates takes
/// 2 MB.
#[derive(Default)]
pub(crate) struct Clients {
    /// Root certificates beside the system's.
    certificates: Vec<Certificate>,
    /// One for this machine's servers, and one for others, which may be behind a proxy.
    made: Vec<HttpClient>,
}

impl Clients {
    /// `certificates`: root certificates beside the system's.
    pub(crate) fn trusting(certificates: Vec<Certificate>) -> Self {
        let made = Vec::new();
        Self { certificates, made }
    }

    /// A client of one server. `address` is that of the engine's UI in a browser. A path, such as that of a proxy, is kept.
    ///
    /// # Errors
    /// If it is not an HTTP address.
    pub(crate) fn rest(
        &mut self,
        address: &Address,
        api: &'static Api,
        access: Access,
    ) -> Result<Rest, String> {
        let (base, credentials) = base(address, api)?;
        let mut made = self.made.iter();
        let client = match made.find_map(|one| one.at(base.clone(), credentials.clone())) {
            Some(client) => client,
            None => {
                let options = HttpOptions {
                    response_timeout: RESPONSE_TIMEOUT,
                    connect_timeout: CONNECT_TIMEOUT,
                    follow_redirects: true,
                    user_agent: Some(concat!("producer/", env!("CARGO_PKG_VERSION"))),
                    certificates: self.certificates.clone(),
                };
                let client = HttpClient::new(base, credentials, options)?;
                self.made.push(client.clone());
                client
            }
        };
        Ok(Rest {
            client,
            api,
            access,
        })
    }
}

impl Rest {
    pub(crate) fn api(&self) -> &'static Api {
        self.api
    }

    /// Takes over user and password of another client, for this one and its clones.
    pub(crate) fn log_in_as(&self, other: &Self) {
        self.client.set_credentials(other.client.credentials());
    }

    /// `host:port`.
    pub(crate) fn instance(&self) -> String {
        host_and_port(self.client.base())
    }

    /// The address, for people.
    pub(crate) fn shown(&self) -> String {
        self.client.shown().to_owned()
    }

    /// GETs the path of these segments below the API's root.
    pub(crate) async fn get<T: DeserializeOwned>(&self, below: &[&str]) -> Result<T, Fault> {
        self.get_with(below, &[]).await
    }

    /// [`get`](Self::get) with query fields.
    pub(crate) async fn get_with<T: DeserializeOwned>(
        &self,
        below: &[&str],
        query: &[(&str, String)],
    ) -> Result<T, Fault> {
        let (response, redirected) = self.ask(below, query).await?;
        let body = response.body(BODY_MAX_BYTES).await?;
        serde_json::from_slice(&body).map_err(|error| {
            let page = body.trim_ascii_start().starts_with(b"<");
            self.unusable(&redirected, page, &error)
        })
    }

    /// GETs the API's root with query fields, a list of any length, and passes its elements on as they arrive. After an
    /// error, the rest of the list is unknown.
    pub(crate) async fn each<T: DeserializeOwned>(
        &self,
        query: &[(&str, String)],
        mut each: impl FnMut(T),
    ) -> Result<(), Fault> {
        let each = |element| {
            each(element);
            Ok(())
        };
        self.elements(&[], query, usize::MAX, each).await
    }

    /// GETs a list. Holds its elements, not its text: the text can be several times as large, and take as long as the
    /// server likes to send.
    pub(crate) async fn list<T: DeserializeOwned>(&self, below: &[&str]) -> Result<Vec<T>, Fault> {
        self.list_with(below, &[]).await
    }

    /// [`list`](Self::list) with query fields.
    pub(crate) async fn list_with<T: DeserializeOwned>(
        &self,
        below: &[&str],
        query: &[(&str, String)],
    ) -> Result<Vec<T>, Fault> {
        let mut list = Vec::new();
        let push = |element| {
            list.push(element);
            match list.len() * size_of::<T>() > BODY_MAX_BYTES {
                true => Err(too_large()),
                false => Ok(()),
            }
        };
        self.elements(below, query, BODY_MAX_BYTES, push).await?;
        Ok(list)
    }

    async fn elements<T: DeserializeOwned>(
        &self,
        below: &[&str],
        query: &[(&str, String)],
        bytes_max: usize,
        mut each: impl FnMut(T) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut response, redirected) = self.ask(below, query).await?;
        let mut elements = Elements::default();
        let not_a_list = |fault| match fault {
            NotAList::Begins(byte) => {
                let error = serde::de::Error::custom("it is not a list");
                self.unusable(&redirected, byte == b'<', &error)
            }
            NotAList::TooLarge => Fault::Unusable(format!(
                "its answer{redirected} has an element of more than {} MiB, which is not taken in",
                ELEMENT_MAX_BYTES >> 20
            )),
            NotAList::Cut => Fault::Unusable(format!("its answer{redirected} ends in the middle")),
        };
        while let Some(chunk) = response.chunk(bytes_max).await? {
            elements
                .take(&chunk, |element| {
                    let element = serde_json::from_slice(element).map_err(Stopped::Element)?;
                    each(element).map_err(Stopped::Fault)
                })
                .map_err(|stopped| match stopped {
                    Stopped::List(fault) => not_a_list(fault),
                    Stopped::Element(error) => self.unusable(&redirected, false, &error),
                    Stopped::Fault(fault) => fault,
                })?;
        }
        elements.end().map_err(not_a_list)
    }

    /// The response, and ` after a redirect to …` where there was one.
    async fn ask(
        &self,
        below: &[&str],
        query: &[(&str, String)],
    ) -> Result<(HttpResponse, String), Fault> {
        let path = self.api.root.iter().chain(below).copied();
        let token = self.access.token().await?;
        let mut request = self.client.get(path, query, token.as_deref());
        if let Some((name, value)) = &self.access.header {
            request = request.header(*name, value);
        }
        let response = self.client.send(request).await;
        let response = response.map_err(|error| self.no_response(error))?;
        let status = response.status();
        let redirected = match &response.redirected_to {
            Some(to) => format!(" after a redirect to {to}"),
            None => String::new(),
        };
        if status == StatusCode::NOT_FOUND {
            let body = response.body(BODY_MAX_BYTES).await?;
            return Err(Fault::NotFound(beginning(&body)));
        }
        if status == StatusCode::GONE {
            return Err(Fault::Gone);
        }
        if status == StatusCode::UNAUTHORIZED {
            let log_in = self.api.log_in;
            return Err(Fault::Unusable(format!(
                "it answers {status}{redirected}: {log_in}"
            )));
        }
        if !status.is_success() {
            return Err(Fault::Unusable(format!("it answers {status}{redirected}")));
        }
        Ok((response, redirected))
    }

    fn no_response(&self, error: HttpError) -> Fault {
        let is_untrusted = error.kind == HttpErrorKind::UnknownAuthority;
        match error.into() {
            Fault::Unusable(why) if is_untrusted => {
                Fault::Unusable(format!("{why}: {}", self.api.trust))
            }
            fault => fault,
        }
    }

    fn unusable(&self, redirected: &str, page: bool, error: &serde_json::Error) -> Fault {
        Fault::Unusable(if page {
            format!(
                "it answers with a page{redirected}, not with JSON: a login page, a server that is still loading, \
                 or not the address of {}",
                self.api.server
            )
        } else if error.is_eof() {
            format!("its answer{redirected} ends in the middle")
        } else {
            format!("its answer{redirected} is not as expected: {error}")
        })
    }
}

impl Access {
    async fn token(&self) -> Result<Option<String>, Fault> {
        let Some(file) = &self.token_file else {
            return Ok(None);
        };
        let read = async {
            let mut token = String::new();
            let file = tokio::fs::File::open(&**file).await?;
            let mut file = file.take(TOKEN_MAX_BYTES);
            file.read_to_string(&mut token).await?;
            Ok::<_, std::io::Error>(token)
        };
        let fault = |why: &str| {
            let file = file.display();
            Fault::Unusable(format!("the token in {file} cannot be used: {why}"))
        };
        let token = read.await.map_err(|error| fault(&error.to_string()))?;
        let token = token.trim();
        let is_token = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
        match is_token {
            true => Ok(Some(token.to_owned())),
            false => Err(fault("expected one word of ASCII characters")),
        }
    }
}

/// The address without the end that people may leave out, and the credentials.
fn base(address: &Address, api: &Api) -> Result<(Url, Option<Credentials>), String> {
    let (mut base, credentials) = address.to_http()?;
    let path = base.path().trim_end_matches('/').to_owned();
    base.set_path(path.strip_suffix(api.version).unwrap_or(&path));
    Ok((base, credentials))
}

impl From<HttpError> for Fault {
    fn from(error: HttpError) -> Self {
        let fault = match error.kind {
            HttpErrorKind::Refused => Self::Refused,
            HttpErrorKind::Timeout => {
                Self::NoAnswer(format!("it does not answer within {RESPONSE_TIMEOUT:?}"))
            }
            HttpErrorKind::CutShort => Self::Unusable("its answer is cut short".to_owned()),
            HttpErrorKind::TooLarge => too_large(),
            HttpErrorKind::UnknownAuthority
            | HttpErrorKind::InvalidCertificate
            | HttpErrorKind::NoTls => Self::Unusable(error.cause().to_owned()),
            HttpErrorKind::Other => Self::NoAnswer(error.cause().to_owned()),
        };
        match error.redirected_to {
            // The server itself has answered.
            Some(to) => Self::Unusable(format!("no answer after a redirect to {to}: {fault}")),
            None => fault,
        }
    }
}

enum Stopped {
    List(NotAList),
    Element(serde_json::Error),
    Fault(Fault),
}

impl From<NotAList> for Stopped {
    fn from(fault: NotAList) -> Self {
        Self::List(fault)
    }
}

fn too_large() -> Fault {
    Fault::Unusable(format!(
        "its answer is larger than {} MiB, which is not taken in",
        BODY_MAX_BYTES >> 20
    ))
}

/// The first words of an answer, on one line.
fn beginning(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(120) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests;
