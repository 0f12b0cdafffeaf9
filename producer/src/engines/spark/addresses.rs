//! The addresses of a run: those of `--url`, and those that `--urls-file` has at the time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use service::address;
use service::exit::NeedsAttention;
use service::reloaded::Reloaded;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::API;
use super::follow::Address;
use super::follower::Follower;
use super::options::ADDRESSES_MAX;
use crate::polling::rest::{Access, Clients, Fault, Rest};
use crate::polling::server::Servers;

/// A larger file is refused.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// How often to look whether the file has changed.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// An address that the file lacks for this long is removed. A file that is being written may be empty for a moment.
const REMOVED_AFTER: Duration = Duration::from_secs(5);

/// The content of `--urls-file`, read again when it changes.
pub(super) struct UrlsFile {
    path: PathBuf,
    content: Reloaded<Vec<address::Address>>,
}

impl UrlsFile {
    /// # Errors
    /// If it cannot be read. A line that is not an address is logged, and left out.
    pub(super) fn open(path: &Path) -> Result<Self, NeedsAttention> {
        let path = path.to_owned();
        let file = path.clone();
        let content = Reloaded::of(vec![path.clone()], move || {
            let file = file.as_path();
            let text = read(file).map_err(|error| {
                let file = file.display();
                NeedsAttention(format!("--urls-file {file} cannot be read: {error}"))
            })?;
            let (addresses, faults) = parse(&text);
            for (line, fault) in faults {
                let file = file.display();
                tracing::warn!("{file}, line {line}: {fault}; the other lines are in use");
            }
            Ok(addresses)
        })?;
        Ok(Self { path, content })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let file = File::open(file)?;
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        let limit = FILE_MAX_BYTES >> 20;
        return Err(Error::other(format!("it is larger than {limit} MiB")));
    }
    Ok(text)
}

/// The addresses of the file, and the number and fault of each line that is not one. Blank lines, and those that begin
/// with `#`, are neither.
fn parse(text: &[u8]) -> (Vec<address::Address>, Vec<(usize, String)>) {
    let (mut addresses, mut faults) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        if addresses.len() == ADDRESSES_MAX {
            let fault = format!("there are more than the {ADDRESSES_MAX} that can be followed");
            faults.push((number, fault));
            break;
        }
        let address = match str::from_utf8(line) {
            Ok(line) => address::Address::http(line),
            Err(_) => {
                faults.push((number, "expected UTF-8".to_owned()));
                continue;
            }
        };
        match address.to_http() {
            Ok(_) => addresses.push(address),
            Err(fault) => faults.push((number, fault)),
        }
    }
    (addresses, faults)
}

/// The addresses that are followed, each in a task of its own.
pub(super) struct Addresses {
    follower: Arc<Follower>,
    clients: Clients,
    servers: Servers,
    following: JoinSet<(String, Result<(), Fault>)>,
    /// Those of `--url`, as they are shown.
    fixed: Vec<String>,
    file: Option<UrlsFile>,
    /// The content of the file that `of_file` follows.
    content: Arc<Vec<address::Address>>,
    /// Those of the file, as they are shown; until they are removed, even if nothing is left to follow there.
    of_file: BTreeMap<String, OfFile>,
}

struct OfFile {
    rest: Rest,
    removed: CancellationToken,
    /// Since when the file lacks it.
    missing: Option<Instant>,
}

impl Addresses {
    /// Starts following those of `--url`.
    pub(super) fn new(
        follower: Arc<Follower>,
        clients: Clients,
        servers: Servers,
        fixed: Vec<Rest>,
        file: Option<UrlsFile>,
    ) -> Self {
        let mut addresses = Self {
            follower,
            clients,
            servers,
            following: JoinSet::new(),
            fixed: fixed.iter().map(Rest::shown).collect(),
            file,
            content: Arc::default(),
            of_file: BTreeMap::new(),
        };
        for rest in fixed {
            addresses.start(rest, CancellationToken::new());
        }
        addresses
    }

