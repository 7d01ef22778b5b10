//! The tier's own tasks: they end with it, also when it is dropped in the middle of everything, as in a crash.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio_util::task::TaskTracker;

/// Where the tier spawns.
#[derive(Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    stopped: Arc<AtomicBool>,
}

/// Ends all tasks when it is dropped.
pub(crate) struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

impl Tasks {
    /// Runs the future until it is done or the tier ends: then it goes on at no await that it has not passed. A flag is looked
    /// at instead of a token waited for, since every request is such a task.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        let stopped = Arc::clone(&self.stopped);
        self.tracker.spawn(async move {
            let mut future = pin!(future);
            poll_fn(
                |context| {
                    if stopped.load(Ordering::Acquire) { Poll::Ready(()) } else { future.as_mut().poll(context) }
                },
            )
            .await;
        });
    }

    /// Ends all tasks when the guard is dropped.
    pub(crate) fn stop_on_drop(&self) -> StopOnDrop {
        StopOnDrop(Arc::clone(&self.stopped))
    }

    /// Waits until all tasks are done; spawn no more.
    pub(crate) async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}
