//! `consumer audit` of a pipeline's database.

use std::process::Command;

use serde_json::{Value, json};

use super::Pipeline;

/// Exit code, report as JSON, and log of an audit.
pub(crate) struct Audited {
    pub(crate) code: i32,
    pub(crate) report: Value,
    pub(crate) log: String,
}

/// Table, fault, partition, offset and columns.
pub(crate) type Finding = (String, String, i64, i64, Vec<String>);

/// The findings of an audit or a diff.
pub(crate) fn findings(report: &Value) -> Vec<Finding> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let findings = report["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|finding| {
            let columns = finding["columns"].as_array();
            (
                text(&finding["table"]),
                text(&finding["fault"]),
                finding["partition"].as_i64().unwrap(),
                finding["offset"].as_i64().unwrap(),
                columns.map_or(Vec::new(), |columns| {
                    columns
                        .iter()
                        .map(|column| text(&column["column"]))
                        .collect()
                }),
            )
        })
        .collect()
}

impl Audited {
    pub(crate) fn findings(&self) -> Vec<Finding> {
        findings(&self.report)
    }

    pub(crate) fn total(&self, what: &str) -> u64 {
        let total = self.report["totals"][what].as_u64();
        total.unwrap_or_else(|| panic!("no {what}: {:#}\n{}", self.report, self.log))
    }

    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "{:#}\n{}", self.report, self.log);
        self
    }

    pub(crate) fn assert_equal(&self) -> &Self {
        self.assert_code(0);
        assert_eq!(self.report["verdict"], "equal");
        assert_eq!(self.report["findings"], json!([]));
        self
    }
}

impl Pipeline {
    pub(crate) fn audit(&self, more: &[&str]) -> Audited {
        self.audit_with(&self.database_url, more)
    }

    /// The same for another database or user.
    pub(crate) fn audit_with(&self, database_url: &str, more: &[&str]) -> Audited {
        let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .args(["audit", "--json", "--bootstrap-servers", &self.bootstrap])
            .args(["--events-topic", &self.events])
            .args(["--dead-letters-topic", &self.letters])
            .args(["--database-url", database_url])
            .args(more)
            .output()
            .unwrap();
        Audited {
            code: output.status.code().unwrap(),
            report: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            log: String::from_utf8(output.stderr).unwrap(),
        }
    }
}
