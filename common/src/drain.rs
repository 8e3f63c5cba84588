//! The drain signal: one side says "finish", every connection and loop hears it.

use tokio_util::sync::CancellationToken;

/// The side that starts the drain.
#[derive(Debug, Clone, Default)]
pub struct DrainTrigger(CancellationToken);

/// The side that hears of it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Drain(CancellationToken);

impl DrainTrigger {
    /// A trigger nobody has pulled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A listener to this trigger.
    pub fn listen(&self) -> Drain {
        Drain(self.0.clone())
    }

    /// Tells every listener, once and for good.
    pub fn start(&self) {
        self.0.cancel();
    }
}

impl Drain {
    /// Whether the drain has started.
    pub fn started(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Resolves when the drain starts, at once if it has.
    ///
    /// Cancel safety: safe.
    pub async fn signalled(&self) {
        self.0.cancelled().await;
    }
}
