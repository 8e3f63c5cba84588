//! The watch stream: subscribes to what the application calls, folds updates into snapshots,
//! acknowledges them, and connects again with the last cursor when the stream is lost.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_api::FEATURE_ADDRESSES;
use outrigger_api::v1::change::Change;
use outrigger_api::v1::discovery_client::DiscoveryClient;
use outrigger_api::v1::{self, watch_request, watch_response};
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::{Disbelief, describe, disbelief};
use outrigger_common::name::ServiceName;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::compile::Compiler;
use super::disk::SavedSnapshot;
use super::disk::file::Head;
use super::disk::keeper::Keeper;
use super::link::Link;
use super::owners::{self, Owners};
use super::state::State;
use super::status::Status;
use crate::shared::Shared;

/// Names the registry did not know that are remembered; the oldest is forgotten beyond.
const NEGATIVE: usize = 1024;
/// Services subscribed to at once. A sidecar that calls more is misled by its application.
const SUBSCRIPTIONS: usize = 10_000;
/// Longest wait for a stream to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the log repeats that the registry is not the right one.
const REMIND: Duration = Duration::from_secs(60);
/// Values of the label `reason` of `mesh_registry_foreign`.
const FOREIGN: [&str; 3] = ["unknown_root", "other_store", "not_registry"];

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
    /// Services of its own whose policies it asks for, in order.
    serves: Vec<String>,
    cursor: Vec<u8>,
    revision: u64,
    /// Identity of the registry's store, once it is known.
    store: Option<String>,
    keeper: Option<Arc<Keeper>>,
}

/// Why a stream is no more.
enum Lost {
    /// The registry ended it.
    Ended,
    /// The call failed.
    Failed(tonic::Status),
    /// The registry has another store than before.
    OtherStore(String),
}

impl From<tonic::Status> for Lost {
    fn from(status: tonic::Status) -> Self {
        Self::Failed(status)
    }
}

