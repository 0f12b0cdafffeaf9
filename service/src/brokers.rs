//! Addresses of brokers. librdkafka ignores an unusable address with a warning, even if it is the only one;
//! here it is an error.

use std::net::Ipv6Addr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;

/// Default port, as in librdkafka.
const DEFAULT_PORT: u16 = 9092;
/// Maximum length of a DNS name.
const HOST_MAX_BYTES: usize = 253;
/// Prefixes that librdkafka accepts, the values of `security.protocol`.
const PROTOCOLS: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
const EXPECTED: &str = "expected HOST:PORT,…, e.g. kafka-1:9092,[::1]:9092";

/// Parser of a list of brokers' addresses. An error does not show an address that contains a password.
#[derive(Clone)]
pub(crate) struct Brokers;

impl TypedValueParser for Brokers {
    type Value = String;

    fn parse_ref(
        &self,
        _: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, clap::Error> {
        let brokers = match value.to_str() {
            Some(list) => brokers(list),
            None => Err("expected UTF-8".to_owned()),
        };
        brokers.map_err(|why| {
            let argument = argument.map(clap::Arg::to_string).unwrap_or_default();
            clap::Error::raw(ErrorKind::ValueValidation, format!("{argument}: {why}\n"))
        })
    }
}

/// Checks addresses separated by commas: `HOST`, `HOST:PORT`, `[IPv6]:PORT`, each with or without a protocol
/// as in `SASL_SSL://HOST:PORT`. Returns them without spaces, each with a port.
///
/// # Errors
/// The unusable address, and the reason.
pub(crate) fn brokers(list: &str) -> Result<String, String> {
    // Checks the whole list: a comma in a password splits it, and the first part would look like a port.
    if list.contains('@') {
        return Err(format!(
            "an address holds an @; a user and a password go into the file of --kafka-config, as sasl.username and \
             sasl.password; {EXPECTED}"
        ));
    }
    let checked: Result<Vec<String>, String> = list.split(',').map(str::trim).map(broker).collect();
    Ok(checked?.join(","))
}

/// Checks that each address with a protocol has the configured one; librdkafka ignores others.
///
/// # Errors
/// The address that has another.
pub(crate) fn check_protocol(brokers: &str, security_protocol: &str) -> Result<(), String> {
    for broker in brokers.split(',') {
        if let Some((protocol, _)) = broker.split_once("://")
            && !protocol.eq_ignore_ascii_case(security_protocol)
        {
            return Err(format!(
                "broker {broker}: security.protocol is {security_protocol}; set security.protocol={}, or write the \
                 address without {protocol}://",
                protocol.to_ascii_lowercase()
            ));
        }
    }
    Ok(())
}

fn broker(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err(format!("an address is empty; {EXPECTED}"));
    }
    let wrong = |why: String| format!("broker {text:?}: {why}; {EXPECTED}");
    let (protocol, rest) = match text.split_once("://") {
        None => (None, text),
        // librdkafka ignores a path, too.
        Some((protocol, rest)) => (
            Some(protocol.to_ascii_uppercase()),
            rest.split_once('/').map_or(rest, |(address, _)| address),
        ),
    };
    if let Some(protocol) = &protocol
        && !PROTOCOLS.contains(&protocol.as_str())
    {
        return Err(wrong(format!(
            "{}:// is not one of the protocols PLAINTEXT, SSL, SASL_PLAINTEXT and SASL_SSL",
            protocol.to_ascii_lowercase().escape_debug()
        )));
    }
    let (host, port) = host_and_port(rest).map_err(wrong)?;
    let prefix = protocol.map_or_else(String::new, |protocol| format!("{protocol}://"));
    Ok(format!("{prefix}{host}:{port}"))
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("a ] is missing")?;
        let port = match after.strip_prefix(':') {
            Some(digits) => port(digits)?,
            None if after.is_empty() => DEFAULT_PORT,
            None => return Err(format!("{after:?} follows the ]")),
        };
        if !is_ipv6(host) {
            return Err(format!("{host:?} is not an IPv6 address"));
        }
        return Ok((format!("[{host}]"), port));
    }
    // Several colons without brackets: an address without a port.
    if is_ipv6(text) {
        return Ok((format!("[{text}]"), DEFAULT_PORT));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, digits)) => (host, port(digits)?),
        None => (text, DEFAULT_PORT),
    };
    if host.is_empty() {
        return Err("the host is missing".to_owned());
    }
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if let Some(other) = host.chars().find(|c| !of_a_name(*c)) {
        return Err(format!("a host name cannot contain {other:?}"));
    }
    if host.len() > HOST_MAX_BYTES {
        return Err(format!(
            "a host name can have at most {HOST_MAX_BYTES} bytes"
        ));
    }
    Ok((host.to_owned(), port))
}

