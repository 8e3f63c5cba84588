//! Whose an address is, as the registry told: the answers held, and the questions under way.
//!
//! A connection that was captured says where it goes by address alone. The first one to an address
//! asks; whoever comes meanwhile waits for the same answer. From then on the registry tells when the
//! owner is another. There is room for [`CAPACITY`] addresses: those asked for longest ago make room.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use outrigger_api::v1;
use outrigger_common::name::ServiceName;
use tokio::sync::{Notify, watch};

use crate::shared::OwnAddresses;
use crate::telemetry::metrics::Metrics;

/// Addresses whose owner is known or asked for. The registry allows a stream twice as many.
pub const CAPACITY: usize = 4096;
/// How many make room at once, so that the search for the oldest is paid once for many.
const BATCH: usize = CAPACITY / 16;

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A service's: its virtual address, with the number of one of its ports.
    Service {
        /// `name.namespace`.
        name: ServiceName,
        /// The service port.
        port: u16,
    },
    /// One endpoint's: the workload's own address, with the port of its application.
    Endpoint {
        /// `name.namespace`.
        name: ServiceName,
        /// The service port.
        port: u16,
        /// The workload's id.
        workload: Box<str>,
    },
    /// Nobody's in the mesh, or not known in time.
    Outside,
}

/// How the answer was had; values of the label `result` of `mesh_address_lookups_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It was there.
    Known,
    /// The registry told it.
    Asked,
    /// It did not within the limit, or its stream ended meanwhile.
    Unanswered,
    /// It could not be asked.
    Away,
    /// Not a question for the registry: the sidecar's own, or no address of a host.
    Unasked,
}

impl Lookup {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Asked => "asked",
            Self::Unanswered => "unanswered",
            Self::Away => "away",
            Self::Unasked => "unasked",
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Owners {
    own: OwnAddresses,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
    /// There is something to tell the registry.
    news: Notify,
}

impl Owners {
    /// Knows nothing, except which addresses are the sidecar's `own`.
    pub fn new(own: OwnAddresses, metrics: Arc<Metrics>) -> Self {
        Self { own, metrics, table: Mutex::default(), news: Notify::new() }
    }

    /// Whose the address is; asks the registry for at most `limit`.
    ///
    /// Cancel safety: safe; the question stays.
    pub async fn owner(&self, address: SocketAddr, limit: Duration) -> Owner {
        let address = canonical(address);
        let (owner, lookup) = match self.own.is(address) || !is_host(address) {
            true => (Owner::Outside, Lookup::Unasked),
            false => self.find(address, limit).await,
        };
        self.metrics.address_lookup(lookup);
        owner
    }

    async fn find(&self, address: SocketAddr, limit: Duration) -> (Owner, Lookup) {
        let answer = self.table().ask(address);
        let mut told = match answer {
            Answer::Known(owner) => return (owner, Lookup::Known),
            Answer::Away => return (Owner::Outside, Lookup::Away),
            Answer::Wait(told) => told,
        };
        self.news.notify_one();
        // Nothing is ever sent: that the sender is gone says that the question is over.
        let over = async { while told.changed().await.is_ok() {} };
        let _late = tokio::time::timeout(limit, over).await;
        match self.table().known(address) {
            Some(owner) => (owner, Lookup::Asked),
            None => (Owner::Outside, Lookup::Unanswered),
        }
    }

    /// Waits until there may be something to tell the registry.
    ///
    /// Cancel safety: safe.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What to ask the registry, and what no longer; nothing while it cannot be asked.
    pub fn questions(&self) -> Questions {
        self.table().questions()
    }

    /// The registry takes questions from now on.
    pub fn opened(&self) {
        self.table().line = Line::Open;
        self.news.notify_one();
    }

    /// It no longer does: who waits for an answer gets none. Returns addresses that made room for
    /// others, which the registry need not be told any more.
    pub fn closed(&self) -> Vec<SocketAddr> {
        self.table().close()
    }

    /// Takes answers over; those nobody asks for any more are passed over.
    pub fn told(&self, answers: impl IntoIterator<Item = (SocketAddr, Owner)>) {
        let mut table = self.table();
        for (address, owner) in answers {
            table.told(address, owner);
        }
    }

    /// Begins with the answers of an earlier process.
    pub fn restore(&self, answers: impl IntoIterator<Item = (SocketAddr, Owner)>) {
        let mut table = self.table();
        for (address, owner) in answers.into_iter().take(CAPACITY) {
            table.entries.insert(address, Entry { used: 0, state: Held::Told(owner) });
        }
    }

    /// Whether an answer about the address would be taken.
    pub fn wants(&self, address: SocketAddr) -> bool {
        self.table().entries.contains_key(&address)
    }

    /// How many answers are held.
    pub fn count(&self) -> usize {
        self.table().entries.values().filter(|entry| matches!(entry.state, Held::Told(_))).count()
    }

