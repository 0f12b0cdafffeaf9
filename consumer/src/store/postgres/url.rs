//! The parts of a PostgreSQL URL, or of libpq's variables, that sqlx does not handle: several hosts, the server's role,
//! and files.

use std::str::FromStr;

use percent_encoding::percent_decode_str;

/// The URL field, and the variable, for the required role of the server.
const SESSION: &str = "target_session_attrs";
const SESSION_VARIABLE: &str = "PGTARGETSESSIONATTRS";

/// The required role of a server (libpq's `target_session_attrs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Any,
    ReadWrite,
    ReadOnly,
    Primary,
    Standby,
    PreferStandby,
}

impl FromStr for Role {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "any" => Self::Any,
            "read-write" => Self::ReadWrite,
            "read-only" => Self::ReadOnly,
            "primary" => Self::Primary,
            "standby" => Self::Standby,
            "prefer-standby" => Self::PreferStandby,
            _ => {
                return Err(format!(
                    "{SESSION} {name:?} must be any, read-write, read-only, primary, standby or prefer-standby"
                ));
            }
        })
    }
}

/// One URL for each host of a URL, and the required role. `variable` returns libpq's variables.
pub(super) fn hosts(
    url: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(Vec<String>, Option<Role>), String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Ok((vec![url.to_owned()], None));
    };
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, name) = match place.find('/') {
        Some(at) => place.split_at(at),
        None => (place, ""),
    };
    let (user, authority) = match authority.rsplit_once('@') {
        Some((user, hosts)) => (format!("{user}@"), hosts),
        None => (String::new(), authority),
    };
    let mut fields: Vec<&str> = query.split('&').filter(|field| !field.is_empty()).collect();
    let mut take = |name: &str, only_lists: bool| {
        let is = |field: &&str| {
            let value = field
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('='));
            value.is_some_and(|value| !only_lists || value.contains(',') || value.contains("%2C"))
        };
        let at = fields.iter().position(is)?;
        Some(fields.remove(at)[name.len() + 1..].replace("%2C", ","))
    };
    let session = take(SESSION, false).or_else(|| variable(SESSION_VARIABLE));
    let session = session.as_deref().map(str::parse).transpose()?;
    let (mut host, mut port) = (take("host", true), take("port", true));
    if authority.is_empty() && host.is_none() && !fields.iter().any(|f| f.starts_with("host")) {
        host = variable("PGHOST").filter(|hosts| hosts.contains(','));
        port = port.or_else(|| variable("PGPORT").filter(|ports| ports.contains(',')));
    }
    let url = |authority: &str, more: &[String]| {
        let fields = fields.iter().map(|field| (*field).to_owned());
        let fields = fields.chain(more.iter().cloned()).collect::<Vec<_>>();
        let query = match fields.is_empty() {
            true => String::new(),
            false => format!("?{}", fields.join("&")),
        };
        format!("{scheme}://{user}{authority}{name}{query}")
    };
    let Some(hosts) = host else {
        if port.is_some() {
            return Err("several ports need several hosts in the field host".to_owned());
        }
        return Ok((
            authority.split(',').map(|host| url(host, &[])).collect(),
            session,
        ));
    };
    let ports: Vec<&str> = port.iter().flat_map(|ports| ports.split(',')).collect();
    let hosts: Vec<&str> = hosts.split(',').collect();
    if !matches!(ports.len(), 0 | 1) && ports.len() != hosts.len() {
        return Err(format!(
            "{} ports are given for {} hosts",
            ports.len(),
            hosts.len()
        ));
    }
    let urls = hosts.iter().enumerate().map(|(i, host)| {
        let port = ports.get(i).or(ports.first());
        let mut more = vec![format!("host={host}")];
        more.extend(port.map(|port| format!("port={port}")));
        url(authority, &more)
    });
    Ok((urls.collect(), session))
}

