//! Client of a schema registry: the part of Confluent's API that writers and readers of Avro need. An
//! unusable response (HTML, a login redirect, …) counts as an outage, never as an answer about a schema.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::address::Address;
use crate::backoff::Backoff;
use crate::error::NeedsAttention;
use crate::health::Health;
use crate::http::{
    Certificate, HttpClient, HttpError, HttpErrorKind, HttpOptions, Method, StatusCode,
};
use crate::kafka::{KafkaOptions, REGISTRY_PREFIX, USER_INFO_INSTEAD};
use crate::{repeats, warn_of_change};

const URL: &str = "schema.registry.url";
const USER_INFO: &str = "schema.registry.basic.auth.user.info";
const CA: &str = "schema.registry.ssl.ca.location";
/// As in [`USER_INFO`].
const USER_INFO_VARIABLE: &str = "SCHEMA_REGISTRY_USER_INFO";
/// Timeout of a response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of conflicts reported for a schema before the conflict counts as real.
const CONFLICTS: usize = 3;
/// Maximum size of a response.
const BODY_MAX_BYTES: usize = 4 << 20;
/// Compatibility of the subjects that programs write: every version reads every other one.
const COMPATIBILITY: &str = "FULL_TRANSITIVE";
/// Confluent's error code for an unknown schema id.
const NO_SUCH_SCHEMA: i64 = 40_403;

/// Why a request to a registry failed.
#[derive(Clone, Debug, PartialEq)]
pub enum RegistryError {
    /// The registry does not answer, or not as a registry does: try again later.
    Away(String),
    /// Needs an operator.
    Refused(String),
}

/// A schema registry.
#[derive(Clone)]
pub struct Registry(HttpClient);

/// A usable response.
struct Answer {
    status: StatusCode,
    body: Value,
}

impl Answer {
    fn code(&self) -> i64 {
        self.body["error_code"].as_i64().unwrap_or(0)
    }

    fn message(&self) -> String {
        let message = self.body["message"].as_str().unwrap_or_default();
        message.chars().take(500).collect()
    }
}

impl Registry {
    /// The registry of these options, if they name one. Does not connect.
    ///
    /// # Errors
    /// If a setting is wrong.
    pub fn of(options: &KafkaOptions) -> anyhow::Result<Option<Self>> {
        let user_info = std::env::var(USER_INFO_VARIABLE).ok();
        let user_info = user_info.filter(|info| !info.trim().is_empty());
        Self::with(options, user_info).map_err(|why| NeedsAttention(why).into())
    }

    fn with(options: &KafkaOptions, user_info: Option<String>) -> Result<Option<Self>, String> {
        let chosen = options.chosen().map_err(|error| format!("{error:#}"))?;
        let mut ours = chosen.keys().filter(|key| key.starts_with(REGISTRY_PREFIX));
        if let Some(unknown) = ours.find(|key| ![URL, USER_INFO, CA].contains(&key.as_str())) {
            return Err(format!(
                "{unknown} is not a registry setting; there are {URL}, {USER_INFO} and {CA}"
            ));
        }
        if options.settings.iter().any(|(key, _)| key == USER_INFO) {
            return Err(format!(
                "-X {USER_INFO}: other users can read a command line; give the environment variable \
                 {USER_INFO_VARIABLE}, or a line of --kafka-config"
            ));
        }
        let of_file = chosen.get(URL).map(|url| Address::http(url));
        let address = options.schema_registry.clone().or(of_file);
        let Some(address) = address.filter(|address| !address.reveal().is_empty()) else {
            return Ok(None);
        };
        let (base, credentials) = address
            .to_http()
            .map_err(|why| format!("--schema-registry: {why}"))?;
        if credentials.is_some() {
            return Err(format!(
                "--schema-registry: the address may not contain user and password, which other users could read; give {USER_INFO_INSTEAD}"
            ));
        }
        let user_info = user_info.or_else(|| chosen.get(USER_INFO).cloned());
        let user = user_info
            .filter(|user_info| !user_info.is_empty())
            .map(|user_info| {
                let (user, password) = user_info.split_once(':').ok_or_else(|| {
                    format!("{USER_INFO_VARIABLE} or {USER_INFO}: expected USER:PASSWORD")
                })?;
                Ok::<_, String>((user.to_owned(), Some(password.to_owned())))
            })
            .transpose()?;

        let mut certificates = Vec::new();
        if let Some(file) = chosen.get(CA) {
            let pem = std::fs::read(file).map_err(|error| format!("{CA} {file}: {error}"))?;
            certificates = Certificate::from_pem_bundle(&pem)
                .map_err(|error| format!("{CA} {file}: {error}"))?;
            if certificates.is_empty() {
                return Err(format!("{CA} {file}: holds no certificate in PEM"));
            }
        }
        let options = HttpOptions {
            response_timeout: RESPONSE_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            follow_redirects: false,
            user_agent: None,
            certificates,
        };
        let client = HttpClient::new(base, user, options)
            .map_err(|error| format!("--schema-registry: {error}"))?;
        Ok(Some(Self(client)))
    }

