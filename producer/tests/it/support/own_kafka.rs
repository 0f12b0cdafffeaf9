//! A Kafka of a test's own, to start late and to kill.

use std::process::{Command, Output};

use service::testing::{free_port, service};

use super::text;

/// A broker at a port that is chosen before it starts; stopped when dropped.
pub(crate) struct OwnKafka {
    tool: String,
    folder: tempfile::TempDir,
    port: u16,
}

impl OwnKafka {
    /// `None`, and the test is to return, without the tool that starts one.
    pub(crate) fn make() -> Option<Self> {
        Some(Self {
            tool: service("TEST_KAFKA_TOOL")?,
            folder: tempfile::tempdir().unwrap(),
            port: free_port(),
        })
    }

    pub(crate) fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.tool)
            .arg("--dir")
            .arg(self.folder.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    fn tool(&self, arguments: &[&str]) {
        let run = self.run(arguments);
        let said = text(&run.stderr);
        assert!(run.status.success(), "{} {arguments:?}: {said}", self.tool);
    }

    /// Starts it, and creates the topics that are not there. Blocks.
    pub(crate) fn start(&self) {
        let port = self.port.to_string();
        // A killed broker returns after its controller has removed it.
        let session = "broker.session.timeout.ms=6000";
        self.tool(&["start", "--port", &port, "--set", session]);
        self.tool(&["topics", "--partitions", "4"]);
    }

    /// Kills it (SIGKILL); its data stays.
    pub(crate) fn kill(&self) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let sent = Command::new("kill").args(["-KILL", pid.trim()]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        let _ = self.run(&["stop"]);
    }
}
