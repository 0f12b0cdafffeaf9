//! A separate broker of a test, to stop, freeze and kill.

use std::process::Command;

use tempfile::TempDir;

/// A separate broker of a test.
pub(crate) struct Broker {
    tool: String,
    folder: TempDir,
    pub(crate) bootstrap: String,
}

impl Broker {
    /// `settings` of the broker: `KEY=VALUE`.
    pub(crate) async fn start(tool: String, settings: &[&str]) -> Self {
        let mut broker = Self {
            tool,
            folder: tempfile::tempdir().unwrap(),
            bootstrap: String::new(),
        };
        let mut arguments = vec!["start"];
        for setting in settings {
            arguments.extend(["--set", setting]);
        }
        broker.bootstrap = broker.run(&arguments).trim().to_owned();
        broker
    }

    /// Runs the tool that starts and stops it.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.tool)
            .arg("--dir")
            .arg(self.folder.path())
            .args(arguments)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {printed}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        printed
    }

    /// Sends the broker's process a signal by name.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("pid")).unwrap();
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), pid.trim()])
            .status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // A frozen process would not receive the signal to end.
        let pid = std::fs::read_to_string(self.folder.path().join("pid"));
        if let Ok(pid) = pid {
            let _ = Command::new("kill").args(["-CONT", pid.trim()]).output();
        }
        let _ = Command::new(&self.tool)
            .arg("--dir")
            .arg(self.folder.path())
            .arg("stop")
            .output();
    }
}