    /// The address, for people.
    pub fn shown(&self) -> &str {
        self.0.shown()
    }

    /// The text of the schema with this id; `None` if there is none.
    ///
    /// # Errors
    /// If the registry does not answer, or refuses.
    pub async fn schema(&self, id: u32) -> Result<Option<String>, RegistryError> {
        let answer = self
            .ask(Method::GET, &["schemas", "ids", &id.to_string()], None)
            .await?;
        match answer.body["schema"].as_str() {
            Some(schema) if answer.status.is_success() => Ok(Some(schema.to_owned())),
            _ if answer.code() == NO_SUCH_SCHEMA => Ok(None),
            _ if answer.status == StatusCode::FORBIDDEN => Err(RegistryError::Refused(format!(
                "the schema registry {} does not allow reading schemas: {}",
                self.shown(),
                answer.status
            ))),
            _ => Err(self.away(&format!(
                "unexpected answer {} to the request for schema id {id} (is there a path missing in its address, \
                 such as /apis/ccompat/v7?): {}",
                answer.status,
                answer.message()
            ))),
        }
    }

    /// Registers the schema of a subject, unless it is registered, sets the subject's compatibility to
    /// `FULL_TRANSITIVE`, and returns the schema's id.
    ///
    /// # Errors
    /// If the registry does not answer, or refuses the schema, e.g. as incompatible with registered ones.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        // Set before the first version is registered, so that no other version comes between.
        let body = json!({"compatibility": COMPATIBILITY});
        let path = ["config", subject];
        let rule = self.ask(Method::PUT, &path, Some(body)).await?;
        if !rule.status.is_success() {
            warn_of_change!(
                "{}: cannot set the compatibility of {subject} to {COMPATIBILITY}, continuing: {} {}",
                self.shown(),
                rule.status,
                rule.message()
            );
        }
        let body = json!({"schema": schema});
        let path = ["subjects", subject, "versions"];
        let mut tries = 0;
        let answer = loop {
            let answer = self.ask(Method::POST, &path, Some(body.clone())).await?;
            // A program with read access only finds the schema that another one has registered. So does one
            // of several that start at the same moment, to which Apicurio reports a conflict.
            let conflict = answer.status == StatusCode::CONFLICT;
            if conflict || answer.status == StatusCode::FORBIDDEN {
                let found = self
                    .ask(Method::POST, &path[..2], Some(body.clone()))
                    .await?;
                if found.status.is_success() {
                    break found;
                }
            }
            tries += 1;
            if !conflict || tries == CONFLICTS {
                break answer;
            }
            sleep(Duration::from_millis(500)).await;
        };
        let id = answer.body["id"].as_u64();
        match id.and_then(|id| u32::try_from(id).ok()) {
            Some(id) if answer.status.is_success() => Ok(id),
            _ => {
                let hint = match answer.status {
                    StatusCode::CONFLICT => {
                        ": it is not compatible with the registered schema; is the subject another program's, or this one older?"
                    }
                    StatusCode::NOT_FOUND => {
                        ": is there a path missing in its address, such as /apis/ccompat/v7?"
                    }
                    _ => "",
                };
                Err(RegistryError::Refused(format!(
                    "the schema registry {} refuses the schema of {subject} ({}{hint}): {}",
                    self.shown(),
                    answer.status,
                    answer.message()
                )))
            }
        }
    }

    fn away(&self, what: &str) -> RegistryError {
        RegistryError::Away(format!("the schema registry {}: {what}", self.shown()))
    }

    async fn ask(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
    ) -> Result<Answer, RegistryError> {
        let mut request = self.0.request(method, path.iter().copied()).header(
            "Accept",
            "application/vnd.schemaregistry.v1+json, application/json",
        );
        if let Some(body) = body {
            request = request
                .header("Content-Type", "application/vnd.schemaregistry.v1+json")
                .body(body.to_string());
        }
        let no_response = |error: HttpError| {
            match error.kind {
            HttpErrorKind::UnknownAuthority => self.away(&format!(
                "{}; give the file of its root certificate by {CA} in --kafka-config, or by -X {CA}=FILE",
                error.cause()
            )),
            _ => self.away(&error.to_string()),
        }
        };
        let response = self.0.send(request).await.map_err(no_response)?;
        let status = response.status();
        let bytes = response.body(BODY_MAX_BYTES).await.map_err(no_response)?;
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match status {
            StatusCode::UNAUTHORIZED => Err(RegistryError::Refused(format!(
                "the schema registry {} refuses {}: {status}",
                self.shown(),
                match self.0.credentials() {
                    Some((user, _)) => format!("user {user} or the password"),
                    None => format!(
                        "requests without user and password; give {USER_INFO_VARIABLE}=USER:PASSWORD, or {USER_INFO} in --kafka-config"
                    ),
                }
            ))),
            _ if status.is_client_error()
                && status != StatusCode::TOO_MANY_REQUESTS
                && status != StatusCode::REQUEST_TIMEOUT =>
            {
                Ok(Answer { status, body })
            }
            _ if status.is_success() && body.is_object() => Ok(Answer { status, body }),
            _ => Err(self.away(&format!("it answers {status}"))),
        }
    }
}