impl Watch {
    /// A watch that subscribes to the configured upstreams and to what is `wanted`.
    pub fn new(
        shared: Arc<Shared>,
        status: Arc<Status>,
        link: Arc<Link>,
        wanted: mpsc::Receiver<ServiceName>,
        keeper: Option<Arc<Keeper>>,
    ) -> Self {
        let subscribed = shared.config.upstreams.iter().map(|name| name.as_str().to_owned()).collect();
        let namespace = shared.caller.get().map_or("", |caller| caller.namespace.as_str());
        let serves: BTreeSet<_> =
            shared.config.services.iter().map(|served| format!("{}.{namespace}", served.name)).collect();
        Self {
            serves: serves.into_iter().collect(),
            store: None,
            keeper,
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

    /// Begins with what an earlier process was told, if anything, and keeps it on disk from then on.
    pub fn restore(&mut self, saved: Option<SavedSnapshot>) {
        let identity = self.shared.caller.get().map(|caller| caller.id.to_string()).unwrap_or_default();
        let software = outrigger_common::build_info::VERSION.to_owned();
        let mut head = Head { software, identity, serves: self.serves.clone(), ..Head::default() };
        let Some(SavedSnapshot { head: old, mut changes, age }) = saved else {
            if let Some(keeper) = &self.keeper {
                keeper.begin(head, Vec::new(), &[]);
            }
            return;
        };
        // Names that did not exist are asked for again when somebody needs them.
        changes.retain(|change| match &change.change {
            Some(Change::Unknown(name)) => self.subscribed.contains(name),
            _ => true,
        });
        for change in &changes {
            if let Some(Change::Service(service)) = &change.change {
                self.subscribed.insert(service.name.clone());
            }
        }
        // Of a service nobody subscribes to, the registry would not tell that its policies are gone.
        changes.retain(|change| match &change.change {
            Some(Change::Policies(set)) => {
                self.subscribed.contains(&set.service) || self.serves(&set.service)
            }
            _ => true,
        });
        self.revision = old.revision;
        let update = v1::Update { revision: old.revision, changes: changes.clone(), ..Default::default() };
        let applied = self.state.apply(update);
        for refused in &applied.refused {
            tracing::warn!(resource = refused.resource, reason = refused.reason, "not taken over from disk");
        }
        for name in &applied.changed {
            self.govern(name);
        }
        self.publish(applied.changed.iter().map(String::as_str));
        self.owners().restore(applied.owners.iter().cloned());
        // Another release may have dropped what this one needs, and policies of other services were
        // asked for then: the registry tells all of it again.
        let whole = applied.refused.is_empty() && self.state.egress().is_some();
        if old.software == head.software && old.serves == head.serves && whole {
            self.cursor.clone_from(&old.cursor);
        }
        self.store = Some(old.store).filter(|store| !store.is_empty());
        head.store = self.store.clone().unwrap_or_default();
        head.cursor.clone_from(&self.cursor);
        head.revision = old.revision;
        if let Some(keeper) = &self.keeper {
            keeper.begin(head, changes, &applied.refused);
        }
        tracing::info!(
            services = applied.changed.len(),
            addresses = applied.owners.len(),
            revision = old.revision,
            ?age,
            "state on disk in force"
        );
        self.status.restored(Instant::now(), age);
        self.ready_when_answered();
    }

    /// Watches for ever.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut said: Option<(String, Instant)> = None;
        loop {
            let Err(lost) = self.stream(&mut backoff).await;
            let (reason, why) = self.explain(&lost);
            let was_connected = self.status.is_connected();
            self.status.disconnected(Instant::now(), why.clone());
            self.no_owners();
            self.shared.metrics.control.registry_connected.set(0);
            self.shared.metrics.foreign(reason, &FOREIGN);
            let repeated = said
                .as_ref()
                .is_some_and(|(before, at)| *before == why && (reason.is_none() || at.elapsed() < REMIND));
            if was_connected {
                tracing::warn!(why, "watch stream lost; serving the last snapshot");
            } else if !repeated {
                // Each reason once: an impostor or a wiped registry must not hide behind an outage.
                tracing::warn!(why, "watch stream not open");
            }
            if was_connected || !repeated {
                said = Some((why, Instant::now()));
            }
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
    async fn stream(&mut self, backoff: &mut Backoff) -> Result<Infallible, Lost> {
        let (requests, outgoing) = mpsc::channel(64);
        let hello = self.hello();
        let held: HashSet<&str> = self.state.held().collect();
        let add: Vec<_> =
            self.subscribed.iter().filter(|name| !held.contains(name.as_str())).cloned().collect();
        send(&requests, watch_request::Message::Hello(hello)).await;
        if !add.is_empty() {
            send(&requests, watch_request::Message::Subscribe(v1::Subscribe { add, ..Default::default() }))
                .await;
        }
        let mut client = DiscoveryClient::new(self.link.channel()).max_decoding_message_size(64 << 20);
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.watch(ReceiverStream::new(outgoing))).await;
        let mut updates =
            opened.map_err(|_| tonic::Status::deadline_exceeded("no stream within 10s"))??.into_inner();
        loop {
            tokio::select! {
                message = updates.next() => match message {
                    None => return Err(Lost::Ended),
                    Some(message) => {
                        let Some(message) = message?.message else { continue };
                        backoff.reset();
                        self.receive(message, &requests).await?;
                    }
                },
                Some(name) = self.wanted.recv() => {
                    let change = self.subscribe(&name);
                    if !change.add.is_empty() || !change.remove.is_empty() {
                        send(&requests, watch_request::Message::Subscribe(change)).await;
                    }
                }
                () = self.shared.directory.owners.news() => {
                    if let Some(change) = self.ask_owners() {
                        send(&requests, watch_request::Message::Subscribe(change)).await;
                    }
                }
            }
        }
    }

    /// Why there is no stream: a reason when the registry is not believed, and a text for people.
    fn explain(&self, lost: &Lost) -> (Option<&'static str>, String) {
        let at = &self.shared.config.registry;
        let foreign = |what: &str| {
            format!(
                "the registry at {at} is not the one this sidecar joined ({what}); traffic runs on the last snapshot and certificates: restore the registry's backup (`outrigger registry restore`), or rejoin with a new token of `outrigger token`"
            )
        };
        let no_stream = |why: &str| format!("no watch stream to the registry at {at}: {why}");
        match lost {
            Lost::Ended => (None, no_stream("the registry ended the stream")),
            Lost::OtherStore(id) => {
                let expected = self.store.as_deref().unwrap_or_default();
                (Some("other_store"), foreign(&format!("store id {id}, expected {expected}")))
            }
            Lost::Failed(status) => {
                let why = describe(status);
                match disbelief(status) {
                    Some(Disbelief::UnknownRoot) => {
                        (Some("unknown_root"), foreign(&format!("unknown root: {why}")))
                    }
                    Some(Disbelief::NotRegistry) => (Some("not_registry"), foreign(&why)),
                    Some(Disbelief::Time) => (
                        None,
                        no_stream(&format!("{why}: is this machine's clock right, and the registry's?")),
                    ),
                    None => (None, no_stream(&why)),
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
            serves: self.serves.clone(),
            addresses: self.owners().held().iter().map(|(at, owner)| owners::message(*at, owner)).collect(),
        }
    }

    /// Acts on one message.
    ///
    /// # Errors
    /// The registry has another store than before: nothing it says is taken.
    async fn receive(
        &mut self,
        message: watch_response::Message,
        requests: &mpsc::Sender<v1::WatchRequest>,
    ) -> Result<(), Lost> {
        match message {
            watch_response::Message::Welcome(welcome) => {
                if self.store.as_ref().is_some_and(|store| *store != welcome.store_id) {
                    return Err(Lost::OtherStore(welcome.store_id));
                }
                if let Some(keeper) = &self.keeper {
                    keeper.store(&welcome.store_id);
                }
                self.store = Some(welcome.store_id.clone());
                self.shared.metrics.foreign(None, &FOREIGN);
                tracing::info!(store = welcome.store_id, resumed = welcome.resumed, "watching the registry");
                self.status.connected();
                if welcome.features.iter().any(|feature| feature == FEATURE_ADDRESSES) {
                    self.owners().opened();
                } else {
                    tracing::warn!("the registry does not tell whose an address is; upgrade it");
                    self.no_owners();
                }
                self.shared.metrics.control.registry_connected.set(1);
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
        Ok(())
    }

    /// Folds an update in and puts the snapshot in force. Returns what was refused, and why.
    fn apply(&mut self, update: v1::Update) -> Vec<(String, String)> {
        self.cursor.clone_from(&update.cursor);
        self.revision = update.revision;
        let copy = self.keeper.as_ref().map(|_| update.clone());
        let applied = self.state.apply(update);
        if let (Some(keeper), Some(update)) = (&self.keeper, copy) {
            let asked = |name: &str| name.parse().is_ok_and(|address| self.owners().wants(address));
            let wanted = |name: &str| self.subscribed.contains(name) || self.serves(name) || asked(name);
            keeper.told(update, &applied.refused, wanted);
        }
        for name in &applied.changed {
            self.govern(name);
            if !self.subscribed.contains(name) {
                if self.serves(name) {
                    continue;
                }
                // It was on its way when the subscription ended: nobody would tell of its next change.
                self.state.forget(name, false);
                continue;
            }
            self.negative.retain(|negative| negative != name);
            if matches!(self.state.service(name), Some(super::state::Held::Unknown)) {
                self.negative.push_back(name.clone());
            }
        }
        self.publish(applied.changed.iter().map(String::as_str));
        self.owners().told(applied.owners);
        applied.refused.into_iter().map(|refused| (refused.resource, refused.reason)).collect()
    }

    fn publish<'a>(&self, changed: impl IntoIterator<Item = &'a str>) {
        let Some(caller) = self.shared.caller.get() else { return };
        let Shared { config, metrics, .. } = self.shared.as_ref();
        let compiler = Compiler { config, source: &caller.source, metrics };
        let snapshot = self.shared.directory.load().next(&self.state, self.revision, changed, &compiler);
        metrics.control.snapshot_version.set(i64::try_from(self.revision).unwrap_or(i64::MAX));
        self.shared.directory.store(snapshot);
    }

    fn owners(&self) -> &Owners {
        &self.shared.directory.owners
    }

    /// The registry answers no questions about addresses for now.
    fn no_owners(&self) {
        self.forget_addresses(&self.owners().closed());
    }

    fn forget_addresses(&self, addresses: &[SocketAddr]) {
        if let Some(keeper) = self.keeper.as_ref().filter(|_| !addresses.is_empty()) {
            keeper.forget_addresses(addresses);
        }
    }

    /// What the registry is to be asked about addresses, if anything.
    fn ask_owners(&self) -> Option<v1::Subscribe> {
        let questions = self.owners().questions();
        self.forget_addresses(&questions.remove);
        let texts = |addresses: &[SocketAddr]| addresses.iter().map(ToString::to_string).collect();
        let (add_addresses, remove_addresses) = (texts(&questions.add), texts(&questions.remove));
        let change = v1::Subscribe { add_addresses, remove_addresses, ..Default::default() };
        (change != v1::Subscribe::default()).then_some(change)
    }

    /// Whether the application behind this sidecar serves it.
    fn serves(&self, name: &str) -> bool {
        self.serves.iter().any(|served| served == name)
    }

    /// Puts the policies of the ports it serves in force.
    fn govern(&self, name: &str) {
        if self.serves(name)
            && let Some(served) = self.shared.served.get()
        {
            served.govern(name, &self.state, &self.shared.config);
        }
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
            let serves = self.serves(&oldest);
            self.state.forget(&oldest, serves);
            if let Some(keeper) = &self.keeper {
                keeper.forget(&oldest, self.serves(&oldest));
            }
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
