//! Files that are read again when they change: tokens, certificates and lists of addresses are renewed while a program
//! runs.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use crate::error::NeedsAttention;

/// Time between two checks of the files.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A value that was read from files.
pub struct Reloaded<T>(Arc<Shared<T>>);

struct Shared<T> {
    files: Vec<PathBuf>,
    read: Box<Read<T>>,
    value: Mutex<Arc<T>>,
}

type Read<T> = dyn Fn() -> Result<T, NeedsAttention> + Send + Sync;

/// Changes with the content of a file: inode, size, and the time of the last change. `None` if the file is absent.
type Stamp = Option<(u64, u64, i64, i64)>;

impl<T: Send + Sync + 'static> Reloaded<T> {
    /// Reads the files. They are checked every second from then on, by a thread of their own: a file system can take its
    /// time, and no request waits for it.
    ///
    /// # Errors
    /// If `read` fails.
    pub fn of(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, NeedsAttention> + Send + Sync + 'static,
    ) -> Result<Self, NeedsAttention> {
        // Before reading, so that a change meanwhile is noticed.
        let stamps = stamps(&files);
        let shared = Arc::new(Shared {
            value: Mutex::new(Arc::new(read()?)),
            files,
            read: Box::new(read),
        });
        let watched = Arc::downgrade(&shared);
        let watching = thread::Builder::new()
            .name("files".to_owned())
            .spawn(move || watch(&watched, stamps));
        if let Err(error) = watching {
            let names = shared.names();
            tracing::warn!("{names}: changes will not be noticed, for want of a thread: {error}");
        }
        Ok(Self(shared))
    }

    /// The value as last read. If reading a changed file fails, the value before stays in use; each change is logged once.
    pub fn current(&self) -> Arc<T> {
        self.0.value().clone()
    }
}

impl<T> Shared<T> {
    fn value(&self) -> MutexGuard<'_, Arc<T>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_again(&self) {
        match (self.read)() {
            Ok(value) => {
                tracing::info!("{} changed and is in use now", self.names());
                *self.value() = Arc::new(value);
            }
            Err(NeedsAttention(why)) => {
                tracing::warn!("{why}; the content read before stays in use");
            }
        }
    }

    fn names(&self) -> String {
        let names = self.files.iter().map(|file| file.display().to_string());
        names.collect::<Vec<_>>().join(" or ")
    }
}

/// Reads the files again when they change, until nobody uses the value any more.
fn watch<T>(shared: &Weak<Shared<T>>, mut known: Vec<Stamp>) {
    loop {
        thread::sleep(CHECK_INTERVAL);
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let stamps = stamps(&shared.files);
        if stamps != known {
            known = stamps;
            shared.read_again();
        }
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reloaded").field(&self.0.files).finish()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    let stamp = |file: &PathBuf| {
        let file = fs::metadata(file).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
    };
    files.iter().map(stamp).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    #[test]
    fn a_file_that_takes_long_to_read_delays_nobody_and_its_content_follows() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens");
        fs::write(&file, "old").unwrap();
        let (begun, begins) = mpsc::channel();
        let (proceed, proceeds) = mpsc::channel();
        let (read_file, proceeds) = (file.clone(), Mutex::new(proceeds));
        let read = move || {
            begun.send(()).unwrap();
            proceeds.lock().unwrap().recv().unwrap();
            fs::read_to_string(&read_file).map_err(|error| NeedsAttention(error.to_string()))
        };
        proceed.send(()).unwrap();
        let reloaded = Reloaded::of(vec![file.clone()], read).unwrap();
        begins.recv().unwrap();
        fs::write(&file, "newer").unwrap();
        begins.recv_timeout(WAIT).unwrap();
        // It is being read.
        assert_eq!(*reloaded.current(), "old");
        // Another change, so that the next reading comes after this one.
        fs::write(&file, "newest").unwrap();
        proceed.send(()).unwrap();
        begins.recv_timeout(WAIT).unwrap();
        assert_eq!(*reloaded.current(), "newest");
        // One that cannot be read changes nothing.
        fs::remove_file(&file).unwrap();
        proceed.send(()).unwrap();
        begins.recv_timeout(WAIT).unwrap();
        assert_eq!(*reloaded.current(), "newest");
        proceed.send(()).unwrap();
    }
}