/// The certificate and key files of a URL, otherwise of libpq's variables.
pub(super) fn files(
    url: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Vec<(&'static str, String)> {
    let (_, query) = url.split_once('?').unwrap_or_default();
    // By the names of libpq and of sqlx.
    const FILES: [(&str, &[&str], &str); 3] = [
        (
            "sslrootcert",
            &["sslrootcert", "ssl-root-cert", "ssl-ca"],
            "PGSSLROOTCERT",
        ),
        ("sslcert", &["sslcert", "ssl-cert"], "PGSSLCERT"),
        ("sslkey", &["sslkey", "ssl-key"], "PGSSLKEY"),
    ];
    let named = FILES.map(|(field, names, name)| {
        let mut fields = query.rsplit('&').filter_map(|field| field.split_once('='));
        let named = fields.find(|(name, _)| names.contains(name));
        let file = named
            .map(|(_, file)| decoded(file))
            .or_else(|| variable(name));
        Some((field, file.filter(|file| !file.contains("-----BEGIN"))?))
    });
    named.into_iter().flatten().collect()
}

/// The URL fields that sqlx and this module ignore. (sqlx's own warning is filtered out because it shows the value,
/// which may be a password under a misspelt name.)
pub(super) fn unknown_fields(url: &str) -> Vec<String> {
    const KNOWN: &[&str] = &[
        SESSION,
        "sslmode",
        "ssl-mode",
        "sslrootcert",
        "ssl-root-cert",
        "ssl-ca",
        "sslcert",
        "ssl-cert",
        "sslkey",
        "ssl-key",
        "statement-cache-capacity",
        "host",
        "hostaddr",
        "port",
        "dbname",
        "user",
        "password",
        "application_name",
        "options",
    ];
    let (_, query) = url.split_once('?').unwrap_or_default();
    let fields = query.split('&').filter(|field| !field.is_empty());
    let names = fields.map(|field| decoded(field.split('=').next().unwrap_or_default()));
    names
        .filter(|name| !KNOWN.contains(&name.as_str()) && !name.starts_with("options["))
        .collect()
}

/// A value of a URL's query.
fn decoded(value: &str) -> String {
    let value = value.replace('+', " ");
    percent_decode_str(&value).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> (Vec<String>, Option<Role>) {
        hosts(url, |_| None).unwrap()
    }

    #[test]
    fn a_url_of_several_hosts_is_one_of_each() {
        assert_eq!(
            of("postgres://u@h/d?a=b"),
            (vec!["postgres://u@h/d?a=b".into()], None)
        );
        assert_eq!(of("postgres:///d"), (vec!["postgres:///d".into()], None));
        assert_eq!(
            of("postgres://u:p@h1:1,h2,[::1]:3/d?target_session_attrs=primary&sslmode=require"),
            (
                vec![
                    "postgres://u:p@h1:1/d?sslmode=require".into(),
                    "postgres://u:p@h2/d?sslmode=require".into(),
                    "postgres://u:p@[::1]:3/d?sslmode=require".into(),
                ],
                Some(Role::Primary)
            )
        );
        assert_eq!(
            of("postgres://u@/d?host=h1,h2&port=1,2").0,
            [
                "postgres://u@/d?host=h1&port=1",
                "postgres://u@/d?host=h2&port=2"
            ]
        );
        let variables = |name: &str| match name {
            "PGHOST" => Some("h1,h2".to_owned()),
            SESSION_VARIABLE => Some("standby".to_owned()),
            _ => None,
        };
        let (urls, session) = hosts("postgresql:///d", variables).unwrap();
        assert_eq!(urls, ["postgresql:///d?host=h1", "postgresql:///d?host=h2"]);
        assert_eq!(session, Some(Role::Standby));
        assert!(hosts("postgres://h/d?target_session_attrs=x", |_| None).is_err());
        assert!(hosts("postgres:///d?host=a,b,c&port=1,2", |_| None).is_err());
    }

    #[test]
    fn files_are_those_of_the_url_or_else_of_the_variables() {
        let url = "postgres://h/d?ssl-ca=a%20b%2Fc&sslmode=require&sslkey=k+1";
        let variables = |name: &str| (name != "PGSSLKEY").then(|| name.to_lowercase());
        assert_eq!(
            files(url, variables),
            [
                ("sslrootcert", "a b/c".to_owned()),
                ("sslcert", "pgsslcert".to_owned()),
                ("sslkey", "k 1".to_owned())
            ]
        );
        assert_eq!(files("postgres://h", |_| None), []);
        assert_eq!(decoded("100%&%zz%4"), "100%&%zz%4");
        let url =
            "postgres://h/d?p%61ssword=a&pasword=hunter2&options[a]=b&target_session_attrs=any&&x";
        assert_eq!(unknown_fields(url), ["pasword", "x"]);
    }
}
