//! Asking the engine from where nothing can be awaited.

use std::future::Future;

/// Runs a future to its end on a thread of its own, wherever the caller is: in a tokio runtime, on one of its threads that
/// may block, or in none.
pub(super) fn wait_for<F>(future: F) -> F::Output
where
    F: Future + Send,
    F::Output: Send,
{
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map(|runtime| runtime.block_on(future))
        });
        match thread.join() {
            Ok(Ok(output)) => output,
            // Out of threads or descriptors: as when the caller's own runtime could not be made.
            Ok(Err(error)) => panic!("make a runtime: {error}"),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
