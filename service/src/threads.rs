//! Which thread waits for what.

use std::future::Future;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// Does `work` on this thread, which waits for its sockets and timers itself. In tokio's multi-thread runtime
/// another thread does, and wakes the one that `block_on` or `main` is on: for each answer of a database one
/// thread more to be woken. To be called on a thread of such a runtime, whose other threads go on with what
/// was spawned there; what `work` spawns ends with it.
///
/// # Errors
/// If the system has no file descriptors left.
pub fn on_this_thread<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    block_in_place(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(work))
    })
}

/// Makes a call that blocks this thread. Where the runtime has others, they take over what else waits for it.
pub fn blocking<T>(call: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::CurrentThread) => call(),
        _ => block_in_place(call),
    }
}
