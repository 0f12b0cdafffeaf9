//! The real `consumer run` as a child process, and what its operators see of it.

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
    /// Starts `consumer run` on this pipeline, in the group named like the events topic unless told
    /// otherwise.
    pub(crate) fn program(&self, name: &str, more: &[&str]) -> Program {
        self.program_on(&self.database_url, name, more)
    }

    /// The same with another database, or the same database as another user.
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

    /// What `consumer` prints, asked with these arguments about this pipeline's database.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let (code, printed, error) = self.output_of(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
        printed
    }

    /// Its errors, where it ends with this code.
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

    /// Waits until it is not ready for a reason that names all of these; it may not end meanwhile.
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

    /// Whether it is not ready, for a reason that has this in it.
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

    /// Waits until it has read a partition of so many events and stored none: all of them are its lag, over more
    /// than two of the statistics, of which there is one a second, that its metrics are taken from.
    pub(crate) async fn until_it_holds(&self, topic: &str, events: usize) {
        let lag = format!(
            "messaging_consumer_lag_messages{{messaging_destination_name=\"{topic}\",messaging_destination_partition_id=\"0\"}} {events}"
        );
        let mut told = 0;
        until("all is its lag", Duration::from_secs(120), async || {
            let (_, metrics) = self.process.get("/metrics")?;
            let is_told = metrics.lines().any(|line| line == lag);
            told = if is_told { told + 1 } else { 0 };
            (told == 50).then_some(())
        })
        .await;
    }

    /// After a time in which it stood still: whether it is a member again (`true`), or has ended
    /// with exit code 1 and a cause. Any other end is a failure.
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

    /// Waits for the end that a person is to look after, and gives the log.
    pub(crate) async fn needs_attention(mut self) -> String {
        let status = self.process.ended().await;
        let log = self.log();
        assert_eq!(status.code(), Some(78), "{log}");
        log
    }

    /// Stops it, which it has to do in order.
    pub(crate) async fn stop(mut self) {
        self.process.assert_running();
        let status = self.process.stop().await;
        assert_eq!(status.code(), Some(0), "{status}");
    }
}
