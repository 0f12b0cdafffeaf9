//! Options of `consumer serve`, and their valid combinations.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use axum::http::header::{AUTHORIZATION, COOKIE, HOST};
use axum::http::{HeaderName, Uri};
use clap::builder::FalseyValueParser;
use service::exit::WrongUsage;

/// Options of `consumer serve`.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServeOptions {
    /// Address to listen on; addresses other than loopback require --tokens or --user-header
    #[arg(
        long,
        env = "SERVE_LISTEN",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Host names to accept besides localhost; without any, a server on loopback accepts only localhost, others accept
    /// any name
    #[arg(
        long,
        env = "SERVE_ALLOW_HOST",
        value_name = "NAME,…",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,
    /// Origins whose pages may read the API (CORS), as in https://portal.example; none by default
    #[arg(
        long,
        env = "SERVE_ALLOW_ORIGIN",
        value_name = "ORIGIN,…",
        value_delimiter = ',',
        value_parser = origin
    )]
    pub allow_origin: Vec<String>,
    /// Certificate chain for HTTPS (PEM file)
    #[arg(
        long,
        env = "SERVE_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM file, PKCS #8)
    #[arg(
        long,
        env = "SERVE_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,
    /// File of bearer tokens, one per line: `sha256:HEX operator` or `sha256:HEX viewer=USER`, where HEX is the SHA-256
    /// checksum of the token
    #[arg(
        long,
        env = "SERVE_TOKENS",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub tokens: Option<PathBuf>,
    /// Request header with the user's name, set by a proxy that has authenticated the user
    #[arg(
        long,
        env = "SERVE_USER_HEADER",
        value_name = "NAME",
        requires = "trusted_proxy"
    )]
    pub user_header: Option<HeaderName>,
    /// Addresses of proxies whose --user-header is trusted; it is refused from other addresses
    #[arg(
        long,
        env = "SERVE_TRUSTED_PROXY",
        value_name = "ADDR,…",
        value_delimiter = ',',
        requires = "user_header"
    )]
    pub trusted_proxy: Vec<IpAddr>,
    /// Users of --user-header who see all tasks; others see only their own
    #[arg(
        long,
        env = "SERVE_OPERATOR",
        value_name = "USER,…",
        value_delimiter = ',',
        requires = "user_header"
    )]
    pub operator: Vec<String>,
    /// Also serve Apache Linkis' REST API for running tasks: /api/rest_j/v1/entrance/… and /api/rest_j/v1/jobhistory/…
    #[arg(long, env = "SERVE_LINKIS", value_parser = FalseyValueParser::new())]
    pub linkis: bool,
    /// Total cores of the queue, for corePercent of --linkis
    #[arg(
        long,
        env = "SERVE_LINKIS_QUEUE_CORES",
        value_name = "NUMBER",
        default_value_t = 300,
        value_parser = clap::value_parser!(u32).range(1..),
        requires = "linkis"
    )]
    pub linkis_queue_cores: u32,
    /// Total memory of the queue in GiB, for memoryPercent of --linkis
    #[arg(
        long,
        env = "SERVE_LINKIS_QUEUE_MEMORY_GIB",
        value_name = "NUMBER",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(1..),
        requires = "linkis"
    )]
    pub linkis_queue_memory_gib: u32,
}

impl ServeOptions {
    /// # Errors
    /// If the options would expose tasks to anyone.
    pub fn check(&self) -> Result<(), WrongUsage> {
        let has_own_meaning = [HOST, AUTHORIZATION, COOKIE];
        let header = self.user_header.as_ref();
        if let Some(header) = header.filter(|header| has_own_meaning.contains(header)) {
            return Err(WrongUsage(format!(
                "--user-header {header}: clients set this header themselves; name one that only the proxy sets, as in \
                 x-forwarded-user"
            )));
        }
        let is_open = self.tokens.is_none() && self.user_header.is_none();
        if is_open && !self.listen.ip().is_loopback() {
            return Err(WrongUsage(format!(
                "--listen {}: other machines can reach this address, and requests would not be authenticated; add --tokens \
                 FILE, or --user-header NAME and --trusted-proxy ADDR, or listen on loopback, as in 127.0.0.1:8080",
                self.listen
            )));
        }
        Ok(())
    }
}

/// An origin as browsers send it: scheme, host, and the port unless it is the scheme's default.
fn origin(text: &str) -> Result<String, &'static str> {
    let expected = "expected an origin as browsers send it, as in https://portal.example or http://localhost:3000";
    let uri: Uri = text.parse().map_err(|_| expected)?;
    let scheme = uri
        .scheme_str()
        .filter(|scheme| ["http", "https"].contains(scheme));
    let authority = uri.authority().map(|authority| authority.as_str());
    match (scheme, authority) {
        (Some(scheme), Some(authority))
            if text == format!("{scheme}://{authority}") && !authority.contains('@') =>
        {
            Ok(text.to_ascii_lowercase())
        }
        _ => Err(expected),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for good in [
            "https://portal.example",
            "http://localhost:3000",
            "http://[::1]:1",
        ] {
            assert_eq!(origin(good).as_deref(), Ok(good));
        }
        for bad in [
            "*",
            "null",
            "portal.example",
            "https://portal.example/",
            "https://portal.example/a",
            "ftp://portal.example",
            "https://ada@portal.example",
        ] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }
}
