//! Who hears of what: the newest [`State`] and the streams that subscribed to parts of it.
//!
//! A change marks only the streams that subscribed to it and wakes those. A stream takes the newest
//! state together with its marks under one lock, so a transaction is never seen in parts, and a slow
//! stream costs one mark a service however much happens meanwhile.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use outrigger_common::name::ServiceName;
use prometheus::Histogram;
use tokio::sync::{Notify, watch};

use crate::policies::Scope;
use crate::state::{Changed, State};

/// Changes whose way to the last subscriber is timed at once; older ones are no longer timed. Each may
/// cost eight bytes in every stream.
const TIMED_LIMIT: usize = 256;

/// Names a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SubscriberId(u64);

/// The newest state and its subscribers.
pub struct Hub {
    inner: Mutex<Inner>,
    /// Counts publications and acknowledgements, for those who wait for them.
    progress: watch::Sender<u64>,
    convergence: Histogram,
}

struct Inner {
    state: Arc<State>,
    next_id: u64,
    subscribers: HashMap<SubscriberId, Subscriber>,
    /// Who calls a service.
    interested: HashMap<ServiceName, BTreeSet<SubscriberId>>,
    /// Who serves a service.
    serving: HashMap<ServiceName, BTreeSet<SubscriberId>>,
    /// Who asked whose an address is.
    asking: HashMap<SocketAddr, BTreeSet<SubscriberId>>,
    /// By position.
    timed: BTreeMap<u64, Timed>,
}

struct Subscriber {
    namespace: Arc<str>,
    dirty: Marks,
    wake: Arc<Notify>,
    subscribed: HashSet<ServiceName>,
    serves: HashSet<ServiceName>,
    addresses: HashSet<SocketAddr>,
    /// Updates sent and not acknowledged, oldest first: nonce, position.
    in_flight: VecDeque<(u64, u64)>,
    acknowledged: u64,
    /// Positions of timed changes that it has not acknowledged, in order.
    owed: VecDeque<u64>,
}

/// What a stream has yet to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Services, in order.
    pub services: BTreeSet<ServiceName>,
    /// Services whose policies are to be looked at, in order.
    pub policies: BTreeSet<ServiceName>,
    /// Addresses whose owner is to be looked at, in order.
    pub addresses: BTreeSet<SocketAddr>,
    /// The mesh's settings.
    pub mesh: bool,
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.services.is_empty() && self.policies.is_empty() && self.addresses.is_empty() && !self.mesh
    }
}

/// A published change that not every subscriber has acknowledged.
struct Timed {
    since: Instant,
    /// How many.
    waiting: usize,
}

/// How far a removal got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Streams that had subscribed.
    pub subscribers: u32,
    /// How many of them have it.
    pub acknowledged: u32,
}

impl Hub {
    /// A hub without streams.
    pub fn new(state: Arc<State>, convergence: Histogram) -> Self {
        let inner = Inner {
            state,
            next_id: 0,
            subscribers: HashMap::new(),
            interested: HashMap::new(),
            serving: HashMap::new(),
            asking: HashMap::new(),
            timed: BTreeMap::new(),
        };
        Self { inner: Mutex::new(inner), progress: watch::Sender::new(0), convergence }
    }

    /// The newest state.
    pub fn state(&self) -> Arc<State> {
        self.lock().state.clone()
    }

    /// How many streams are open.
    pub fn subscribers(&self) -> usize {
        self.lock().subscribers.len()
    }

    /// Makes a state the newest and marks whom the change concerns; returns them: they are to be woken
    /// ([`Hub::wake`]).
    pub fn publish(&self, state: Arc<State>, changed: &Changed) -> Vec<SubscriberId> {
        let mut inner = self.lock();
        let mut marked = inner.mark_policies(&changed.policies);
        let Inner { interested, asking, subscribers, .. } = &mut *inner;
        for address in &changed.addresses {
            for id in asking.get(address).into_iter().flatten() {
                if let Some(subscriber) = subscribers.get_mut(id) {
                    subscriber.dirty.addresses.insert(*address);
                    marked.insert(*id);
                }
            }
        }
        for name in &changed.services {
            for id in interested.get(name).into_iter().flatten() {
                if let Some(subscriber) = subscribers.get_mut(id) {
                    subscriber.dirty.services.insert(name.clone());
                    marked.insert(*id);
                }
            }
        }
        if changed.mesh {
            for (id, subscriber) in &mut *subscribers {
                subscriber.dirty.mesh = true;
                marked.insert(*id);
            }
        }
        inner.time(&marked, state.position);
        inner.state = state;
        drop(inner);
        self.advance();
        marked.into_iter().collect()
    }

