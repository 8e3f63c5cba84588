//! The only place that spawns: every task has a name, an owner that counts it, and an end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// Spawns tasks on one runtime and waits for them at the end.
///
/// Cheap to clone; all clones count the same tasks.
#[derive(Debug, Clone)]
pub struct Tasks {
    runtime: Handle,
    tracker: TaskTracker,
}

impl Tasks {
    /// Tasks on the runtime this is called from.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn current() -> Self {
        Self::on(Handle::current())
    }

    /// Tasks on the given runtime.
    pub fn on(runtime: Handle) -> Self {
        Self { runtime, tracker: TaskTracker::new() }
    }

    /// Starts a task and forgets its result. `name` appears in the log when the task panics.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let _detached = self.tracker.spawn_on(Named { name, future }, &self.runtime);
    }

    /// Starts a task whose result the caller wants; dropping the handle does not end the task.
    pub fn spawn_joinable<F>(&self, name: &'static str, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn_on(Named { name, future }, &self.runtime)
    }

    /// How many tasks are running.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task is running.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Waits until every task has ended, at most `limit`. Returns how many were still running.
    ///
    /// Cancel safety: nothing is lost; call it again.
    pub async fn join(&self, limit: Duration) -> usize {
        self.tracker.close();
        let _elapsed = tokio::time::timeout(limit, self.tracker.wait()).await;
        self.tracker.len()
    }
}

pin_project_lite::pin_project! {
    /// A future that says its name when it panics. A struct of its own: an `async fn` around it would hold the
    /// future twice, and each spawn would move both.
    struct Named<F> {
        name: &'static str,
        #[pin]
        future: F,
    }

    impl<F> PinnedDrop for Named<F> {
        fn drop(this: Pin<&mut Self>) {
            if std::thread::panicking() {
                tracing::error!(task = this.name, "task panicked");
            }
        }
    }
}

impl<F: Future> Future for Named<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().future.poll(context)
    }
}
