//! An address that may hold a secret: a user and password, or a token.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use percent_encoding::percent_decode_str;
use reqwest::Url;

/// Suffixes of the names of query fields with secret values.
const SECRET_FIELDS: &[&str] = &[
    "password",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "delegation",
    "signature",
];

/// An address as it was given, such as `SCHEME://USER:PASSWORD@HOST:PORT/PATH?QUERY`. `Display` and `Debug`
/// omit user, password, query and fragment, even of a malformed address.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(String);

/// User and password, decoded.
pub type Credentials = (String, Option<String>);

impl Address {
    /// The address of an HTTP service; without a scheme, `http`.
    pub fn http(text: &str) -> Self {
        let text = text.trim();
        match text.contains("://") || text.is_empty() {
            true => Self(text.to_owned()),
            false => Self(format!("http://{text}")),
        }
    }

    /// The whole address, for the client that connects to it. Never show it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The base URL without user, query and fragment, which may be shown, and the credentials. The query is
    /// dropped, because clients append paths.
    ///
    /// # Errors
    /// If it is not an `http` or `https` URL with a host; the reason contains no secrets.
    pub fn to_http(&self) -> Result<(Url, Option<Credentials>), String> {
        let url = self.http_url();
        let mut url = url.ok_or_else(|| {
            format!("{self} is malformed: expected http://HOST:PORT/PATH or https://HOST:PORT/PATH")
        })?;
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let user = decoded(url.username());
        let password = url.password().map(decoded);
        url.set_query(None);
        url.set_fragment(None);
        // These fail only without a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        let credentials = (!user.is_empty() || password.is_some()).then_some((user, password));
        Ok((url, credentials))
    }

    fn http_url(&self) -> Option<Url> {
        let url = Url::parse(&self.0).ok()?;
        (matches!(url.scheme(), "http" | "https") && url.has_host()).then_some(url)
    }

    /// Whether it contains a password, or a token in its query.
    pub fn holds_secret(&self) -> bool {
        let (scheme, rest) = self.scheme_and_rest();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may contain a slash, though it should not.
        let user = place.rsplit_once('@').map(|(user, _)| user);
        let has_password = !scheme.is_empty() && user.is_some_and(|user| user.contains(':'));
        let is_secret = |field: &str| {
            let name = field.split('=').next().unwrap_or_default();
            let name = percent_decode_str(name).decode_utf8_lossy().to_lowercase();
            SECRET_FIELDS.iter().any(|secret| name.ends_with(secret))
        };
        has_password || query.split('&').any(is_secret)
    }

    /// `SCHEME://`, or an empty text, and the rest.
    fn scheme_and_rest(&self) -> (&str, &str) {
        let of_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        match self.0.find("://") {
            Some(end) if self.0[..end].chars().all(of_scheme) => self.0.split_at(end + 3),
            _ => ("", &self.0),
        }
    }
}

