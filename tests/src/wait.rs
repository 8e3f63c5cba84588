//! Waiting for a condition, with a deadline.

use std::future::Future;
use std::time::Duration;

/// Longest wait for anything that should happen soon.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// How often a condition is looked at.
const GLANCE: Duration = Duration::from_millis(5);

/// Fails the test when the future does not end.
///
/// # Panics
/// After [`DEADLINE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks again until the answer is yes.
///
/// # Panics
/// After [`DEADLINE`].
pub async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(GLANCE).await;
        }
    })
    .await;
}
