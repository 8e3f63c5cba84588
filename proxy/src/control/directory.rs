//! Where the request path reads snapshots, and asks for services it does not know yet.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use outrigger_api::resource::EgressMode;
use outrigger_common::name::ServiceName;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

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
            // Boxed: once a service, where each request would hold the room for it.
            None => match Box::pin(tokio::time::timeout(limit, self.ask(name))).await {
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

    /// Whose an address is, as [`Self::owner`], for a connection that is to go there: nobody's in the
    /// mesh only where it may leave the mesh. Both are waited for at most `limit` together.
    ///
    /// Cancel safety: safe.
    ///
    /// # Errors
    /// It may not leave the mesh, or it is not known in time whether it may: a mesh that denies it must
    /// not be open while its sidecars begin.
    pub async fn bound_for(&self, address: SocketAddr, limit: Duration) -> Result<Owner, ProxyError> {
        let since = Instant::now();
        let owner = self.owner(address, limit).await;
        if owner != Owner::Outside {
            return Ok(owner);
        }
        match self.egress(limit.saturating_sub(since.elapsed())).await {
            Some(EgressMode::Allow) => Ok(Owner::Outside),
            Some(EgressMode::Deny) => Err(ProxyError::EgressDenied(address.to_string())),
            None => Err(ProxyError::DiscoveryUnavailable(format!("leaving the mesh for {address}"))),
        }
    }

    /// Whether applications may leave the mesh, once it is known; none if it is not within `limit`.
    async fn egress(&self, limit: Duration) -> Option<EgressMode> {
        let _late = tokio::time::timeout(limit, self.until(|snapshot| snapshot.egress.is_some())).await;
        self.load().egress
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::OwnAddresses;
    use crate::telemetry::metrics::Metrics;

    const LIMIT: Duration = Duration::from_secs(2);

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn directory() -> Directory {
        let own = OwnAddresses {
            outbound: at("127.0.0.1:15001"),
            mesh: at("127.0.0.1:15008"),
            admin: at("127.0.0.1:15020"),
            inbound: None,
            local_ports: Vec::new(),
        };
        Directory::new(Owners::new(own, Arc::new(Metrics::new(8)))).0
    }

    fn says(egress: EgressMode) -> Snapshot {
        let mut snapshot = Snapshot::default();
        (snapshot.version, snapshot.egress) = (1, Some(egress));
        snapshot
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_leaves_the_mesh_before_it_is_known_whether_one_may() {
        let (directory, outside) = (directory(), at("192.0.2.1:443"));
        // Neither question is answered, and both together take no longer than one.
        let since = Instant::now();
        let refused = directory.bound_for(outside, LIMIT).await;
        assert!(matches!(refused, Err(ProxyError::DiscoveryUnavailable(_))), "{refused:?}");
        assert!(since.elapsed() < LIMIT * 2);
        let service = Owner::Service { name: ServiceName::parse("orders.shop").unwrap(), port: 80 };
        directory.owners.restore([(at("10.0.9.1:80"), service.clone())]);
        let inside = directory.bound_for(at("10.0.9.1:80"), Duration::ZERO).await;
        assert_eq!(inside.unwrap(), service, "inside of it nobody waits");
        // Who waits when it is told goes on.
        directory.owners.closed();
        let told = async { directory.store(says(EgressMode::Allow)) };
        let (left, ()) = tokio::join!(directory.bound_for(outside, LIMIT), told);
        assert_eq!(left.unwrap(), Owner::Outside);
        directory.store(says(EgressMode::Deny));
        let denied = directory.bound_for(outside, Duration::ZERO).await;
        assert!(matches!(denied, Err(ProxyError::EgressDenied(_))), "{denied:?}");
    }
}
