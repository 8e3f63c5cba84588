//! The watch stream: one task a sidecar.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};

use outrigger_api::v1::watch_request::Message as Asked;
use outrigger_api::{FEATURE_ADDRESSES, PROTOCOL_VERSION, v1};
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::ServiceName;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Status, Streaming};

use super::connection::MAX_WATCHES;
use super::{Caller, Services, caller};
use crate::hub::SubscriberId;
use crate::join::unix;
use crate::owners;
use crate::refusals::Refusal;
use crate::sent;
use crate::watch::{Cursor, View};

/// Services one stream may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 10_000;
/// Addresses one stream may ask about; sidecars keep to half of it.
const MAX_ADDRESSES: usize = 8192;
/// Updates a stream may be behind with its acknowledgements; then it waits, and gets the latest.
const MAX_IN_FLIGHT: usize = 16;
/// Services one sidecar may stand in front of: as many as it may have ports.
const MAX_SERVED: usize = 256;
/// Longest name of a resource that is kept of a refusal: a kind, a namespace and a name.
const MAX_RESOURCE: usize = 400;
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The wall clock may jump: a certificate's end is looked for at least this often.
const EXPIRY_CHECK: Duration = Duration::from_secs(30);

pub(super) struct Discovery(pub(super) Services);

pub(super) type Reply = Result<sent::Response, Status>;

impl Discovery {
    /// Begins a stream in a task of its own; returns what it tells.
    ///
    /// # Errors
    /// Without a certificate; too many streams of one connection.
    pub(super) fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<mpsc::Receiver<Reply>, Status> {
        let caller = caller(&request)?;
        let watch = caller.watches.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "this connection has {MAX_WATCHES} watch streams already; end one of them first"
            ))
        })?;
        // One place: what is not read by the sidecar is not made yet, so it costs no memory here.
        let (replies, stream) = mpsc::channel(1);
        let (services, requests) = (self.0.clone(), request.into_inner());
        self.0.tasks.spawn("watch stream", async move {
            let _watch = watch;
            let drain = services.drain.clone();
            let end = tokio::select! {
                end = serve(services, requests, &replies, &caller.id) => end,
                status = expired(&caller) => Err(status),
                () = drain.signalled() => Err(Status::unavailable("the registry is shutting down")),
                () = replies.closed() => Ok(()),
            };
            if let Err(status) = end {
                tracing::debug!(identity = %caller.id, status = status.message(), "watch stream ended");
                // Whoever does not read does not learn why; the connection's pings see to that.
                let _full = replies.try_send(Err(status));
            }
        });
        Ok(stream)
    }
}

/// Resolves when the caller's certificate has expired.
async fn expired(caller: &Caller) -> Status {
    while let Ok(remaining) = caller.expires.duration_since(SystemTime::now()) {
        tokio::time::sleep((remaining + Duration::from_millis(1)).min(EXPIRY_CHECK)).await;
    }
    Status::unauthenticated("the client certificate has expired: connect with a renewed one")
}

/// A stream after its Hello.
struct Stream {
    services: Services,
    id: SubscriberId,
    view: View,
    /// Of the next update.
    nonce: u64,
    /// The next update is sent even if empty: it answers the Hello.
    answer: bool,
    /// Nothing is sent before.
    held_until: Option<Instant>,
    peer: String,
    /// Of its identity.
    namespace: String,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.services.hub.leave(self.id);
        self.services.metrics.streams.dec();
    }
}

