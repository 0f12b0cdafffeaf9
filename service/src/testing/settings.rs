//! Helpers for tests of options and environment variables.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// The environment variables of all options of a program and its commands, as listed in `--help`.
pub fn variables(program: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let line: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = run(program, &[&line[..], &["--help"]].concat(), &[]);
        let help = String::from_utf8(output.stdout).unwrap();
        let listed = help.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        for one in listed.lines().take_while(|line| !line.is_empty()) {
            let name = one.split_whitespace().next().unwrap();
            if one.starts_with("  ") && !one.starts_with("   ") && name != "help" {
                commands.push([&command[..], &[name.to_owned()]].concat());
            }
        }
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = flat.split("[env: ").skip(1);
        names.extend(found.filter_map(|rest| {
            let (name, _) = rest.split_once(['=', ']'])?;
            Some(name.to_owned())
        }));
    }
    names
}

/// Runs a program to its end with these variables, and without those of the test that may be settings.
pub fn run(program: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let kept = ["PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"];
    let kept = kept
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(kept)
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

/// Asserts that each of these commands, which fail for a missing setting, fails with these words on standard
/// error while all variables of options are blank.
pub fn takes_blank_variables_as_unset(program: &str, lines: &[(&[&str], &str)]) {
    let variables = variables(program);
    assert!(variables.contains("LOG_LEVEL"), "{variables:?}");
    for blank in ["", " "] {
        let blank: Vec<(&str, &str)> = variables.iter().map(|name| (&**name, blank)).collect();
        for (line, words) in lines {
            let output = run(program, line, &blank);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{line:?}");
            assert!(error.contains(words), "{line:?}: {error}");
        }
    }
}

/// Asserts that a program refuses each of these command lines at once, with exit code 2 and these words on
/// standard error, and without a panic.
pub fn refuses(program: &str, lines: &[(&[&str], &str)]) {
    for (line, words) in lines {
        let output = run(program, line, &[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line:?}: {error}");
        assert!(error.contains(words), "{line:?}: {error}");
        assert!(!error.contains("panicked"), "{line:?}: {error}");
    }
}

/// A proxy to a broker that reads each client's `client.id` from its first request.
pub struct NamedClients {
    /// Address for `--bootstrap-servers`, to which each client connects first.
    pub address: String,
    ids: Arc<Mutex<BTreeSet<String>>>,
}

impl NamedClients {
    /// Starts a proxy to this broker, which runs until the test's process ends.
    pub fn of(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ids: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (broker, noted) = (broker.to_owned(), ids.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (broker, noted) = (broker.clone(), noted.clone());
                // A client that disconnects does not matter to the test.
                std::thread::spawn(move || pass_on(client?, &broker, &noted));
            }
        });
        Self { address, ids }
    }

    /// The names since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.ids.lock().unwrap())
            .into_iter()
            .collect()
    }
}

fn pass_on(
    mut client: TcpStream,
    broker: &str,
    noted: &Mutex<BTreeSet<String>>,
) -> std::io::Result<()> {
    // Size, api key, api version and correlation id; then a text with its length in two bytes.
    let mut head = [0; 14];
    client.read_exact(&mut head)?;
    let mut id = vec![0; usize::from(u16::from_be_bytes([head[12], head[13]]))];
    client.read_exact(&mut id)?;
    noted
        .lock()
        .unwrap()
        .insert(String::from_utf8(id.clone()).unwrap());
    let mut broker = TcpStream::connect(broker)?;
    broker.write_all(&[&head[..], &id].concat())?;
    let (mut back, mut to_client) = (broker.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    std::io::copy(&mut client, &mut broker)?;
    broker.shutdown(Shutdown::Both)
}