    /// Wakes streams.
    pub fn wake(&self, ids: &[SubscriberId]) {
        let inner = self.lock();
        for subscriber in ids.iter().filter_map(|id| inner.subscribers.get(id)) {
            subscriber.wake.notify_one();
        }
    }

    /// Adds a stream of a sidecar of this namespace; `wake` is notified when there is something for it.
    pub fn join(&self, wake: Arc<Notify>, namespace: &str) -> SubscriberId {
        let mut inner = self.lock();
        let id = SubscriberId(inner.next_id);
        inner.next_id += 1;
        let subscriber = Subscriber {
            namespace: namespace.into(),
            dirty: Marks::default(),
            wake,
            subscribed: HashSet::new(),
            serves: HashSet::new(),
            addresses: HashSet::new(),
            in_flight: VecDeque::new(),
            acknowledged: 0,
            owed: VecDeque::new(),
        };
        inner.subscribers.insert(id, subscriber);
        id
    }

    /// Removes a stream; nobody waits for it any more.
    pub fn leave(&self, id: SubscriberId) {
        let mut inner = self.lock();
        let Some(subscriber) = inner.subscribers.remove(&id) else { return };
        for name in &subscriber.subscribed {
            forget(&mut inner.interested, id, name);
        }
        for name in &subscriber.serves {
            forget(&mut inner.serving, id, name);
        }
        for address in &subscriber.addresses {
            forget(&mut inner.asking, id, address);
        }
        self.settle(&mut inner.timed, subscriber.owed);
        drop(inner);
        self.advance();
    }

    /// Notes that a stream wants to hear of services from now on. They are marked, so that the next
    /// [`Hub::take`] names them.
    pub fn subscribe(&self, id: SubscriberId, names: impl IntoIterator<Item = ServiceName>, mesh: bool) {
        let mut inner = self.lock();
        let Inner { interested, subscribers, .. } = &mut *inner;
        let Some(subscriber) = subscribers.get_mut(&id) else { return };
        subscriber.dirty.mesh |= mesh;
        for name in names {
            if subscriber.subscribed.insert(name.clone()) {
                interested.entry(name.clone()).or_default().insert(id);
                subscriber.dirty.policies.insert(name.clone());
                subscriber.dirty.services.insert(name);
            }
        }
    }

    /// Notes which services a stream's sidecar stands in front of: what governs them is marked now
    /// and whenever it changes.
    pub fn serve(&self, id: SubscriberId, names: impl IntoIterator<Item = ServiceName>) {
        let mut inner = self.lock();
        let Inner { serving, subscribers, .. } = &mut *inner;
        let Some(subscriber) = subscribers.get_mut(&id) else { return };
        for name in names {
            serving.entry(name.clone()).or_default().insert(id);
            subscriber.dirty.policies.insert(name.clone());
            subscriber.serves.insert(name);
        }
    }

    /// Notes that a stream no longer wants to hear of services.
    pub fn unsubscribe(&self, id: SubscriberId, names: &[ServiceName]) {
        let mut inner = self.lock();
        for name in names {
            if let Some(subscriber) = inner.subscribers.get_mut(&id)
                && subscriber.subscribed.remove(name)
            {
                subscriber.dirty.services.remove(name);
                if !subscriber.serves.contains(name) {
                    subscriber.dirty.policies.remove(name);
                }
                forget(&mut inner.interested, id, name);
            }
        }
        drop(inner);
        self.advance();
    }

    /// Notes that a stream asks whose addresses are, now and from now on. They are marked, so that the
    /// next [`Hub::take`] names them.
    pub fn ask(&self, id: SubscriberId, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut inner = self.lock();
        let Inner { asking, subscribers, .. } = &mut *inner;
        let Some(subscriber) = subscribers.get_mut(&id) else { return };
        for address in addresses {
            if subscriber.addresses.insert(address) {
                asking.entry(address).or_default().insert(id);
                subscriber.dirty.addresses.insert(address);
            }
        }
    }