async fn serve(
    services: Services,
    mut requests: Streaming<v1::WatchRequest>,
    replies: &mpsc::Sender<Reply>,
    peer: &SpiffeId,
) -> Result<(), Status> {
    let first = tokio::time::timeout(HELLO_TIMEOUT, requests.message());
    let first = first.await.map_err(|_| Status::deadline_exceeded("no Hello within 10 seconds"))??;
    let Some(Asked::Hello(hello)) = first.and_then(|first| first.message) else {
        return Err(Status::invalid_argument("the first message of a stream must be a Hello"));
    };
    let wake = Arc::new(Notify::new());
    let mut stream = Stream::join(services, peer, wake.clone());
    let welcome = stream.hello(&hello)?;
    drop(hello);
    if replies.send(Ok(welcome.into())).await.is_err() {
        return Ok(());
    }
    let mut pending = true;
    loop {
        let held = stream.held_until;
        let may_send = pending && held.is_none() && stream.services.hub.in_flight(stream.id) < MAX_IN_FLIGHT;
        // Every arm is cancel-safe: a message half read stays in `requests`, a place not taken in
        // `replies`, a wake-up in `wake`.
        tokio::select! {
            asked = requests.message() => {
                let Some(asked) = asked?.and_then(|asked| asked.message) else { return Ok(()) };
                stream.asked(asked)?;
                pending = true;
            }
            () = wake.notified() => pending = true,
            () = async { if let Some(at) = held { sleep_until(at).await } }, if held.is_some() => {
                stream.held_until = None;
            }
            place = replies.reserve(), if may_send => {
                let Ok(place) = place else { return Ok(()) };
                match stream.next_update() {
                    Some(update) => place.send(Ok(update.into())),
                    None => pending = false,
                }
            }
        }
    }
}

impl Stream {
    fn join(services: Services, peer: &SpiffeId, wake: Arc<Notify>) -> Self {
        let namespace = peer.namespace().unwrap_or_default().to_owned();
        let id = services.hub.join(wake, &namespace);
        services.metrics.streams.inc();
        let (view, peer) = (View::new(&namespace, []), peer.to_string());
        Self { services, id, view, nonce: 1, answer: true, held_until: None, peer, namespace }
    }

    fn hello(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, Status> {
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(Status::failed_precondition(format!(
                "the sidecar speaks version {} of the watch protocol, this registry version {PROTOCOL_VERSION}: run the same release of both",
                hello.protocol_version
            )));
        }
        let names = self.more(&hello.services)?;
        let serves = self.served(&hello.serves)?;
        let held = self.told_before(&hello.addresses)?;
        self.view = View::new(&self.namespace, serves.iter().cloned());
        let hub = &self.services.hub;
        let state = hub.state();
        let resumed = Cursor::decode(&hello.cursor)
            .filter(|cursor| cursor.source == *state.source && cursor.position <= state.position);
        if resumed.is_none() && !hello.cursor.is_empty() {
            self.held_until = self.services.settled;
        }
        self.view.resume(&state, resumed.as_ref(), &names);
        let mesh = resumed.as_ref().is_none_or(|cursor| state.mesh.changed > cursor.position);
        hub.subscribe(self.id, names, mesh);
        hub.serve(self.id, serves);
        hub.ask(self.id, held.iter().map(|(address, _)| *address));
        self.view.resume_owners(held);
        tracing::debug!(identity = self.peer, workload = ?hello.workload, software = ?hello.software, resumed = resumed.is_some(), "watch stream opened");
        Ok(v1::Welcome {
            protocol_version: PROTOCOL_VERSION,
            features: vec![FEATURE_ADDRESSES.to_owned()],
            store_id: self.services.store_id.to_string(),
            resumed: resumed.is_some(),
        })
    }

