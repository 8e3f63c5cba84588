//! Registration: which workload serves what, for as long as its lease is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use outrigger_api::resource::{Protocol, Resource, ServiceSpec};
use outrigger_api::v1;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::{ServiceName, check_label};

use crate::error::RequestError;
use crate::hub::Hub;
use crate::join::{ATTEMPTS, granted};
use crate::model::{
    self, PortRow, PortsRow, ServedRow, WorkloadRow, ports_key, service_key, workload_key, workloads_of,
};
use crate::store::{Entry, LeaseId, Op, Store, StoreError, Txn};

const MAX_PORTS: usize = 256;
const MAX_ID: usize = 253;
const MAX_ZONE: usize = 63;
const MAX_WEIGHT: u16 = 1000;
/// Longest wait of a deregistration, whatever its caller asks for.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Registers workloads.
pub struct Registrar {
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    ttl: Duration,
}

impl Registrar {
    /// Leases last `ttl`.
    pub fn new(store: Arc<dyn Store>, hub: Arc<Hub>, ttl: Duration) -> Self {
        Self { store, hub, ttl }
    }

    /// Registers or replaces a workload for its caller.
    ///
    /// # Errors
    /// What makes no sense, what the caller was not granted, a workload of another identity, ports
    /// that contradict the service; the store.
    pub async fn register(
        &self,
        caller: &SpiffeId,
        request: &v1::RegisterRequest,
    ) -> Result<v1::RegisterResponse, RequestError> {
        let (row, wanted) = checked(caller, request)?;
        let (namespace, account) = workload_of(caller)?;
        self.check_grant(caller, (namespace, account), &wanted).await?;
        let lease = self.store.grant(self.ttl).await?;
        let committed = self.write(&workload_key(namespace, &row.id), &row, &wanted, lease).await;
        if committed.is_err() {
            let _unused = self.store.revoke(lease).await;
        }
        committed?;
        tracing::info!(workload = row.id, identity = row.identity, address = %row.address, "workload registered");
        let ttl_ms = millis(self.ttl);
        Ok(v1::RegisterResponse { lease: format!("{}/{lease}", row.id), ttl_ms })
    }

