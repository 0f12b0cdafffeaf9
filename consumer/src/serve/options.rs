//! Options of `consumer serve`, and their valid combinations.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use axum::http::header::{AUTHORIZATION, COOKIE, HOST};
use axum::http::{HeaderName, Uri};
use clap::builder::FalseyValueParser;
use ipnet::{IpNet, Ipv4Net};
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
    /// Addresses of proxies whose --user-header is trusted, or networks of theirs, as in 10.1.0.0/16; it is refused from
    /// other addresses
    #[arg(
        long,
        env = "SERVE_TRUSTED_PROXY",
        value_name = "ADDR,…",
        value_delimiter = ',',
        value_parser = network,
        requires = "user_header"
    )]
    pub trusted_proxy: Vec<IpNet>,
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

/// An address, or a network without bits behind its prefix. IPv4 addresses in IPv6 become IPv4.
fn network(text: &str) -> Result<IpNet, String> {
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text
            .parse::<IpNet>()
            .map_err(|_| "expected an address or a network, as in 10.1.2.3 or 10.1.0.0/16")?,
    };
    let truncated = network.trunc();
    if truncated != network {
        return Err(format!(
            "{text} has bits behind its prefix; for that network, write {truncated}"
        ));
    }
    let network = match network.addr().to_canonical() {
        IpAddr::V4(mapped) if network.prefix_len() >= 96 && network.addr().is_ipv6() => {
            Ipv4Net::new(mapped, network.prefix_len() - 96).map_or(network, IpNet::V4)
        }
        _ => network,
    };
    if network.prefix_len() == 0 {
        return Err("all addresses: then every client could claim to be any user".to_owned());
    }
    Ok(network)
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
    fn proxies_are_addresses_or_networks_without_bits_behind_the_prefix() {
        let contains = |text: &str, address: &str| {
            let network = network(text).unwrap();
            network.contains(&address.parse::<IpAddr>().unwrap().to_canonical())
        };
        assert!(contains("10.1.2.3", "10.1.2.3") && !contains("10.1.2.3", "10.1.2.4"));
        assert!(contains("10.1.2.3/32", "::ffff:10.1.2.3"));
        assert!(contains("10.1.0.0/16", "10.1.255.255") && !contains("10.1.0.0/16", "10.2.0.0"));
        assert!(contains("10.1.0.0/16", "::ffff:10.1.0.1"));
        assert!(contains("::ffff:10.1.0.0/112", "10.1.9.9"));
        assert!(contains("::ffff:10.1.2.3", "10.1.2.3"));
        assert!(contains("fd00:1::/32", "fd00:1:2::3") && !contains("fd00:1::/32", "fd00:2::3"));
        assert!(!contains("fd00:1::/32", "10.1.2.3"));
        for (bad, why) in [
            ("10.1.2.3/16", "write 10.1.0.0/16"),
            ("0.0.0.0/0", "every client"),
            ("::/0", "every client"),
            ("::ffff:0.0.0.0/96", "every client"),
            ("10.1.2.3/33", "expected an address"),
            ("proxy.example", "expected an address"),
            ("", "expected an address"),
            ("10.1", "expected an address"),
        ] {
            let error = network(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

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
