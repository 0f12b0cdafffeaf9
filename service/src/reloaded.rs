//! Files that are read again when they change: tokens, certificates and lists of addresses are renewed while a program
//! runs.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::NeedsAttention;

/// Minimum time between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A value that was read from files.
pub struct Reloaded<T> {
    files: Vec<PathBuf>,
    read: Box<Read<T>>,
    state: Mutex<State<T>>,
}

type Read<T> = dyn Fn() -> Result<T, NeedsAttention> + Send + Sync;

struct State<T> {
    value: Arc<T>,
    stamps: Vec<Stamp>,
    checked_at: Instant,
}

/// Changes with the content of a file: inode, size, and the time of the last change. `None` if the file is absent.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T> Reloaded<T> {
    /// Reads the files.
    ///
    /// # Errors
    /// If `read` fails.
    pub fn of(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, NeedsAttention> + Send + Sync + 'static,
    ) -> Result<Self, NeedsAttention> {
        // Before reading, so that a change meanwhile is noticed.
        let stamps = stamps(&files);
        let state = State {
            value: Arc::new(read()?),
            stamps,
            checked_at: Instant::now(),
        };
        Ok(Self {
            files,
            read: Box::new(read),
            state: Mutex::new(state),
        })
    }

    /// The value, read again if a file has changed. If that fails, the last value stays in use; each change is logged once.
    pub fn current(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.checked_at.elapsed() >= CHECK_INTERVAL {
            state.checked_at = Instant::now();
            let stamps = stamps(&self.files);
            if stamps != state.stamps {
                state.stamps = stamps;
                match (self.read)() {
                    Ok(value) => {
                        tracing::info!("{} changed and is in use now", self.names());
                        state.value = Arc::new(value);
                    }
                    Err(NeedsAttention(why)) => {
                        tracing::warn!("{why}; the content read before stays in use");
                    }
                }
            }
        }
        state.value.clone()
    }

    fn names(&self) -> String {
        let names = self.files.iter().map(|file| file.display().to_string());
        names.collect::<Vec<_>>().join(" or ")
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloaded").field(&self.files).finish()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let file = fs::metadata(file).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}
