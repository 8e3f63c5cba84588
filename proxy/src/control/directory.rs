//! Where the request path reads snapshots, and asks for services it does not know yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use outrigger_common::name::ServiceName;
use tokio::sync::{mpsc, watch};

use super::owners::{Owner, Owners};
use super::snapshot::{Entry, Service, Snapshot};
use crate::error::ProxyError;

/// The request path's view of the control thread.
#[derive(Debug)]
pub struct Directory {
    snapshot: ArcSwap<Snapshot>,
    version: watch::Sender<u64>,
    wanted: mpsc::Sender<ServiceName>,
    /// Whose addresses are.
    pub owners: Owners,
}

impl Directory {
    /// An empty directory; the receiver yields the services the request path asks for.
    pub fn new(owners: Owners) -> (Self, mpsc::Receiver<ServiceName>) {
        // A burst of first requests; more wait for their turn within the discovery timeout.
        let (wanted, requests) = mpsc::channel(256);
        let directory = Self { snapshot: ArcSwap::default(), version: watch::Sender::new(0), wanted, owners };
        (directory, requests)
    }

    /// The current snapshot.
    pub fn load(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The current snapshot, to hold across awaits.
    pub fn load_full(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the snapshot and wakes who waits for it.
    pub fn store(&self, snapshot: Snapshot) {
        let version = snapshot.version;
        self.snapshot.store(Arc::new(snapshot));
        self.version.send_replace(version);
    }

    /// The service named, from `snapshot` if it is there, else from the registry within `limit`.
    ///
    /// Cancel safety: safe; the subscription stays.
    ///
    /// # Errors
    /// The registry knows no such service, or could not be asked.
    pub async fn find(
        &self,
        snapshot: &Snapshot,
        name: &ServiceName,
        limit: Duration,
    ) -> Result<Arc<Service>, ProxyError> {
        match snapshot.service(name.as_str()) {
            Some(entry) => answer(entry, name),
            None => match tokio::time::timeout(limit, self.ask(name)).await {
                Ok(entry) => answer(&entry, name),
                Err(_) => Err(ProxyError::DiscoveryUnavailable(name.to_string())),
            },
        }
    }

    /// Whose an address is: where a connection goes that says nothing else. What the registry told
    /// before is answered at once; otherwise it is asked, and waited for at most `limit`. While it
    /// cannot be asked, or when it does not answer in time, the address counts as outside the mesh, for
    /// this time only.
    ///
    /// Cancel safety: safe; the question stays.
    pub async fn owner(&self, address: SocketAddr, limit: Duration) -> Owner {
        self.owners.owner(address, limit).await
    }

    /// Resolves when a snapshot is in force of which it `holds`, at once if it is already.
    ///
    /// Cancel safety: safe.
    pub async fn until(&self, holds: impl Fn(&Snapshot) -> bool) {
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            if holds(&self.snapshot.load()) {
                return;
            }
            if version.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn ask(&self, name: &ServiceName) -> Entry {
        let mut version = self.version.subscribe();
        // A closed channel means that the process is ending: the timeout answers.
        let _closed = self.wanted.send(name.clone()).await;
        loop {
            version.borrow_and_update();
            if let Some(entry) = self.snapshot.load().service(name.as_str()) {
                return entry.clone();
            }
            if version.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn answer(entry: &Entry, name: &ServiceName) -> Result<Arc<Service>, ProxyError> {
    match entry {
        Entry::Known(service) => Ok(service.clone()),
        Entry::Unknown => Err(ProxyError::UnknownService(name.to_string())),
    }
}
