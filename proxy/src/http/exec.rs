//! Lets hyper spawn its helper tasks where all our tasks are counted.

use outrigger_common::tasks::Tasks;

/// hyper's executor over [`Tasks`].
#[derive(Debug, Clone)]
pub struct Executor(pub Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http", future);
    }
}
