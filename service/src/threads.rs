//! Blocking work in an async runtime.

use std::future::Future;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Runs `work` on this thread, in its own single-threaded runtime. In tokio's multi-thread runtime, another
/// thread polls the sockets and wakes the thread of `block_on`, which costs an extra wake-up for each answer
/// of a database. Call it on a thread of such a runtime, whose other threads continue with their tasks; tasks
/// that `work` spawns end with it.
///
/// # Errors
/// If the system has no file descriptors left.
pub fn on_this_thread<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    block_in_place(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work))
    })
}

/// Runs a blocking call. In a multi-thread runtime, other threads take over this thread's tasks.
pub fn blocking<T>(call: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::CurrentThread) => call(),
        _ => block_in_place(call),
    }
}