    /// Notes that a stream no longer asks.
    pub fn forget(&self, id: SubscriberId, addresses: &[SocketAddr]) {
        let mut inner = self.lock();
        for address in addresses {
            if let Some(subscriber) = inner.subscribers.get_mut(&id)
                && subscriber.addresses.remove(address)
            {
                subscriber.dirty.addresses.remove(address);
                forget(&mut inner.asking, id, address);
            }
        }
        drop(inner);
        self.advance();
    }

    /// How many addresses a stream asks about.
    pub fn addresses(&self, id: SubscriberId) -> usize {
        self.lock().subscribers.get(&id).map_or(0, |subscriber| subscriber.addresses.len())
    }

    /// How many services a stream subscribed to.
    pub fn subscriptions(&self, id: SubscriberId) -> usize {
        self.lock().subscribers.get(&id).map_or(0, |subscriber| subscriber.subscribed.len())
    }

    /// The newest state and what the stream has yet to look at in it; none when there is nothing.
    ///
    /// Until the stream says what became of it ([`Hub::acknowledge`] or [`Hub::nothing_to_send`]), the change
    /// counts as on its way: `nonce` is that of the update it would become.
    pub fn take(&self, id: SubscriberId, nonce: u64, even_if_empty: bool) -> Option<(Arc<State>, Marks)> {
        let mut inner = self.lock();
        let state = inner.state.clone();
        let subscriber = inner.subscribers.get_mut(&id)?;
        if subscriber.dirty.is_empty() && !even_if_empty {
            return None;
        }
        subscriber.in_flight.push_back((nonce, state.position));
        Some((state, std::mem::take(&mut subscriber.dirty)))
    }

    /// How many updates a stream has not acknowledged.
    pub fn in_flight(&self, id: SubscriberId) -> usize {
        self.lock().subscribers.get(&id).map_or(0, |subscriber| subscriber.in_flight.len())
    }

    /// Says that what was taken under `nonce` made no difference to what was sent before: whoever has
    /// that, has this too.
    pub fn nothing_to_send(&self, id: SubscriberId, nonce: u64) {
        let mut inner = self.lock();
        let Some(subscriber) = inner.subscribers.get_mut(&id) else { return };
        let Some((_, position)) = subscriber.in_flight.pop_back_if(|(taken, _)| *taken == nonce) else {
            return;
        };
        match subscriber.in_flight.back_mut() {
            Some(last) => last.1 = position,
            None => {
                let has = subscriber.has_all_to(position);
                self.settle(&mut inner.timed, has);
            }
        }
        drop(inner);
        self.advance();
    }

    /// Notes that a stream applied everything up to `nonce`.
    pub fn acknowledge(&self, id: SubscriberId, nonce: u64) {
        let mut inner = self.lock();
        let Some(subscriber) = inner.subscribers.get_mut(&id) else { return };
        let mut reached = None;
        while let Some((_, position)) = subscriber.in_flight.pop_front_if(|(sent, _)| *sent <= nonce) {
            reached = Some(position);
        }
        let Some(position) = reached else { return };
        let has = subscriber.has_all_to(position);
        self.settle(&mut inner.timed, has);
        drop(inner);
        self.advance();
    }

