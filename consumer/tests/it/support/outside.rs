//! Services that a test may break because it owns them: a database server, a broker, a small disk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use service::testing::{free_port, service, until};
use tempfile::TempDir;

use super::Kind;

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder that other users may enter, unlike those in `TMPDIR`.
fn folder() -> TempDir {
    let parent = std::env::var("TEST_POSTGRES_DIR").unwrap_or("/tmp".to_owned());
    tempfile::Builder::new()
        .prefix("consumer-test.")
        .tempdir_in(parent)
        .unwrap()
}

/// A PostgreSQL cluster or a MariaDB server; stopped and deleted when dropped.
pub(crate) struct Cluster {
    tool: String,
    folder: TempDir,
    /// For a superuser.
    pub(crate) url: String,
}

impl Cluster {
    pub(crate) fn start(settings: &[&str]) -> Option<Self> {
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        Self::start_by("TEST_POSTGRES_TOOL", |_| settings.collect())
    }

    /// A MariaDB server with settings that may name files in its folder.
    pub(crate) fn mariadb(settings: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        Self::start_by("TEST_MARIADB_TOOL", settings)
    }

    /// A server of this kind with its defaults.
    pub(crate) fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Mariadb => Self::mariadb(|_| Vec::new()),
            _ => Self::start(&[]),
        }
    }

    fn start_by(tool: &str, settings: impl FnOnce(&Path) -> Vec<String>) -> Option<Self> {
        let tool = service(tool)?;
        let folder = folder();
        let settings = settings(folder.path());
        let mut cluster = Self {
            tool,
            folder,
            url: String::new(),
        };
        let settings = settings.iter().flat_map(|s| ["--set", s]);
        let settings: Vec<&str> = settings.collect();
        cluster.url = cluster.tool(&[&["start"], &settings[..]].concat());
        Some(cluster)
    }

    fn tool(&self, arguments: &[&str]) -> String {
        let folder = self.folder.path().to_str().unwrap();
        run(&self.tool, &[&["--dir", folder], arguments].concat())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Stops it as by a crash.
    pub(crate) fn crash(&self) {
        self.tool(&["stop", "--mode", "immediate"]);
    }

    /// Sends a signal to the process of a MariaDB server.
    pub(crate) fn signal(&self, signal: &str) {
        let process = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        run("kill", &[&format!("-{signal}"), process.trim()]);
    }

    pub(crate) fn start_again(&self) {
        assert_eq!(self.tool(&["start"]), self.url);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = Command::new(&self.tool)
            .arg("--dir")
            .arg(self.folder.path())
            .args(["--mode", "immediate", "remove"])
            .status();
    }
}

/// A PgBouncer; stopped when dropped.
pub(crate) struct Pooler {
    process: std::process::Child,
    _folder: TempDir,
    port: u16,
}

impl Pooler {
    /// A pooler for the database of a URL, with one server connection that is assigned per `session` or `transaction`.
    /// `None` if PgBouncer is not installed; the test is then skipped.
    #[expect(
        clippy::print_stdout,
        reason = "what a test prints is for whoever runs it"
    )]
    pub(crate) async fn start(url: &str, mode: &str) -> Option<Self> {
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"];
        let Some(program) = program.iter().find(|file| Path::new(file).exists()) else {
            println!("skipped: pgbouncer is not installed");
            return None;
        };
        let (address, name) = url.rsplit_once('/').unwrap();
        let (_, address) = address.rsplit_once('@').unwrap();
        let (host, server_port) = address.rsplit_once(':').unwrap();
        let (folder, port) = (folder(), free_port());
        let path = folder.path().display();
        let connections = if mode == "transaction" { 1 } else { 20 };
        let settings = format!(
            "[databases]\n{name} = host={host} port={server_port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n\
             default_pool_size = {connections}\nlogfile = {path}/log\n"
        );
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, settings).unwrap();
        let run = format!("chmod 0777 {path} && exec {program} \"$@\" >{path}/output 2>&1");
        let mut command = Command::new("bash");
        command.args(["-c", &run, "pgbouncer"]);
        if run_as_root() {
            command.args(["-u", "postgres"]);
        }
        let process = command.arg(file).stdin(Stdio::null()).spawn().unwrap();
        let pooler = Self {
            process,
            _folder: folder,
            port,
        };
        let listens = async || std::net::TcpStream::connect(("127.0.0.1", port)).ok();
        until("the pooler listens", Duration::from_secs(60), listens).await;
        Some(pooler)
    }

    /// The URL through this pooler.
    pub(crate) fn url(&self, url: &str) -> String {
        let (_, name) = url.rsplit_once('/').unwrap();
        format!("postgres://postgres@127.0.0.1:{}/{name}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A Kafka broker that is its own cluster; stopped and deleted when dropped.
pub(crate) struct Broker {
    tool: String,
    folder: TempDir,
    pub(crate) bootstrap: String,
}

impl Broker {
    pub(crate) fn start() -> Option<Self> {
        Self::start_with(&[])
    }

    /// With additional arguments for `local-kafka start`.
    pub(crate) fn start_with(arguments: &[&str]) -> Option<Self> {
        let tool = service("TEST_KAFKA_TOOL")?;
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_str().unwrap();
        let bootstrap = run(&tool, &[&["--dir", dir, "start"], arguments].concat());
        Some(Self {
            tool,
            folder,
            bootstrap,
        })
    }

    /// Its folder, for `local-kafka --dir`.
    pub(crate) fn dir(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }

    /// Creates the ACLs of a file in the format of deploy/kafka/acls.
    pub(crate) fn create_acls(&self, file: &Path) {
        let script = Path::new(&self.tool).with_file_name("kafka/create-acls");
        let dir = self.folder.path().to_str().unwrap();
        let tool = [&self.tool, "--dir", dir, "tool", "kafka-acls"];
        let arguments = [&[&self.bootstrap, file.to_str().unwrap()], &tool[..]].concat();
        run(script.to_str().unwrap(), &arguments);
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = Command::new(&self.tool)
            .arg("--dir")
            .arg(self.folder.path())
            .arg("stop")
            .status();
    }
}

/// A small file system, unmounted when dropped.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this user may not mount; the test is then skipped.
    #[expect(
        clippy::print_stdout,
        reason = "what a test prints is for whoever runs it"
    )]
    pub(crate) fn mount(kib: u32) -> Option<Self> {
        let folder = folder();
        let size = format!("size={kib}k,mode=0777");
        let mounted = as_root("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(folder.path())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            Some(Self(folder))
        } else {
            println!(
                "skipped: mounting a small file system takes root or a sudo that does not ask"
            );
            None
        }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.0.path()
    }

    /// Fills it with a file, until that file is removed.
    pub(crate) fn fill(&self) -> std::path::PathBuf {
        use std::io::Write;
        let path = self.0.path().join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 16, 1 << 12] {
            while file.write_all(&vec![b'x'; size]).is_ok() {}
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = as_root("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

fn run_as_root() -> bool {
    let id = Command::new("id").arg("-u").output();
    id.is_ok_and(|id| id.stdout == b"0\n")
}

fn as_root(program: &str) -> Command {
    if run_as_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}