    /// Follows all until nothing is left to follow; with `--stay` until the program is stopped. Returns the failures, a
    /// sentence each.
    pub(super) async fn follow(mut self) -> anyhow::Result<Vec<String>> {
        let shutdown = self.follower.shutdown.clone();
        let awaits_more = self.follower.options.stay && self.file.is_some();
        let mut failures = Vec::new();
        let mut checks = interval(CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(followed) = self.following.join_next() => {
                    let (address, reached) = followed?;
                    if let Err(fault) = reached {
                        let failure = format!("{address} {}: {fault}", fault.never(&API));
                        tracing::warn!("{failure}");
                        failures.push(failure);
                    }
                }
                _ = checks.tick(), if self.file.is_some() && !shutdown.is_cancelled() => {
                    self.read_file();
                }
                () = shutdown.cancelled(), if self.following.is_empty() => {}
                else => {}
            }
            if self.following.is_empty() && (shutdown.is_cancelled() || !awaits_more) {
                break;
            }
        }
        let is_empty = self.of_file.is_empty() && self.fixed.is_empty();
        if let Some(file) = self.file.filter(|_| is_empty && !shutdown.is_cancelled()) {
            let file = file.path.display();
            failures.push(format!("{file} has no address; --stay waits for one"));
        }
        Ok(failures)
    }

    fn start(&mut self, rest: Rest, removed: CancellationToken) {
        let shown = rest.shown();
        let address = Address::new(self.follower.clone(), self.servers.add(rest), removed);
        self.following
            .spawn(async move { (shown, address.follow().await) });
    }

    /// Starts following the addresses that are new in the file, and removes those that it lacks.
    fn read_file(&mut self) {
        let Some(file) = &self.file else {
            return;
        };
        let content = file.content.current();
        if !Arc::ptr_eq(&content, &self.content) {
            self.take_up(&content);
            self.content = content;
        }
        let before = self.of_file.len();
        self.of_file.retain(|_, one| {
            let missing = one.missing.map(|since| since.elapsed());
            let is_removed = missing.is_some_and(|missing| missing >= REMOVED_AFTER);
            if is_removed {
                one.removed.cancel();
            }
            !is_removed
        });
        if self.of_file.len() < before {
            self.servers.forget_unused();
        }
    }

    fn take_up(&mut self, content: &[address::Address]) {
        let now = Instant::now();
        for one in self.of_file.values_mut() {
            one.missing.get_or_insert(now);
        }
        for address in content {
            let rest = self.clients.rest(address, &API, Access::default());
            let rest = match rest {
                Ok(rest) => rest,
                Err(fault) => {
                    tracing::warn!("{address}: {fault}");
                    continue;
                }
            };
            let shown = rest.shown();
            if let Some(known) = self.of_file.get_mut(&shown) {
                // Its user and password may be new. Of several lines with one address, the first counts.
                if known.missing.take().is_some() {
                    known.rest.log_in_as(&rest);
                }
            } else if !self.fixed.contains(&shown) {
                let removed = CancellationToken::new();
                let new = OfFile {
                    rest: rest.clone(),
                    removed: removed.clone(),
                    missing: None,
                };
                self.of_file.insert(shown, new);
                self.start(rest, removed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_not_an_address_is_named_and_the_others_are_kept() {
        let text = b"http://node-1:4040\n\n# driver 2\n  node-2:4040/  \r\n\
            ftp://ada:hunter2@node-3\n\xff\nhttps://ada:hunter2@node-4:4041";
        let (addresses, faults) = parse(text);
        let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let expected = [
            "http://node-1:4040",
            "http://node-2:4040/",
            "https://node-4:4041",
        ];
        assert_eq!(shown, expected);
        let lines: Vec<usize> = faults.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [5, 6]);
        assert!(faults[0].1.contains("malformed"), "{faults:?}");
        assert!(!format!("{faults:?}").contains("hunter2"), "{faults:?}");
        assert_eq!(parse(b"").0, []);
    }

    #[test]
    fn addresses_beyond_the_limit_are_named_once() {
        let lines = (0..ADDRESSES_MAX + 5).map(|i| format!("node-{i}:4040\n"));
        let text: String = lines.collect();
        let (addresses, faults) = parse(text.as_bytes());
        assert_eq!(addresses.len(), ADDRESSES_MAX);
        assert_eq!(faults.len(), 1);
        assert_eq!(faults[0].0, ADDRESSES_MAX + 1);
    }
}
