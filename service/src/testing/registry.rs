//! A schema registry of a test's own.

use std::path::Path;
use std::process::{Command, Stdio};

use super::environment::service;

/// A schema registry of a test's own, by `TEST_REGISTRY_TOOL`; stopped when dropped.
pub struct OwnRegistry {
    tool: String,
    folder: String,
    /// The address for `--schema-registry`.
    pub url: String,
}

impl OwnRegistry {
    /// Starts a registry with its files in a folder and further options of the tool; `None`: see [`service`].
    pub fn start(folder: &Path, options: &[&str]) -> Option<Self> {
        let mut registry = Self {
            tool: service("TEST_REGISTRY_TOOL")?,
            folder: folder.to_str().unwrap().to_owned(),
            url: String::new(),
        };
        registry.url = registry.tool(&[&["start"], options].concat());
        Some(registry)
    }

    /// Stops it; keeps its schemas.
    pub fn stop(&self) {
        self.tool(&["stop"]);
    }

    /// Starts it again at the same address.
    pub fn start_again(&self) {
        assert_eq!(self.tool(&["start"]), self.url);
    }

    fn tool(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.tool)
            .args(["--dir", &self.folder])
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success(), "{} {arguments:?}", self.tool);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

impl Drop for OwnRegistry {
    fn drop(&mut self) {
        let _ = Command::new(&self.tool)
            .args(["--dir", &self.folder, "stop"])
            .status();
    }
}