impl FromStr for Address {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = self.scheme_and_rest();
        let user_end = rest.rfind('@').map_or(0, |at| at + 1);
        let place = &rest[user_end..];
        let place = &place[..place.find(['?', '#']).unwrap_or(place.len())];
        // `ada:hunter2`, cut off before the `@`, is not a host and a port.
        let user = place.split_once(':').filter(|(user, after)| {
            user_end == 0
                && !scheme.is_empty()
                && !user.contains(['[', '/'])
                && !after.starts_with(|c: char| c.is_ascii_digit())
        });
        match user {
            Some((user, _)) => write!(f, "{scheme}{user}:…"),
            None => write!(f, "{scheme}{place}"),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// The origin of a response: host, port and path of its URL, without possible secrets.
pub fn host_and_path(url: &Url) -> String {
    // A session id may follow a semicolon.
    let path = url.path().split(';').next().unwrap_or_default();
    format!("{}{path}", host_and_port(url))
}

/// `host:port`; the default port of the scheme if the URL has none.
pub fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port_or_known_default() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Whether the host is this machine, which no proxy of the environment can reach.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// Parses the [`Address`] of an option. It may contain a secret in the environment, but not on the command
/// line, which every user of the machine can read. No error shows a secret.
#[derive(Clone)]
pub struct AddressParser {
    is_http: bool,
    instead: &'static str,
}

impl AddressParser {
    /// For an HTTP service. On the command line, it may not have a user either, because that can be a token.
    /// `instead` names another way to give the secret.
    pub fn http(instead: &'static str) -> Self {
        let is_http = true;
        Self { is_http, instead }
    }

    /// For a database.
    pub fn database(instead: &'static str) -> Self {
        let is_http = false;
        Self { is_http, instead }
    }
}

impl TypedValueParser for AddressParser {
    type Value = Address;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Address, clap::Error> {
        self.parse_ref_(command, argument, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        _: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<Address, clap::Error> {
        let wrong = |why: &str| {
            let argument = argument.map(clap::Arg::to_string).unwrap_or_default();
            clap::Error::raw(ErrorKind::ValueValidation, format!("{argument}: {why}\n"))
        };
        let text = value.to_str().ok_or_else(|| wrong("expected UTF-8"))?;
        let on_command_line = source == ValueSource::CommandLine;
        let refused = |what: &str| {
            let instead = self.instead;
            wrong(&format!(
                "it holds {what}, and every user can read a command line; leave it out and give it by {instead}"
            ))
        };
        if !self.is_http {
            let address = Address(text.to_owned());
            return match on_command_line && address.holds_secret() {
                true => Err(refused("a password")),
                false => Ok(address),
            };
        }
        let address = Address::http(text);
        if text.trim().is_empty() {
            return Ok(address); // an option that is not used
        }
        if on_command_line && address.holds_secret() {
            return Err(refused("a password or token"));
        }
        let (_, credentials) = address.to_http().map_err(|why| wrong(&why))?;
        match on_command_line && credentials.is_some() {
            true => Err(refused("a user")),
            false => Ok(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    fn http(text: &str) -> Result<(String, Option<Credentials>), String> {
        let parsed = Address::http(text).to_http();
        parsed.map(|(url, credentials)| (url.to_string(), credentials))
    }

    #[test]
    fn a_client_gets_the_url_and_the_credentials_apart() {
        let user = |user: &str, password: Option<&str>| {
            Some((user.to_owned(), password.map(str::to_owned)))
        };
        for (text, url, credentials) in [
            ("node-1:4040", "http://node-1:4040/", None),
            (" https://history/a/?x=1#y ", "https://history/a/", None),
            (
                "http://ada:hun%2Fter%402@[::1]:18080/p",
                "http://[::1]:18080/p",
                user("ada", Some("hun/ter@2")),
            ),
            ("https://token@h", "https://h/", user("token", None)),
        ] {
            assert_eq!(http(text), Ok((url.to_owned(), credentials)), "{text}");
        }
        for text in ["ftp://h", "", "http://", "http://h:port", "http://a b"] {
            assert!(http(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_form_of_an_address_is_shown_with_a_secret() {
        for (text, shown) in [
            (
                "http://ada:hunter2@h:4040/p?token=hunter2#hunter2",
                "http://h:4040/p",
            ),
            ("http://ada:hunter2/x@h:4040", "http://h:4040"),
            ("http://ada:hunter2?x@h:4040", "http://h:4040"),
            ("http://ada:9hunter2/x@h", "http://h"),
            ("http://hunter2@h:99999", "http://h:99999"),
            ("http://ada:hunter2", "http://ada:…"),
            ("ada:hunter2@h", "http://h"),
            ("http://[::1]:4040/p", "http://[::1]:4040/p"),
            (
                "postgres://ada:hunter2@h1:1,h2:2/db?password=hunter2",
                "postgres://h1:1,h2:2/db",
            ),
            ("mysql://ada:hunter2@h/db", "mysql://h/db"),
        ] {
            let address = Address::http(text);
            assert_eq!(address.to_string(), shown, "{text}");
            assert_eq!(format!("{address:?}"), format!("\"{shown}\""));
            let error = address.to_http().err().unwrap_or_default();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert_eq!(
            Address::from_str("postgres:ada:hunter2@h")
                .unwrap()
                .to_string(),
            "h"
        );
        let file = Address::from_str("sqlite:tasks.db?mode=ro").unwrap();
        assert_eq!(file.to_string(), "sqlite:tasks.db");
    }

    fn parsed(parser: AddressParser, arguments: &[&str]) -> Result<Address, String> {
        let url = Arg::new("url")
            .long("url")
            .value_name("URL")
            .value_parser(parser);
        let command = Command::new("test").no_binary_name(true).arg(url);
        let matches = command.try_get_matches_from(arguments);
        let matches = matches.map_err(|error| error.to_string())?;
        Ok(matches.get_one::<Address>("url").unwrap().clone())
    }

    #[test]
    fn a_secret_on_a_command_line_is_refused_and_not_shown() {
        for url in [
            "http://ada:hunter2@h",
            "ada:hunter2@h",
            "http:ada:hunter2@h",
            "http:\\\\ada:hunter2@h",
            "https://hunter2@h",
            "http://ada:hun/hunter2@h",
            "http://h/?user=a&access_token=hunter2",
            "http://h/?t%6Fken=hunter2",
            "http://ada:hunter2",
            "ftp://ada:hunter2@h",
        ] {
            let why = parsed(AddressParser::http("SPARK_URL"), &["--url", url]).unwrap_err();
            assert!(why.starts_with("error: --url <URL>: "), "{why}");
            assert!(!why.contains("hunter2"), "{url}: {why}");
        }
        for url in [
            "postgres://ada:hunter2@h/db",
            "postgres://ada:hun/hunter2@h/db",
            "postgres://ada@h/db?p%61ssword=hunter2",
            "postgres://h1,h2/db?user=a&password=hunter2",
        ] {
            let why = parsed(AddressParser::database("PGPASSWORD"), &["--url", url]).unwrap_err();
            assert!(
                why.contains("PGPASSWORD") && !why.contains("hunter2"),
                "{why}"
            );
        }
        for url in [
            "postgres://ada@h1:1,h2:2/db?sslkey=/k",
            "sqlite:/home/a:b@c/t.db",
            "sqlite:t.db",
        ] {
            let address = parsed(AddressParser::database("PGPASSWORD"), &["--url", url]).unwrap();
            assert_eq!(address.reveal(), url);
        }
        let address = parsed(AddressParser::http("SPARK_URL"), &["--url", "h:4040"]).unwrap();
        assert_eq!(address.reveal(), "http://h:4040");
    }

    #[test]
    fn the_origin_of_a_response_is_shown_without_secrets() {
        let url = Url::parse("http://ada:pw@login/a;jsessionid=1?from=spark#x").unwrap();
        assert_eq!(host_and_path(&url), "login:80/a");
    }
}