    /// Every answer held, in the order of addresses.
    pub fn held(&self) -> Vec<(SocketAddr, Owner)> {
        let table = self.table();
        let told = table.entries.iter().filter_map(|(address, entry)| match &entry.state {
            Held::Told(owner) => Some((*address, owner.clone())),
            Held::Asked(_) => None,
        });
        let mut held: Vec<_> = told.collect();
        drop(table);
        held.sort_by_key(|(address, _)| *address);
        held
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

/// IPv4 in IPv6 form is IPv4; zone and flow are this machine's affair.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether somebody could be there.
fn is_host(address: SocketAddr) -> bool {
    let ip = address.ip();
    let group = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    address.port() != 0 && !ip.is_unspecified() && !group
}

/// What the registry told of an address.
///
/// # Errors
/// When it makes no sense; for people.
pub fn facts(told: &v1::AddressOwner) -> Result<(SocketAddr, Owner), String> {
    let address = told.address.parse().map_err(|_| "it is not an IP address with a port".to_owned())?;
    if told.service.is_empty() {
        return Ok((canonical(address), Owner::Outside));
    }
    let name = ServiceName::parse(&told.service).map_err(|error| error.to_string())?;
    let port = u16::try_from(told.port).ok().filter(|port| *port != 0);
    let port = port.ok_or_else(|| format!("{} is not a port", told.port))?;
    let owner = match told.workload.as_str() {
        "" => Owner::Service { name, port },
        workload => Owner::Endpoint { name, port, workload: workload.into() },
    };
    Ok((canonical(address), owner))
}

/// The same, to be given back.
pub fn message(address: SocketAddr, owner: &Owner) -> v1::AddressOwner {
    let (service, port, workload) = match owner {
        Owner::Outside => return v1::AddressOwner { address: address.to_string(), ..Default::default() },
        Owner::Service { name, port } => (name, *port, String::new()),
        Owner::Endpoint { name, port, workload } => (name, *port, workload.to_string()),
    };
    let (address, service) = (address.to_string(), service.to_string());
    v1::AddressOwner { address, service, port: port.into(), workload }
}

/// What there is to tell the registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Questions {
    /// Whose are these?
    pub add: Vec<SocketAddr>,
    /// No longer of interest.
    pub remove: Vec<SocketAddr>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<SocketAddr, Entry>,
    /// Counts what was asked for.
    clock: u64,
    line: Line,
    /// Not told to the registry yet.
    add: HashSet<SocketAddr>,
    remove: HashSet<SocketAddr>,
}

#[derive(Debug)]
struct Entry {
    /// When it was asked for last, by the table's clock.
    used: u64,
    state: Held,
}

#[derive(Debug)]
enum Held {
    /// Dropped when the question is over.
    Asked(watch::Sender<()>),
    Told(Owner),
}

/// Whether the registry can be asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Not yet: the first stream of this process is being opened, so waiting is worth it.
    #[default]
    Opening,
    Open,
    Closed,
}

enum Answer {
    Known(Owner),
    Wait(watch::Receiver<()>),
    Away,
}

impl Table {
    fn ask(&mut self, address: SocketAddr) -> Answer {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.used = self.clock;
            return match &entry.state {
                Held::Told(owner) => Answer::Known(owner.clone()),
                Held::Asked(over) => Answer::Wait(over.subscribe()),
            };
        }
        if self.line == Line::Closed {
            return Answer::Away;
        }
        if self.entries.len() >= CAPACITY {
            self.make_room();
        }
        let (over, told) = watch::channel(());
        self.entries.insert(address, Entry { used: self.clock, state: Held::Asked(over) });
        self.add.insert(address);
        Answer::Wait(told)
    }

    fn known(&self, address: SocketAddr) -> Option<Owner> {
        match &self.entries.get(&address)?.state {
            Held::Told(owner) => Some(owner.clone()),
            Held::Asked(_) => None,
        }
    }

    fn make_room(&mut self) {
        let mut ages: Vec<_> = self.entries.iter().map(|(address, entry)| (entry.used, *address)).collect();
        let (oldest, _, _) = ages.select_nth_unstable(BATCH);
        for (_, address) in oldest {
            self.entries.remove(address);
            if !self.add.remove(address) {
                self.remove.insert(*address);
            }
        }
    }

    fn told(&mut self, address: SocketAddr, owner: Owner) {
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.state = Held::Told(owner);
        }
    }

    fn questions(&mut self) -> Questions {
        if self.line != Line::Open {
            return Questions::default();
        }
        Questions { add: self.add.drain().collect(), remove: self.remove.drain().collect() }
    }

    /// The next stream begins with the answers held.
    fn close(&mut self) -> Vec<SocketAddr> {
        self.line = Line::Closed;
        self.entries.retain(|_, entry| matches!(entry.state, Held::Told(_)));
        self.add.clear();
        self.remove.drain().collect()
    }
}

#[cfg(test)]
mod tests;
