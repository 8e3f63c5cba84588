//! The watch stream: subscribes to what the application calls, folds updates into snapshots,
//! acknowledges them, and connects again with the last cursor when the stream is lost.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_api::v1::discovery_client::DiscoveryClient;
use outrigger_api::v1::{self, watch_request, watch_response};
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::describe;
use outrigger_common::name::ServiceName;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::compile::Compiler;
use super::link::Link;
use super::state::State;
use super::status::Status;
use crate::config::Served;
use crate::shared::Shared;

/// Names the registry did not know that are remembered; the oldest is forgotten beyond.
const NEGATIVE: usize = 1024;
/// Services subscribed to at once. A sidecar that calls more is misled by its application.
const SUBSCRIPTIONS: usize = 10_000;
/// Longest wait for a stream to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// The watch of one sidecar.
pub struct Watch {
    shared: Arc<Shared>,
    status: Arc<Status>,
    link: Arc<Link>,
    wanted: mpsc::Receiver<ServiceName>,
    state: State,
    subscribed: HashSet<String>,
    /// Subscribed names that do not exist, oldest first.
    negative: VecDeque<String>,
    cursor: Vec<u8>,
    revision: u64,
}

impl Watch {
    /// A watch that subscribes to the configured upstreams and to what is `wanted`.
    pub fn new(
        shared: Arc<Shared>,
        status: Arc<Status>,
        link: Arc<Link>,
        wanted: mpsc::Receiver<ServiceName>,
    ) -> Self {
        let subscribed = shared.config.upstreams.iter().map(|name| name.as_str().to_owned()).collect();
        Self {
            shared,
            status,
            link,
            wanted,
            state: State::default(),
            subscribed,
            negative: VecDeque::new(),
            cursor: Vec::new(),
            revision: 0,
        }
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut said = String::new();
        loop {
            let why = match self.stream(&mut backoff).await {
                Ok(()) => "the registry ended the stream".to_owned(),
                Err(status) => describe(&status),
            };
            let was_connected = self.status.is_connected();
            self.status.disconnected(
                Instant::now(),
                format!("no watch stream to the registry at {}: {why}", self.shared.config.registry),
            );
            self.shared.metrics.registry_connected.set(0);
            if was_connected {
                tracing::warn!(why, "watch stream lost; serving the last snapshot");
            } else if why != said {
                // Each reason once: an impostor or a wiped registry must not hide behind an outage.
                tracing::warn!(why, "watch stream not open");
            }
            said = why;
            let pause = tokio::time::sleep(backoff.next(fastrand::f64()));
            tokio::pin!(pause);
            // What is asked for meanwhile goes into the next hello.
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(name) = self.wanted.recv() => drop(self.subscribe(&name)),
                }
            }
        }
    }

    /// One stream, until it ends.
    async fn stream(&mut self, backoff: &mut Backoff) -> Result<(), tonic::Status> {
        let (requests, outgoing) = mpsc::channel(64);
        let hello = self.hello();
        let held: HashSet<&str> = self.state.held().collect();
        let add: Vec<_> =
            self.subscribed.iter().filter(|name| !held.contains(name.as_str())).cloned().collect();
        send(&requests, watch_request::Message::Hello(hello)).await;
        if !add.is_empty() {
            send(&requests, watch_request::Message::Subscribe(v1::Subscribe { add, remove: Vec::new() }))
                .await;
        }
        let mut client = DiscoveryClient::new(self.link.channel()).max_decoding_message_size(64 << 20);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(ReceiverStream::new(outgoing))).await;
        let mut updates =
            opened.map_err(|_| tonic::Status::deadline_exceeded("no stream within 10s"))??.into_inner();
        loop {
            tokio::select! {
                message = updates.next() => match message {
                    None => return Ok(()),
                    Some(message) => {
                        let Some(message) = message?.message else { continue };
                        backoff.reset();
                        self.receive(message, &requests).await;
                    }
                },
                Some(name) = self.wanted.recv() => {
                    let change = self.subscribe(&name);
                    if !change.add.is_empty() || !change.remove.is_empty() {
                        send(&requests, watch_request::Message::Subscribe(change)).await;
                    }
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        v1::Hello {
            protocol_version: outrigger_api::PROTOCOL_VERSION,
            software: format!("outrigger {}", outrigger_common::build_info::VERSION),
            features: Vec::new(),
            workload: self.shared.config.workload.clone(),
            cursor: self.cursor.clone(),
            services: self.state.held().map(str::to_owned).collect(),
            serves: Vec::new(),
        }
    }

    async fn receive(&mut self, message: watch_response::Message, requests: &mpsc::Sender<v1::WatchRequest>) {
        match message {
            watch_response::Message::Welcome(welcome) => {
                tracing::info!(store = welcome.store_id, resumed = welcome.resumed, "watching the registry");
                self.status.connected();
                self.shared.metrics.registry_connected.set(1);
                self.ready_when_answered();
            }
            watch_response::Message::Update(update) => {
                let nonce = update.nonce;
                for (resource, reason) in self.apply(update) {
                    tracing::warn!(resource, reason, "resource refused; its old form stays");
                    send(requests, watch_request::Message::Nack(v1::Nack { nonce, resource, reason })).await;
                }
                send(requests, watch_request::Message::Ack(v1::Ack { nonce })).await;
                self.ready_when_answered();
            }
        }
    }

    /// Folds an update in and puts the snapshot in force. Returns what was refused, and why.
    fn apply(&mut self, update: v1::Update) -> Vec<(String, String)> {
        self.cursor.clone_from(&update.cursor);
        self.revision = update.revision;
        let applied = self.state.apply(update);
        for name in &applied.changed {
            if self.serves(name)
                && let Some(served) = self.shared.served.get()
            {
                served.govern(name, &self.state, &self.shared.config);
                if !self.subscribed.contains(name) {
                    continue;
                }
            }
            if !self.subscribed.contains(name) {
                // It was on its way when the subscription ended: nobody would tell of its next change.
                self.state.forget(name);
                continue;
            }
            self.negative.retain(|negative| negative != name);
            if matches!(self.state.service(name), Some(super::state::Held::Unknown)) {
                self.negative.push_back(name.clone());
            }
        }
        self.publish(applied.changed.iter().map(String::as_str));
        applied.refused.into_iter().map(|refused| (refused.resource, refused.reason)).collect()
    }

    fn publish<'a>(&self, changed: impl IntoIterator<Item = &'a str>) {
        let Some(caller) = self.shared.caller.get() else { return };
        let Shared { config, metrics, .. } = self.shared.as_ref();
        let compiler = Compiler { config, source: &caller.source, metrics };
        let snapshot = self.shared.directory.load().next(&self.state, self.revision, changed, &compiler);
        metrics.snapshot_version.set(i64::try_from(self.revision).unwrap_or(i64::MAX));
        self.shared.directory.store(snapshot);
    }

    /// Whether the application behind this sidecar serves it.
    fn serves(&self, name: &str) -> bool {
        let served = |name: &ServiceName| {
            let same = |served: &Served| served.name == name.name();
            let namespace = self.shared.caller.get().map(|caller| caller.namespace.as_str());
            namespace == Some(name.namespace()) && self.shared.config.services.iter().any(same)
        };
        ServiceName::parse(name).is_ok_and(|name| served(&name))
    }

    /// Adds a name, and drops the oldest one that does not exist when there are too many.
    fn subscribe(&mut self, name: &ServiceName) -> v1::Subscribe {
        let mut change = v1::Subscribe::default();
        if self.subscribed.contains(name.as_str()) {
            return change;
        }
        while self.negative.len() >= NEGATIVE || self.subscribed.len() >= SUBSCRIPTIONS {
            let Some(oldest) = self.negative.pop_front() else { break };
            self.subscribed.remove(&oldest);
            self.state.forget(&oldest);
            self.publish([oldest.as_str()]);
            change.remove.push(oldest);
        }
        if self.subscribed.len() < SUBSCRIPTIONS {
            self.subscribed.insert(name.as_str().to_owned());
            change.add.push(name.as_str().to_owned());
        }
        change
    }

    fn ready_when_answered(&self) {
        let answered = |name: &ServiceName| self.state.service(name.as_str()).is_some();
        if self.shared.config.upstreams.iter().all(answered) {
            self.status.first_snapshot();
        }
    }
}

/// Queues a message; a closed queue means that the stream is over, which its reader learns as well.
async fn send(requests: &mpsc::Sender<v1::WatchRequest>, message: watch_request::Message) {
    let _closed = requests.send(v1::WatchRequest { message: Some(message) }).await;
}