/// With or without a zone, as in `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok()
        && !zone.is_empty()
        && zone.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn port(digits: &str) -> Result<u16, String> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let port = digits.parse().ok().filter(|port| is_number && *port > 0);
    port.ok_or_else(|| format!("port {digits:?} is not in 1 to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_librdkafka_can_use_are_taken_each_with_its_port() {
        for (given, taken) in [
            ("localhost:9092", "localhost:9092"),
            ("kafka_1.internal", "kafka_1.internal:9092"),
            ("a:1, b:65535 ,c", "a:1,b:65535,c:9092"),
            ("10.0.0.7:9093", "10.0.0.7:9093"),
            ("[::1]:9094", "[::1]:9094"),
            ("[::1]", "[::1]:9092"),
            ("fe80::1%eth0", "[fe80::1%eth0]:9092"),
            ("PLAINTEXT://a:1", "PLAINTEXT://a:1"),
            ("sasl_ssl://a:1/", "SASL_SSL://a:1"),
            ("SSL://[::1]", "SSL://[::1]:9092"),
        ] {
            assert_eq!(brokers(given), Ok(taken.to_owned()), "{given:?}");
        }
    }

    #[test]
    fn invalid_addresses_are_refused_with_the_reason() {
        for (given, why) in [
            ("", "an address is empty"),
            ("a:1,,b:1", "an address is empty"),
            ("a:1,", "an address is empty"),
            ("kafka://a:9092", "kafka:// is not one of the protocols"),
            ("http://a:9092/", "http:// is not one of the protocols"),
            ("://a:9092", ":// is not one of the protocols"),
            ("a:99999", "port \"99999\" is not in 1 to 65535"),
            ("a:0", "port \"0\""),
            ("a:", "port \"\""),
            ("a:+1", "port \"+1\""),
            ("a:-1", "port \"-1\""),
            ("a:1:2", "port \"1:2\""),
            ("a:http", "port \"http\""),
            ("[::1]:0", "port \"0\""),
            (":9092", "the host is missing"),
            ("SSL://", "the host is missing"),
            ("a b:9092", "a host name cannot contain ' '"),
            ("a:1 b:1", "port \"1 b:1\""),
            ("a/b:9092", "a host name cannot contain '/'"),
            ("a\u{202e}b:1", r"'\u{202e}'"),
            ("bücher:1", "a host name cannot contain 'ü'"),
            ("[::1", "a ] is missing"),
            ("[a]:1", "\"a\" is not an IPv6 address"),
            ("[::1]9092", "\"9092\" follows the ]"),
        ] {
            let refused = brokers(given).expect_err(given);
            assert!(refused.contains(why), "{given:?}: {refused}");
            assert!(refused.contains("expected HOST:PORT"), "{refused}");
        }
        let long = "a".repeat(254);
        assert!(brokers(&long).unwrap_err().contains("at most 253 bytes"));
        for list in [
            "SASL_SSL://ada:hunter2@a:9092",
            "SASL_SSL://ada:hun,ter2@a:9092",
            "b:1,ada:hun,ter,2@a:9092",
        ] {
            let secret = brokers(list).unwrap_err();
            assert!(!secret.contains("hun"), "{secret}");
            assert!(!secret.contains("ter"), "{secret}");
            assert!(secret.contains("--kafka-config"), "{secret}");
        }
    }

    #[test]
    fn a_protocol_that_is_not_the_one_set_is_refused() {
        let brokers = "a:1,SSL://b:2";
        assert_eq!(check_protocol(brokers, "ssl"), Ok(()));
        let refused = check_protocol(brokers, "plaintext").unwrap_err();
        assert!(refused.contains("SSL://b:2"), "{refused}");
        assert!(refused.contains("set security.protocol=ssl"), "{refused}");
    }
}
