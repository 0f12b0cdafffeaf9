//! The real `consumer run` as a child process, observed as by an operator.

use std::path::Path;
use std::time::Duration;

use service::testing::{ANY_PORT, Process, until};

use super::Pipeline;

const CONSUMER: &str = env!("CARGO_BIN_EXE_consumer");

/// A consumer; killed when dropped.
pub(crate) struct Program {
    pub(crate) process: Process,
}

impl Pipeline {
    /// Starts `consumer run` on this pipeline, by default in a group named like the events topic.
    pub(crate) fn program(&self, name: &str, more: &[&str]) -> Program {
        self.program_on(&self.database_url, name, more)
    }

    /// The same with another database or user.
    pub(crate) fn program_on(&self, database_url: &str, name: &str, more: &[&str]) -> Program {
        let mut arguments = vec![
            "run",
            "--bootstrap-servers",
            &self.bootstrap,
            "--events-topic",
            &self.events,
            "--dead-letters-topic",
            &self.letters,
            "--metrics-listen",
            ANY_PORT,
        ];
        if !more.contains(&"--group") {
            arguments.extend(["--group", &self.events]);
        }
        arguments.extend(more);
        let database = [("DATABASE_URL", database_url)]; // it may hold a password
        let program = Path::new(CONSUMER);
        let process = Process::start_with(self.folder(), name, program, &arguments, &database);
        Program { process }
    }

    /// The output of `consumer` with these arguments on this pipeline's database.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let (code, printed, error) = self.output_of(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
        printed
    }

    /// Its errors; it must exit with this code.
    pub(crate) fn fails(&self, arguments: &[&str], code: i32) -> String {
        let (ended, _, error) = self.output_of(arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {error}");
        error
    }

    fn output_of(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = std::process::Command::new(CONSUMER)
            .args(arguments)
            .args(["--database-url", &self.database_url])
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code();
        (code, text(&output.stdout), text(&output.stderr))
    }
}

impl Program {
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    pub(crate) async fn until_ready(&mut self) {
        let mut last = None;
        for _ in 0..1_200 {
            self.process.assert_running();
            last = self.process.get("/readyz");
            if last.as_ref().is_some_and(|(status, _)| *status == 200) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("not ready within 120 s: {last:?}");
    }

    /// Waits until it is not ready for a reason that contains all of these; it must not exit meanwhile.
    pub(crate) async fn until_waiting(&mut self, reason: &[&str]) {
        let mut last = None;
        for _ in 0..2_400 {
            self.process.assert_running();
            last = self.process.get("/readyz");
            let named = |body: &str| reason.iter().all(|word| body.contains(word));
            if last
                .as_ref()
                .is_some_and(|(status, body)| *status == 503 && named(body))
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("/readyz does not tell of {reason:?} within 120 s: {last:?}");
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.process
            .get("/readyz")
            .is_some_and(|(status, _)| status == 200)
    }

    /// Whether it is not ready for a reason that contains this.
    pub(crate) fn is_waiting(&self, reason: &str) -> bool {
        self.process
            .get("/readyz")
            .is_some_and(|(status, body)| status == 503 && body.contains(reason))
    }

    pub(crate) async fn until_logged(&self, words: &str) {
        until(
            &format!("it logs {words:?}"),
            Duration::from_secs(120),
            async || self.log().contains(words).then_some(()),
        )
        .await;
    }

    /// Waits until it has read this many events of a partition and stored none: all of them are its lag, in more than
    /// two of the statistics, emitted once a second, that feed its metrics.
    pub(crate) async fn until_it_holds(&self, topic: &str, events: usize) {
        let lag = format!(
            "messaging_consumer_lag_messages{{messaging_destination_name=\"{topic}\",messaging_destination_partition_id=\"0\"}} {events}"
        );
        let mut actual = 0;
        until("all is its lag", Duration::from_secs(120), async || {
            let (_, metrics) = self.process.get("/metrics")?;
            let is_told = metrics.lines().any(|line| line == lag);
            actual = if is_told { actual + 1 } else { 0 };
            (actual == 50).then_some(())
        })
        .await;
    }

    /// After it has stalled: whether it is a member again (`true`), or has exited with code 1 and a cause. Any other
    /// exit is a failure.
    pub(crate) async fn recovers_or_ends(&mut self) -> bool {
        for _ in 0..2_400 {
            if let Some(status) = self.process.status() {
                let log = self.log();
                assert_eq!(status.code(), Some(1), "{log}");
                assert!(log.contains("ERROR"), "{log}");
                return false;
            }
            if self.is_ready() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("neither ready nor ended within 120 s:\n{}", self.log());
    }

    /// Waits for an exit that needs an operator, and returns the log.
    pub(crate) async fn needs_attention(mut self) -> String {
        let status = self.process.ended().await;
        let log = self.log();
        assert_eq!(status.code(), Some(78), "{log}");
        log
    }

    /// Stops it; it must exit in order.
    pub(crate) async fn stop(mut self) {
        self.process.assert_running();
        let status = self.process.stop().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
}
