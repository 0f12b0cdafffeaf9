//! Logs actions and observations with their times, to standard output and a file.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

pub(crate) struct Journal {
    begun: Instant,
    file: Mutex<File>,
}

impl Journal {
    pub(crate) fn open(path: &Path) -> Self {
        Self {
            begun: Instant::now(),
            file: Mutex::new(File::create(path).unwrap()),
        }
    }

    #[expect(
        clippy::print_stdout,
        reason = "what a test prints is for whoever runs it"
    )]
    pub(crate) fn line(&self, text: &str) {
        let elapsed = self.begun.elapsed().as_secs_f64();
        let now = jiff::Timestamp::now();
        println!("[{elapsed:6.1} s] {text}");
        // Times in the format of the programs' logs, to read them side by side.
        writeln!(
            self.file.lock().unwrap(),
            "{now:.3} [{elapsed:6.1} s] {text}"
        )
        .unwrap();
    }
}
