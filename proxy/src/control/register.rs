//! Registration: tells the registry what this workload serves, keeps the lease, passes on its health.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::v1;
use outrigger_api::v1::registration_client::RegistrationClient;
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::describe;
use outrigger_common::mtls;
use outrigger_common::resolve::resolve;
use tokio::net::UdpSocket;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Code;
use tonic::metadata::MetadataMap;

use super::clock;
use super::health::{Health, Port};
use super::link::Link;
use super::status::Status;
use crate::config::Served;
use crate::shared::{Caller, Shared};

/// Longest call about the lease.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);

/// The registration of one workload.
pub struct Registrar {
    shared: Arc<Shared>,
    status: Arc<Status>,
    link: Arc<Link>,
    health: Arc<Health>,
    /// The lease, once there is one; taken by [`Registrar::deregister`].
    lease: Mutex<Lease>,
}

#[derive(Debug, Default)]
enum Lease {
    #[default]
    None,
    Held(String),
    /// Deregistered, for good.
    Given,
}

impl Registrar {
    /// A workload not registered yet.
    pub fn new(shared: Arc<Shared>, status: Arc<Status>, link: Arc<Link>, health: Arc<Health>) -> Self {
        Self { shared, status, link, health, lease: Mutex::new(Lease::None) }
    }

    /// Registers once every port has been checked, then renews the lease at a third of its time and at
    /// every change of health, for ever.
    pub async fn run(&self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        // A registry that comes back gives every lease a full time: that must be enough for one try more.
        let mut longest = Duration::from_secs(5);
        let mut health = self.health.listen();
        // The guard must go at once, and an error would mean that `self.health` is gone.
        drop(health.wait_for(|ports| ports.iter().all(Port::checked)).await);
        let mut renew_at = Instant::now();
        let mut connected = self.status.connections();
        loop {
            // Nobody registers with a registry that the watch has not found to be the right one.
            let known = *connected.borrow_and_update() || matches!(*self.lease.lock().await, Lease::Held(_));
            tokio::select! {
                () = tokio::time::sleep_until(renew_at), if known => {}
                Ok(()) = connected.changed() => {
                    renew_at = Instant::now();
                    continue;
                }
                Ok(()) = health.changed() => {
                    renew_at = Instant::now();
                    continue;
                }
            }
            let healthy: Vec<_> = health.borrow_and_update().iter().map(Port::healthy).collect();
            match self.renew(&healthy).await {
                Ok(ttl) => {
                    backoff.reset();
                    longest = ttl / 3;
                    renew_at = Instant::now() + longest;
                }
                Err(error) => {
                    tracing::debug!(error, "lease not renewed");
                    renew_at = Instant::now() + backoff.next(fastrand::f64()).min(longest);
                }
            }
        }
    }

    /// Removes the workload and waits until callers know, at most `limit`.
    ///
    /// Cancel safety: the removal may or may not have happened; the lease ends by itself.
    pub async fn deregister(&self, limit: Duration) {
        let Lease::Held(lease) = std::mem::replace(&mut *self.lease.lock().await, Lease::Given) else {
            return;
        };
        let wait_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let mut client = RegistrationClient::new(self.link.channel());
        let call = client.deregister(v1::DeregisterRequest { lease, wait_ms });
        // The registry keeps the limit; ours is for a registry that does not answer at all.
        match tokio::time::timeout(limit + Duration::from_secs(1), call).await {
            Ok(Ok(answer)) => {
                let answer = answer.into_inner();
                tracing::info!(
                    subscribers = answer.subscribers,
                    acknowledged = answer.acknowledged,
                    "deregistered"
                );
            }
            Ok(Err(status)) => {
                tracing::warn!(error = describe(&status), "not deregistered; the lease ends by itself");
            }
            Err(_) => tracing::warn!("the registry did not answer; the lease ends by itself"),
        }
    }