/// Repeats a request until the registry answers. Logs an outage once and reports it to `health`; `None` on
/// shutdown.
///
/// # Errors
/// If the registry refuses the request.
pub async fn until_answered<T, F: Future<Output = Result<T, RegistryError>>>(
    ask: impl Fn() -> F,
    health: &Health,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<T>> {
    let (mut backoff, mut away_since) = (Backoff::default(), None);
    loop {
        let answer = tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            answer = ask() => answer,
        };
        match answer {
            Ok(answer) => {
                if let Some(begun) = away_since {
                    let after = repeats::end_since(module_path!(), begun);
                    tracing::info!("the schema registry answers again, {after}");
                    health.answered();
                }
                return Ok(Some(answer));
            }
            Err(RegistryError::Away(what)) => {
                away_since.get_or_insert_with(Instant::now);
                warn_of_change!("waiting for {what}");
                health.waiting_for(what);
            }
            Err(RegistryError::Refused(why)) => return Err(NeedsAttention(why).into()),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = sleep(backoff.pause()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(url: Option<&str>, settings: &[(&str, &str)], file: &str) -> KafkaOptions {
        let file = (!file.is_empty()).then(|| {
            let name = format!("registry-{}-{}", std::process::id(), file.len());
            let path = std::env::temp_dir().join(name);
            std::fs::write(&path, file).unwrap();
            path
        });
        KafkaOptions {
            bootstrap_servers: "localhost:1".into(),
            kafka_config: file,
            settings: settings
                .iter()
                .map(|(k, v)| ((*k).into(), (*v).into()))
                .collect(),
            schema_registry: url.map(Address::http),
            client_id: None,
        }
    }

    fn with(options: &KafkaOptions, user_info: Option<&str>) -> Result<Option<Registry>, String> {
        let registry = Registry::with(options, user_info.map(Into::into));
        if let Some(file) = &options.kafka_config {
            std::fs::remove_file(file).unwrap();
        }
        registry
    }

    fn credentials(registry: &Registry) -> (String, Option<String>) {
        registry.0.credentials().unwrap()
    }

    #[test]
    fn the_address_is_the_options_or_the_files_and_the_secret_the_environments_or_the_files() {
        let none = with(&options(None, &[], ""), Some("u:p")).unwrap();
        assert!(none.is_none());
        let file = "schema.registry.url=http://there:81/apis\nschema.registry.basic.auth.user.info=ada:a:b\nlinger.ms=7\n";
        let of_file = options(None, &[], file);
        let config = of_file.client_config(&[], &[]).unwrap();
        assert_eq!(config.get("linger.ms"), Some("7"));
        assert_eq!(config.get(URL), None);
        let registry = with(&of_file, None).unwrap().unwrap();
        assert_eq!(registry.shown(), "http://there:81/apis");
        assert_eq!(
            credentials(&registry),
            ("ada".to_owned(), Some("a:b".to_owned()))
        );
        let given = options(Some("https://here/"), &[], file);
        let registry = with(&given, Some("eve:x")).unwrap().unwrap();
        assert_eq!(registry.shown(), "https://here");
        assert_eq!(
            credentials(&registry),
            ("eve".to_owned(), Some("x".to_owned()))
        );
    }

    #[test]
    fn a_secret_where_others_can_read_it_is_refused_and_not_shown() {
        let in_address = options(Some("http://ada:hunter2@here"), &[], "");
        let by_x = options(Some("http://here"), &[(USER_INFO, "ada:hunter2")], "");
        let no_address = options(Some("hunter2@here"), &[], "");
        for options in [in_address, by_x, no_address] {
            let why = with(&options, None).err().unwrap();
            assert!(!why.contains("hunter2"), "{why}");
        }
        let unknown = options(Some("http://here"), &[("schema.registry.token", "x")], "");
        let why = with(&unknown, None).err().unwrap();
        assert!(
            why.contains("schema.registry.token is not a registry setting"),
            "{why}"
        );
        let no_file = options(Some("http://here"), &[(CA, "/no/such.pem")], "");
        let why = with(&no_file, None).err().unwrap();
        assert!(why.contains("/no/such.pem"), "{why}");
    }
}