    fn asked(&mut self, asked: Asked) -> Result<(), Status> {
        match asked {
            Asked::Hello(_) => Err(Status::invalid_argument("a stream has one Hello")),
            Asked::Subscribe(subscribe) => {
                let removed = names(&subscribe.remove)?;
                self.services.hub.unsubscribe(self.id, &removed);
                for name in &removed {
                    self.view.forget(name);
                }
                let added = self.more(&subscribe.add)?;
                self.services.hub.subscribe(self.id, added, false);
                let removed = addresses(&subscribe.remove_addresses)?;
                self.services.hub.forget(self.id, &removed);
                self.view.forget_owners(&removed);
                self.room(subscribe.add_addresses.len())?;
                self.services.hub.ask(self.id, addresses(&subscribe.add_addresses)?);
                Ok(())
            }
            Asked::Ack(ack) => {
                self.services.hub.acknowledge(self.id, ack.nonce);
                Ok(())
            }
            Asked::Nack(nack) => {
                self.services.metrics.nacks.inc();
                let reason: String = nack.reason.chars().take(500).collect();
                tracing::warn!(identity = self.peer, resource = ?nack.resource, ?reason, "sidecar refused a resource");
                let resource = nack.resource.chars().take(MAX_RESOURCE).collect();
                let refusal =
                    Refusal { at: unix(SystemTime::now()), identity: self.peer.clone(), resource, reason };
                self.services.refusals.lock().unwrap_or_else(PoisonError::into_inner).add(refusal);
                let name =
                    nack.resource.strip_prefix("Service/").and_then(|name| ServiceName::parse(name).ok());
                if let Some(name) = name {
                    self.view.refused(&name);
                }
                Ok(())
            }
        }
    }

    /// Checks names, and that the stream may have so many more.
    fn more(&self, added: &[String]) -> Result<Vec<ServiceName>, Status> {
        if added.len() + self.services.hub.subscriptions(self.id) > MAX_SUBSCRIPTIONS {
            return Err(Status::resource_exhausted(format!(
                "a stream may subscribe to {MAX_SUBSCRIPTIONS} services; remove some first"
            )));
        }
        names(added)
    }

    /// Checks that the stream may ask about so many more addresses.
    fn room(&self, added: usize) -> Result<(), Status> {
        if added + self.services.hub.addresses(self.id) > MAX_ADDRESSES {
            return Err(Status::resource_exhausted(format!(
                "a stream may ask about {MAX_ADDRESSES} addresses; remove some first"
            )));
        }
        Ok(())
    }

    /// Checks what a sidecar says it was told of addresses.
    fn told_before(
        &self,
        held: &[v1::AddressOwner],
    ) -> Result<Vec<(SocketAddr, Option<owners::Owner>)>, Status> {
        self.room(held.len())?;
        let checked = held.iter().map(owners::held).collect::<Result<_, _>>();
        checked.map_err(|why| Status::invalid_argument(format!("addresses: {why}")))
    }

    /// Checks the services a sidecar says it stands in front of. Who may call them is told to their
    /// own namespace alone.
    fn served(&self, served: &[String]) -> Result<HashSet<ServiceName>, Status> {
        if served.len() > MAX_SERVED {
            return Err(Status::resource_exhausted(format!("a sidecar may serve {MAX_SERVED} services")));
        }
        let served = names(served)?;
        match served.iter().find(|name| name.namespace() != self.namespace) {
            Some(other) => Err(Status::permission_denied(format!(
                "{} cannot serve {other}: it is of another namespace",
                self.peer
            ))),
            None => Ok(served.into_iter().collect()),
        }
    }

    /// The update that brings the sidecar to the newest state; none if it is there.
    fn next_update(&mut self) -> Option<sent::Update> {
        let hub = &self.services.hub;
        let (state, marks) = hub.take(self.id, self.nonce, self.answer)?;
        let changes = self.view.advance(&state, &marks);
        if changes.is_empty() && !self.answer {
            hub.nothing_to_send(self.id, self.nonce);
            return None;
        }
        self.answer = false;
        let nonce = self.nonce;
        self.nonce += 1;
        self.services.metrics.pushes.inc();
        let (source, position) = (state.source.to_string(), state.position);
        let cursor = Cursor { source, position, held: self.view.digests() }.encode().into();
        Some(sent::Update { nonce, cursor, revision: position, changes })
    }
}

fn names(names: &[String]) -> Result<Vec<ServiceName>, Status> {
    let parse = |name: &String| {
        ServiceName::parse(name).map_err(|error| Status::invalid_argument(format!("service {error}")))
    };
    names.iter().map(parse).collect()
}

fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>, Status> {
    texts.iter().map(|text| owners::parse(text)).collect::<Result<_, _>>().map_err(Status::invalid_argument)
}