    /// Keeps the lease, or registers when there is none. Returns the lease's time.
    async fn renew(&self, healthy: &[bool]) -> Result<Duration, String> {
        // Held across the calls, so that a removal cannot be overtaken by a registration.
        let mut lease = self.lease.lock().await;
        let mut client = RegistrationClient::new(self.link.channel());
        match &*lease {
            Lease::Given => return Ok(Duration::from_secs(3600)),
            Lease::Held(id) => {
                let request = v1::RenewRequest { lease: id.clone(), healthy: healthy.to_vec() };
                match within(client.renew(request)).await {
                    Ok(answer) => {
                        self.look_at_clock(answer.metadata());
                        return Ok(Duration::from_millis(answer.get_ref().ttl_ms));
                    }
                    Err(status) if status.code() != Code::NotFound => return Err(describe(&status)),
                    Err(_) => tracing::warn!("the lease is gone; registering again"),
                }
                *lease = Lease::None;
            }
            Lease::None => {}
        }
        if !self.status.is_connected() {
            return Err("no watch stream to the registry".to_owned());
        }
        let caller = self.shared.caller.get().ok_or("no identity yet")?;
        let address = self.address().await?;
        match within(client.register(self.request(caller, address, healthy))).await {
            Ok(answer) => {
                self.look_at_clock(answer.metadata());
                let answer = answer.into_inner();
                *lease = Lease::Held(answer.lease);
                self.status.registered();
                tracing::info!(workload = self.shared.config.workload, "registered");
                Ok(Duration::from_millis(answer.ttl_ms))
            }
            Err(status) => {
                let error = format!("not registered: {}", status.message());
                if !matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded) {
                    self.status.unregistered(error.clone());
                    tracing::error!(error, "the registry refuses this workload");
                }
                Err(error)
            }
        }
    }

    fn request(&self, caller: &Caller, address: IpAddr, healthy: &[bool]) -> v1::RegisterRequest {
        let config = &self.shared.config;
        let served = |(served, healthy): (&Served, &bool)| v1::ServedPort {
            service: format!("{}.{}", served.name, caller.namespace),
            port: Some(v1::Port {
                number: served.port.into(),
                name: String::new(),
                protocol: v1::Protocol::from(served.protocol).into(),
            }),
            target_port: served.target.port().into(),
            healthy: *healthy,
        };
        v1::RegisterRequest {
            workload: config.workload.clone(),
            zone: config.zone.clone(),
            address: address.to_string(),
            mesh_port: self.shared.own.mesh.port().into(),
            ports: config.services.iter().zip(healthy).map(served).collect(),
            weight: self.shared.config.weight,
        }
    }

    /// Compares this machine's clock with the one of the registry's answer.
    fn look_at_clock(&self, metadata: &MetadataMap) {
        let (wall, date) = (SystemTime::now(), metadata.get("date").and_then(|date| date.to_str().ok()));
        let Some(offset) = date.and_then(|date| clock::offset(date, wall)) else { return };
        self.shared.metrics.control.clock_offset.set(offset);
        let complaint = clock::complaint(offset);
        // What runs goes on running: certificates are judged by the registry's time from now on.
        mtls::clock::confirm(match complaint {
            None => wall,
            Some(_) => clock::corrected(wall, offset),
        });
        if self.status.clock(complaint.clone()) {
            match complaint {
                Some(complaint) => tracing::error!("{complaint}"),
                None => tracing::info!("this machine's clock agrees with the registry's"),
            }
        }
    }

    /// The address peers reach this sidecar at.
    ///
    /// # Errors
    /// When no configured address says it and the registry's name cannot be resolved.
    async fn address(&self) -> Result<IpAddr, String> {
        let listening = self.shared.own.mesh.ip();
        let given = self.shared.config.address.or((!listening.is_unspecified()).then_some(listening));
        match given {
            Some(address) => Ok(address),
            None => towards(&self.shared.config.registry).await.ok_or_else(|| {
                "cannot tell which address peers reach this sidecar at; set workload.address".to_owned()
            }),
        }
    }
}

/// The address of this machine from which the route to `registry` starts; nothing is sent.
async fn towards(registry: &str) -> Option<IpAddr> {
    let target = *resolve(registry).await.ok()?.first()?;
    let any: SocketAddr =
        if target.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<tonic::Response<T>, tonic::Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer,
        Err(_) => Err(tonic::Status::deadline_exceeded("no answer within 3s")),
    }
}