    async fn check_grant(
        &self,
        caller: &SpiffeId,
        (namespace, account): (&str, &str),
        wanted: &Wanted,
    ) -> Result<(), RequestError> {
        let services = granted(&*self.store, caller).await?;
        for name in wanted.keys() {
            if name.namespace() != namespace || !services.contains(name.name()) {
                return Err(RequestError::Denied(format!(
                    "{caller} was not granted {name}; join with a token that names it: `outrigger token --namespace {} --account {account} --service {}`",
                    name.namespace(),
                    name.name(),
                )));
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        key: &str,
        row: &WorkloadRow,
        wanted: &Wanted,
        lease: LeaseId,
    ) -> Result<(), RequestError> {
        for _ in 0..ATTEMPTS {
            let txn = self.transaction(key, row, wanted, lease).await?;
            match self.store.commit(txn).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { key: key.to_owned() }.into())
    }

    /// Every row the decision rests on is a condition, so registrations that contradict one another
    /// cannot both go through.
    async fn transaction(
        &self,
        key: &str,
        row: &WorkloadRow,
        wanted: &Wanted,
        lease: LeaseId,
    ) -> Result<Txn, RequestError> {
        let mut txn = Txn::default();
        let entry = self.store.entry(key).await?;
        txn.expect(key, entry.as_ref());
        if let Some(entry) = &entry {
            let old: WorkloadRow = model::decode(entry)?;
            if old.identity != row.identity {
                return Err(RequestError::Denied(format!(
                    "workload {} belongs to {}; give this one another id",
                    row.id, old.identity
                )));
            }
            if (old.address, old.mesh_port) != (row.address, row.mesh_port) {
                tracing::warn!(workload = row.id, old = %old.address, new = %row.address, "workload moved, or two use one id");
            }
        }
        for (name, ports) in wanted {
            let (applied_key, ports_key) = (service_key(name), ports_key(name));
            let applied = self.store.entry(&applied_key).await?;
            txn.expect(&applied_key, applied.as_ref());
            if let Some(spec) = applied.as_ref().and_then(spec) {
                allowed_by(&spec, name, ports)?;
                continue;
            }
            let registered = self.store.entry(&ports_key).await?;
            txn.expect(&ports_key, registered.as_ref());
            let old: PortsRow = registered.as_ref().map(model::decode).transpose()?.unwrap_or_default();
            let new = self.merged(&row.id, name, &old, ports).await?;
            if registered.is_none() || new != old {
                txn.put(ports_key, model::encode(&new));
            }
        }
        txn.ops.push(Op::Put { key: key.to_owned(), value: model::encode(row), lease: Some(lease) });
        Ok(txn)
    }

    /// The union of known and wanted ports. A port that contradicts a known one is refused while
    /// another workload serves that; otherwise it replaces it.
    async fn merged(
        &self,
        id: &str,
        name: &ServiceName,
        old: &PortsRow,
        wanted: &[PortRow],
    ) -> Result<PortsRow, RequestError> {
        let mut ports: BTreeMap<u16, PortRow> =
            old.ports.iter().map(|port| (port.number, port.clone())).collect();
        for port in wanted {
            match ports.get_mut(&port.number) {
                Some(known) if known.protocol == port.protocol => keep_name(known, port),
                Some(known) => match self.other_server(id, name, port.number).await? {
                    Some(other) if contradict(known.protocol, port.protocol) => {
                        return Err(RequestError::Contradiction(format!(
                            "port {} of {name} is {} to workload {other}, but {} here; use one protocol for both, or apply a Service that says which",
                            port.number,
                            known.protocol.as_str(),
                            port.protocol.as_str(),
                        )));
                    }
                    Some(_) => {
                        keep_name(known, port);
                        if known.protocol == Protocol::Auto {
                            known.protocol = port.protocol;
                        }
                    }
                    None => known.clone_from(port),
                },
                None => _ = ports.insert(port.number, port.clone()),
            }
        }
        let named = ports.values().filter(|port| !port.name.is_empty());
        let names: BTreeSet<&str> = named.clone().map(|port| port.name.as_str()).collect();
        if names.len() != named.count() {
            return Err(RequestError::Contradiction(format!("two ports of {name} would have one name")));
        }
        Ok(PortsRow { ports: ports.into_values().collect() })
    }

    async fn other_server(
        &self,
        id: &str,
        name: &ServiceName,
        port: u16,
    ) -> Result<Option<String>, RequestError> {
        for entry in self.store.range(&workloads_of(name.namespace()), None).await?.entries {
            let row: WorkloadRow = model::decode(&entry)?;
            let serves = |served: &ServedRow| served.service == name.as_str() && served.port.number == port;
            if row.id != id && row.ports.iter().any(serves) {
                return Ok(Some(row.id));
            }
        }
        Ok(None)
    }

    /// Keeps a lease and takes note of health.
    ///
    /// # Errors
    /// A lease that is gone or another's; a count of ports other than registered; the store.
    pub async fn renew(
        &self,
        caller: &SpiffeId,
        request: &v1::RenewRequest,
    ) -> Result<v1::RenewResponse, RequestError> {
        for _ in 0..ATTEMPTS {
            let (lease, entry, mut row) = self.owned(caller, &request.lease).await?;
            if request.healthy.len() != row.ports.len() {
                return Err(RequestError::Invalid(format!(
                    "{} healths for {} ports: report each port registered, in order",
                    request.healthy.len(),
                    row.ports.len()
                )));
            }
            let ttl = self.store.keep_alive(lease).await?;
            let changed =
                row.ports.iter().zip(&request.healthy).any(|(port, healthy)| port.healthy != *healthy);
            let answer = Ok(v1::RenewResponse { ttl_ms: millis(ttl) });
            if !changed {
                return answer;
            }
            for (port, healthy) in row.ports.iter_mut().zip(&request.healthy) {
                port.healthy = *healthy;
            }
            let key = entry.key.to_string();
            let mut txn = Txn::default();
            txn.expect(&key, Some(&entry));
            txn.ops.push(Op::Put { key, value: model::encode(&row), lease: Some(lease) });
            match self.store.commit(txn).await {
                Ok(_) => return answer,
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { key: request.lease.clone() }.into())
    }

    /// Removes a workload, and waits until every subscriber knows.
    ///
    /// # Errors
    /// A lease that is gone or another's; the store.
    pub async fn deregister(
        &self,
        caller: &SpiffeId,
        request: &v1::DeregisterRequest,
    ) -> Result<v1::DeregisterResponse, RequestError> {
        let (lease, _, row) = self.owned(caller, &request.lease).await?;
        let revision = self.store.revoke(lease).await?;
        let services: BTreeSet<_> =
            row.ports.iter().filter_map(|served| ServiceName::parse(&served.service).ok()).collect();
        let services: Vec<_> = services.into_iter().collect();
        let limit = Duration::from_millis(request.wait_ms).min(MAX_WAIT);
        let reach = self.hub.reached(revision, &services, limit).await;
        tracing::info!(
            workload = row.id,
            subscribers = reach.subscribers,
            acknowledged = reach.acknowledged,
            "workload deregistered"
        );
        Ok(v1::DeregisterResponse { subscribers: reach.subscribers, acknowledged: reach.acknowledged })
    }

    /// The workload a lease belongs to, if it is the caller's.
    async fn owned(
        &self,
        caller: &SpiffeId,
        lease: &str,
    ) -> Result<(LeaseId, Entry, WorkloadRow), RequestError> {
        let gone = || RequestError::NotFound("the lease is gone; register again".to_owned());
        let (id, lease) = lease.rsplit_once('/').ok_or_else(gone)?;
        let lease = LeaseId::parse(lease).ok_or_else(gone)?;
        let (namespace, _) = workload_of(caller)?;
        let entry = self.store.entry(&workload_key(namespace, id)).await?.ok_or_else(gone)?;
        let row: WorkloadRow = model::decode(&entry)?;
        if row.identity != caller.to_string() {
            return Err(RequestError::Denied(format!(
                "workload {id} belongs to another identity than {caller}"
            )));
        }
        if entry.lease != Some(lease) {
            return Err(gone());
        }
        Ok((lease, entry, row))
    }
}

/// Namespace and account of a caller that is a workload.
fn workload_of(caller: &SpiffeId) -> Result<(&str, &str), RequestError> {
    caller
        .namespace()
        .zip(caller.account())
        .ok_or_else(|| RequestError::Denied(format!("{caller} is not a workload and cannot register")))
}

type Wanted = BTreeMap<ServiceName, Vec<PortRow>>;

/// The row of a registration that makes sense.
fn checked(caller: &SpiffeId, request: &v1::RegisterRequest) -> Result<(WorkloadRow, Wanted), RequestError> {
    let invalid = |why: String| RequestError::Invalid(why);
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    let id = &request.workload;
    if id.is_empty() || id.len() > MAX_ID || !plain(id) {
        return Err(invalid(format!("workload: use 1 to {MAX_ID} letters, digits, '-', '.' and '_'")));
    }
    if request.zone.len() > MAX_ZONE || !plain(&request.zone) {
        return Err(invalid(format!("zone: use up to {MAX_ZONE} letters, digits, '-', '.' and '_'")));
    }
    let address: IpAddr = request
        .address
        .parse()
        .map_err(|_| invalid("address: an IP address at which peers reach the sidecar".to_owned()))?;
    let address = address.to_canonical();
    let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || broadcast {
        return Err(invalid(format!("address: {address} is not an address peers can connect to")));
    }
    let mesh_port = port_number(request.mesh_port, "mesh_port")?;
    let weight = u16::try_from(request.weight).ok().filter(|weight| *weight <= MAX_WEIGHT);
    let weight = weight.ok_or_else(|| {
        invalid(format!("weight: {} is out of range; use 0 to {MAX_WEIGHT}", request.weight))
    })?;
    if request.ports.len() > MAX_PORTS {
        return Err(invalid(format!("ports: a workload serves at most {MAX_PORTS}")));
    }
    let mut wanted = Wanted::new();
    let mut rows = Vec::with_capacity(request.ports.len());
    for served in &request.ports {
        let name =
            ServiceName::parse(&served.service).map_err(|error| invalid(format!("service: {error}")))?;
        let row = served_row(&name, served)?;
        let ports = wanted.entry(name).or_default();
        if ports.iter().any(|port| port.number == row.port.number) {
            return Err(invalid(format!("ports: {} of {} appears twice", row.port.number, row.service)));
        }
        ports.push(row.port.clone());
        rows.push(row);
    }
    let row = WorkloadRow {
        id: id.clone(),
        identity: caller.to_string(),
        zone: request.zone.clone(),
        address,
        mesh_port,
        weight,
        ports: rows,
    };
    Ok((row, wanted))
}

fn served_row(name: &ServiceName, served: &v1::ServedPort) -> Result<ServedRow, RequestError> {
    let port =
        served.port.as_ref().ok_or_else(|| RequestError::Invalid("ports: a port is missing".to_owned()))?;
    if !port.name.is_empty() {
        check_label(&port.name).map_err(|error| RequestError::Invalid(format!("port name: {error}")))?;
    }
    let protocol = v1::Protocol::try_from(port.protocol).map_err(|_| {
        RequestError::Invalid(format!("protocol {} is not one this registry knows", port.protocol))
    })?;
    Ok(ServedRow {
        service: name.to_string(),
        port: PortRow {
            number: port_number(port.number, "port")?,
            name: port.name.clone(),
            protocol: protocol.into(),
        },
        target_port: port_number(served.target_port, "target_port")?,
        healthy: served.healthy,
    })
}

fn port_number(number: u32, key: &str) -> Result<u16, RequestError> {
    match u16::try_from(number) {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => {
            Err(RequestError::Invalid(format!("{key}: {number} is not a port; use 1 to 65535")))
        }
    }
}

/// Whether an applied Service has these ports.
fn allowed_by(spec: &ServiceSpec, name: &ServiceName, ports: &[PortRow]) -> Result<(), RequestError> {
    for port in ports {
        match spec.ports.iter().find(|declared| declared.port == port.number) {
            None => {
                let known: Vec<_> = spec.ports.iter().map(|declared| declared.port.to_string()).collect();
                return Err(RequestError::Contradiction(format!(
                    "the applied Service {name} has no port {}, only {}; serve one of those or apply the Service with this port",
                    port.number,
                    known.join(", ")
                )));
            }
            Some(declared) if contradict(declared.protocol, port.protocol) => {
                return Err(RequestError::Contradiction(format!(
                    "the applied Service {name} declares port {} as {}, but this workload as {}; make them agree",
                    port.number,
                    declared.protocol.as_str(),
                    port.protocol.as_str()
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// The first name of a port stays.
fn keep_name(known: &mut PortRow, port: &PortRow) {
    if known.name.is_empty() {
        known.name.clone_from(&port.name);
    }
}

/// Whether two declarations cannot both hold. Who declares nothing agrees with everybody: each sidecar
/// looks at what is spoken, or does not, by what it was told itself.
fn contradict(service: Protocol, workload: Protocol) -> bool {
    service != workload && service != Protocol::Auto && workload != Protocol::Auto
}

fn spec(entry: &Entry) -> Option<ServiceSpec> {
    match Resource::from_json(std::str::from_utf8(&entry.value).ok()?).ok()? {
        Resource::Service { spec, .. } => Some(spec),
        _ => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
