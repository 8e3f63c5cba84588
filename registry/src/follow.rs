//! Keeps the hub's state in step with the store.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};

use crate::hub::Hub;
use crate::state::Fold;
use crate::store::{Store, StoreError, Watch};

/// Streams woken at once. One thread does everything: ten thousand of them take it a second, and a handshake
/// or a renewal that comes meanwhile is not to wait behind them all.
const AT_ONCE: usize = 128;
/// Longest time given to streams, for each that a change concerned, until most of them have it.
const TELLING: Duration = Duration::from_micros(400);
/// The most of it, whatever their number.
const LONGEST_TELLING: Duration = Duration::from_secs(1);

/// Reads the whole store into a fold; returns the watch that goes on from there.
///
/// # Errors
/// The store's.
pub async fn load(store: &dyn Store, hub: &Hub, fold: &mut Fold) -> Result<Box<dyn Watch>, StoreError> {
    let range = store.range("", None).await?;
    let changed = fold.reset(&range);
    hub.wake(&hub.publish(fold.state().clone(), &changed));
    store.watch(range.revision + 1).await
}

/// Publishes every transaction until the store is closed. Transactions that are waiting together
/// become one state: a reader sees each of them whole, and the cost follows the batch.
pub async fn follow(store: Arc<dyn Store>, hub: Arc<Hub>, mut fold: Fold, mut watch: Box<dyn Watch>) {
    let mut pace = Pace { told: Instant::now() };
    loop {
        match watch.next().await {
            Ok(transactions) => {
                let changed = fold.apply(&transactions);
                let concerned = hub.publish(fold.state().clone(), &changed);
                for some in concerned.chunks(AT_ONCE) {
                    hub.wake(some);
                    yield_now().await;
                }
                pace.breathe(&hub, fold.state().position, concerned.len()).await;
            }
            Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::warn!(%error, "reading the whole store again");
                match load(&*store, &hub, &mut fold).await {
                    Ok(fresh) => watch = fresh,
                    Err(StoreError::Closed) => return,
                    Err(error) => {
                        tracing::error!(%error, "the store cannot be read; streams keep what they have");
                        sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    }
}

/// How the telling of streams goes.
struct Pace {
    /// When most of those whom the last change concerned had it.
    told: Instant,
}

impl Pace {
    /// Waits until most of those a change concerned have it, and once more as long, less the time that was
    /// quiet before it: one change is told at once, but of many in a row, those that come meanwhile are
    /// told as one. Else streams would hear of each of them, and a fleet that registers would leave no
    /// time to let others in.
    async fn breathe(&mut self, hub: &Hub, position: u64, concerned: usize) {
        let begun = Instant::now();
        let quiet = begun.duration_since(self.told);
        let streams = u32::try_from(concerned).unwrap_or(u32::MAX);
        let limit = TELLING.saturating_mul(streams).min(LONGEST_TELLING);
        let _late = timeout(limit, hub.reached_all_but(position, concerned / 10)).await;
        self.told = Instant::now();
        let rest = self.told.duration_since(begun).saturating_sub(quiet);
        if !rest.is_zero() {
            sleep(rest).await;
        }
    }
}
