//! The options of `producer listen`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use service::exit::WrongUsage;

/// Where to listen, and for whom.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Address to listen on, as in 127.0.0.1:8090, or :8090 for all addresses of this machine. Addresses other than
    /// loopback require --tokens
    #[arg(value_name = "ADDR", value_parser = address)]
    pub address: SocketAddr,

    /// File of bearer tokens, one per line: `sha256:HEX NAME`, where HEX is the SHA-256 checksum of the token, and NAME
    /// is shown in the log. A changed file is used at once
    #[arg(
        long,
        env = "LISTEN_TOKENS",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub tokens: Option<PathBuf>,

    /// Accept reports without tokens on an address that other machines can reach: something else keeps strangers away
    #[arg(long, env = "LISTEN_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new(), conflicts_with = "tokens")]
    pub allow_anonymous: bool,

    /// Host names to accept besides localhost; without any, a server on loopback accepts only localhost, others accept
    /// any name
    #[arg(
        long,
        env = "LISTEN_ALLOW_HOST",
        value_name = "NAME,…",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,

    /// Certificate chain for HTTPS (PEM file)
    #[arg(
        long,
        env = "LISTEN_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    pub tls_cert: Option<PathBuf>,

    /// Private key of the certificate (PEM file, PKCS #8)
    #[arg(
        long,
        env = "LISTEN_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    pub tls_key: Option<PathBuf>,

    /// Maximum number of runs of OpenLineage events that are remembered; the one without events for the longest time is
    /// forgotten first
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub runs: u32,
}

impl Options {
    /// # Errors
    /// If the options would let anyone report.
    pub(super) fn check(&self) -> Result<(), WrongUsage> {
        let is_open = self.tokens.is_none() && !self.allow_anonymous;
        if is_open && !self.address.ip().is_loopback() {
            return Err(WrongUsage(format!(
                "{}: other machines can reach this address, and anyone could report; add --tokens FILE, or listen on \
                 loopback, as in 127.0.0.1:8090, or add --allow-anonymous if something else keeps strangers away",
                self.address
            )));
        }
        Ok(())
    }
}

/// An address and a port; without the address, all of this machine's.
fn address(text: &str) -> Result<SocketAddr, String> {
    let every = |port: &str| format!("0.0.0.0:{port}");
    let whole = text
        .strip_prefix(':')
        .map_or_else(|| text.to_owned(), every);
    whole
        .parse()
        .map_err(|_| "expected ADDRESS:PORT or :PORT, as in 127.0.0.1:8090".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_needs_a_port_and_without_a_host_is_every_address() {
        for (given, parsed) in [
            (":8090", Some("0.0.0.0:8090")),
            ("127.0.0.1:8090", Some("127.0.0.1:8090")),
            ("[::1]:8090", Some("[::1]:8090")),
            ("8090", None),
            ("127.0.0.1", None),
            ("::1:8090x", None),
            (":", None),
        ] {
            let address = address(given).ok().map(|address| address.to_string());
            assert_eq!(address.as_deref(), parsed, "{given}");
        }
    }
}