    /// Waits until a position is published.
    ///
    /// Cancel safety: safe.
    pub async fn published(&self, position: u64) {
        let mut progress = self.progress.subscribe();
        while self.lock().state.position < position {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until no more than so many of those whom the change at a position concerned have yet to
    /// acknowledge it.
    ///
    /// Cancel safety: safe.
    pub async fn reached_all_but(&self, position: u64, few: usize) {
        let mut progress = self.progress.subscribe();
        while self.lock().timed.get(&position).is_some_and(|change| change.waiting > few) {
            if progress.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until every stream that had subscribed to one of the services has acknowledged a
    /// position, or until the limit. A stream that ended or no longer cares counts as having it.
    ///
    /// Cancel safety: safe.
    pub async fn reached(&self, position: u64, services: &[ServiceName], limit: Duration) -> Reach {
        let deadline = tokio::time::Instant::now() + limit;
        let mut progress = self.progress.subscribe();
        // The position is durable: it will be published, but the caller's limit holds for that too.
        if tokio::time::timeout_at(deadline, self.published(position)).await.is_err() {
            return Reach { subscribers: 0, acknowledged: 0 };
        }
        let mut waiting: BTreeSet<SubscriberId> = {
            let inner = self.lock();
            let ids = services.iter().flat_map(|name| inner.interested.get(name).into_iter().flatten());
            ids.copied().collect()
        };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let subscribers = count(waiting.len());
        loop {
            progress.mark_unchanged();
            // One that is still to come keeps all the others from being looked at again: with thousands
            // of streams, each acknowledgement would else look at thousands.
            self.lock().skip_those_that_have(position, &mut waiting);
            let late =
                !waiting.is_empty() && tokio::time::timeout_at(deadline, progress.changed()).await.is_err();
            if late {
                let inner = self.lock();
                waiting.retain(|id| inner.waits(*id, position));
            }
            if waiting.is_empty() || late {
                return Reach { subscribers, acknowledged: subscribers - count(waiting.len()) };
            }
        }
    }

    /// Counts one subscriber less for each of these positions.
    fn settle(&self, timed: &mut BTreeMap<u64, Timed>, positions: impl IntoIterator<Item = u64>) {
        for position in positions {
            let Some(change) = timed.get_mut(&position) else { continue };
            change.waiting -= 1;
            if change.waiting == 0 {
                self.convergence.observe(change.since.elapsed().as_secs_f64());
                timed.remove(&position);
            }
        }
    }

    fn advance(&self) {
        self.progress.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// No code panics while it holds this lock; were it to, the data would still be whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Times a change until all who were marked have it.
    fn time(&mut self, marked: &HashSet<SubscriberId>, position: u64) {
        if marked.is_empty() {
            return;
        }
        let timed = self.timed.entry(position).or_insert(Timed { since: Instant::now(), waiting: 0 });
        timed.waiting += marked.len();
        if self.timed.len() > TIMED_LIMIT {
            self.timed.pop_first();
        }
        let oldest = self.timed.first_key_value().map_or(position, |(oldest, _)| *oldest);
        for id in marked {
            if let Some(subscriber) = self.subscribers.get_mut(id) {
                while subscriber.owed.pop_front_if(|owed| *owed < oldest).is_some() {}
                subscriber.owed.push_back(position);
            }
        }
    }

    /// Takes the first subscribers out, up to one that waits for a position.
    fn skip_those_that_have(&self, position: u64, waiting: &mut BTreeSet<SubscriberId>) {
        while waiting.first().is_some_and(|id| !self.waits(*id, position)) {
            waiting.pop_first();
        }
    }

    fn waits(&self, id: SubscriberId, position: u64) -> bool {
        self.subscribers.get(&id).is_some_and(|subscriber| !subscriber.has(position))
    }

    /// Marks the services whose policies changed, for whom they concern; returns whom.
    fn mark_policies(&mut self, scopes: &BTreeSet<Scope>) -> HashSet<SubscriberId> {
        let Self { interested, serving, subscribers, .. } = self;
        let mut marked = HashSet::new();
        let mut mark = |name: &ServiceName, ids: Option<&BTreeSet<SubscriberId>>, of: Option<&str>| {
            for id in ids.into_iter().flatten() {
                if let Some(subscriber) = subscribers.get_mut(id)
                    && of.is_none_or(|namespace| *subscriber.namespace == *namespace)
                {
                    subscriber.dirty.policies.insert(name.clone());
                    marked.insert(*id);
                }
            }
        };
        for scope in scopes {
            match scope {
                Scope::Producer(name) => {
                    mark(name, interested.get(name), None);
                    mark(name, serving.get(name), None);
                }
                Scope::Consumer(name, namespace) => mark(name, interested.get(name), Some(namespace)),
                Scope::Authorization(name) => mark(name, serving.get(name), None),
                Scope::Namespace(namespace) => {
                    let served = serving.iter().filter(|(name, _)| name.namespace() == namespace);
                    served.for_each(|(name, ids)| mark(name, Some(ids), None));
                }
            }
        }
        marked
    }
}

fn forget<K: Hash + Eq>(index: &mut HashMap<K, BTreeSet<SubscriberId>>, id: SubscriberId, key: &K) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

impl Subscriber {
    /// Notes that it has everything up to a position; returns which timed changes are among that.
    fn has_all_to(&mut self, position: u64) -> VecDeque<u64> {
        self.acknowledged = position;
        let later = self.owed.partition_point(|owed| *owed <= position);
        let mut has = std::mem::take(&mut self.owed);
        self.owed = has.split_off(later);
        has
    }

    fn has(&self, position: u64) -> bool {
        self.acknowledged >= position || (self.dirty.is_empty() && self.in_flight.is_empty())
    }
}
