//! Resources as the administrator writes and reads them.

mod warnings;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_api::resource::{MESH_CONFIG_NAME, Resource, ServicePort, ServiceSpec};
use outrigger_api::v1;
use outrigger_api::v1::applied::Outcome;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::{ServiceName, check_label};
use serde_json::json;

use self::warnings::World;
use crate::error::RequestError;
use crate::join::ATTEMPTS;
use crate::model::{
    self, GOVERNING, MESH_CONFIG_KEY, PORTS, PortsRow, RESOURCES, SERVICES, TOKENS, TokenRow, WORKLOADS,
    WorkloadRow, governing_key, ports_key, service_key, service_of,
};
use crate::store::{Entry, Op, Store, StoreError, Txn};

const MAX_RESOURCES: usize = 10_000;
/// Longest name of a route or policy (RFC 1123 subdomain, as Kubernetes has it).
const MAX_NAME: usize = 253;

/// Writes and reads resources.
pub struct Resources {
    store: Arc<dyn Store>,
    /// One apply at a time: what it found of services it does not write must hold until it is written.
    turn: tokio::sync::Mutex<()>,
}

/// What one resource of a request stands for.
enum Target {
    Service(ServiceName),
    MeshConfig,
    /// A route or policy, by its key.
    Governing(String),
}

impl Resources {
    /// On a store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, turn: tokio::sync::Mutex::default() }
    }

    /// Creates, replaces or deletes resources: all of them, or none.
    ///
    /// # Errors
    /// The first resource that is not valid, by name; a Service with an address of another; the store.
    pub async fn apply(&self, request: &v1::ApplyRequest) -> Result<v1::ApplyResponse, RequestError> {
        if request.resources.len() > MAX_RESOURCES {
            return Err(RequestError::Invalid(format!("apply at most {MAX_RESOURCES} resources at once")));
        }
        let mut seen = BTreeSet::new();
        let mut targets = Vec::with_capacity(request.resources.len());
        for resource in &request.resources {
            if !seen.insert((&resource.kind, &resource.namespace, &resource.name)) {
                return Err(invalid(resource, "it appears twice"));
            }
            let target = target(resource)?;
            let written = if request.delete { None } else { Some(parse(resource)?) };
            targets.push((target, written));
        }
        let _turn = self.turn.lock().await;
        self.check_addresses(&targets).await?;
        for _ in 0..ATTEMPTS {
            let (txn, outcomes) = self.transaction(&targets).await?;
            let warnings = self.warnings(&targets, &outcomes).await?;
            let committed = match request.dry_run || txn.ops.is_empty() {
                true => Ok(0),
                false => self.store.commit(txn).await,
            };
            match committed {
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(respond(request, &outcomes, warnings)),
            }
        }
        Err(StoreError::Conflict { key: RESOURCES.to_owned() }.into())
    }

    /// An address with a port is one service's: of two, callers would reach either.
    async fn check_addresses(&self, targets: &[(Target, Option<Resource>)]) -> Result<(), RequestError> {
        let written = || {
            targets.iter().filter_map(|(_, written)| match written {
                Some(Resource::Service { name, spec }) => Some((name, spec)),
                _ => None,
            })
        };
        if written().all(|(_, spec)| spec.addresses.is_empty()) {
            return Ok(());
        }
        let mut taken: HashMap<(IpAddr, u16), ServiceName> = HashMap::new();
        for entry in self.store.range(SERVICES, None).await?.entries {
            if let Ok(Resource::Service { name, spec }) = Resource::from_json(&text(&entry))
                && written().all(|(other, _)| *other != name)
            {
                taken.extend(claims(&spec).map(|claim| (claim, name.clone())));
            }
        }
        for (name, spec) in written() {
            for (address, port) in claims(spec) {
                if let Some(other) = taken.insert((address, port), name.clone()) {
                    return Err(RequestError::Contradiction(format!(
                        "Service {name}: {address} with port {port} is the address of Service {other} already; give one of them another address or port"
                    )));
                }
            }
        }
        Ok(())
    }

    async fn transaction(
        &self,
        targets: &[(Target, Option<Resource>)],
    ) -> Result<(Txn, Vec<Outcome>), RequestError> {
        let mut txn = Txn::default();
        let mut outcomes = Vec::with_capacity(targets.len());
        let deletes = targets.iter().any(|(_, written)| written.is_none());
        let workloads = if deletes { self.store.range(WORKLOADS, None).await?.entries } else { Vec::new() };
        let workloads = workloads.iter().map(model::decode).collect::<Result<Vec<WorkloadRow>, _>>()?;
        for (target, written) in targets {
            let key = target.key();
            let entry = self.store.entry(&key).await?;
            let registered = match target {
                Target::Service(name) => self.store.entry(&ports_key(name)).await?,
                Target::MeshConfig | Target::Governing(_) => None,
            };
            let left = target.left(&workloads);
            let same = registered.as_ref().is_none_or(|entry| Some(&entry.value) == left.as_ref());
            let outcome = match (written, &entry) {
                (None, None) if same => Outcome::Unchanged,
                (None, _) => Outcome::Deleted,
                (Some(_), None) => Outcome::Created,
                (Some(new), Some(old)) if old.value == new.to_json().as_bytes() => Outcome::Unchanged,
                (Some(_), Some(_)) => Outcome::Configured,
            };
            match (outcome, written) {
                (Outcome::Unchanged, _) => {}
                (_, Some(resource)) => {
                    txn.expect(&key, entry.as_ref());
                    txn.put(key, resource.to_json());
                }
                (_, None) => {
                    txn.expect(&key, entry.as_ref());
                    txn.ops.push(Op::Delete(key));
                    if let Target::Service(name) = target {
                        txn.expect(&ports_key(name), registered.as_ref());
                        match left {
                            Some(ports) => txn.put(ports_key(name), ports),
                            None => txn.ops.push(Op::Delete(ports_key(name))),
                        }
                    }
                }
            }
            outcomes.push(outcome);
        }
        Ok((txn, outcomes))
    }

    /// Reads resources and live state.
    ///
    /// # Errors
    /// An unknown kind; a name that does not exist; the store.
    pub async fn get(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, RequestError> {
        let all = match request.kind.as_str() {
            "Service" => self.services().await?,
            "MeshConfig" => self.mesh_config().await?,
            kind if GOVERNING.contains(&kind) => self.governing(kind).await?,
            "Workload" => self.workloads().await?,
            "Token" => self.tokens().await?,
            other => {
                return Err(RequestError::Invalid(format!(
                    "{other:?} is not a kind; there are Service, MeshConfig, {}, Workload and Token",
                    GOVERNING.join(", ")
                )));
            }
        };
        let wanted = |asked: &str, has: &str| asked.is_empty() || asked == has;
        let resources: Vec<_> = all
            .into_iter()
            .filter(|r| wanted(&request.namespace, &r.namespace) && wanted(&request.name, &r.name))
            .collect();
        if resources.is_empty() && !request.name.is_empty() {
            let place = if request.namespace.is_empty() {
                String::new()
            } else {
                format!(" in {}", request.namespace)
            };
            return Err(RequestError::NotFound(format!(
                "there is no {} {}{place}",
                request.kind, request.name
            )));
        }
        Ok(v1::GetResponse { resources })
    }

    /// Applied services, and those known from registrations alone.
    async fn services(&self) -> Result<Vec<v1::Resource>, RequestError> {
        let mut found = Vec::new();
        let mut applied = BTreeSet::new();
        for entry in self.store.range(SERVICES, None).await?.entries {
            let Some(name) = service_of(&entry.key[SERVICES.len()..]) else { continue };
            found.push(resource("Service", name.namespace(), name.name(), text(&entry), &entry));
            applied.insert(name);
        }
        for entry in self.store.range(PORTS, None).await?.entries {
            let Some(name) = service_of(&entry.key[PORTS.len()..]).filter(|name| !applied.contains(name))
            else {
                continue;
            };
            let row: PortsRow = model::decode(&entry)?;
            let ports = row.ports.into_iter().map(|port| ServicePort {
                name: Some(port.name).filter(|name| !name.is_empty()),
                port: port.number,
                protocol: port.protocol,
            });
            let spec = ServiceSpec { ports: ports.collect(), addresses: Vec::new() };
            let service = Resource::Service { name: name.clone(), spec };
            found.push(resource("Service", name.namespace(), name.name(), service.to_json(), &entry));
        }
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(found)
    }

    async fn mesh_config(&self) -> Result<Vec<v1::Resource>, RequestError> {
        let entry = self.store.entry(MESH_CONFIG_KEY).await?;
        Ok(entry
            .iter()
            .map(|entry| resource("MeshConfig", "", MESH_CONFIG_NAME, text(entry), entry))
            .collect())
    }

    /// Routes or policies of one kind, by namespace and name.
    async fn governing(&self, kind: &str) -> Result<Vec<v1::Resource>, RequestError> {
        let prefix = format!("{RESOURCES}{kind}/");
        let mut found = Vec::new();
        for entry in self.store.range(&prefix, None).await?.entries {
            if let Some((namespace, name)) = entry.key[prefix.len()..].split_once('/') {
                found.push(resource(kind, namespace, name, text(&entry), &entry));
            }
        }
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        Ok(found)
    }

    /// What to tell about each resource written: empty where there is nothing to tell.
    async fn warnings(
        &self,
        targets: &[(Target, Option<Resource>)],
        outcomes: &[Outcome],
    ) -> Result<Vec<String>, RequestError> {
        let governs = |target: &Target| matches!(target, Target::Governing(_));
        if !targets.iter().any(|(target, written)| governs(target) && written.is_some()) {
            return Ok(vec![String::new(); outcomes.len()]);
        }
        let mut world = World::default();
        let written: BTreeSet<String> = targets.iter().map(|(target, _)| target.key()).collect();
        for entry in self.store.range(RESOURCES, None).await?.entries {
            if !written.contains(&*entry.key)
                && let Ok(resource) = Resource::from_json(&text(&entry))
            {
                world.add(resource);
            }
        }
        for entry in self.store.range(PORTS, None).await?.entries {
            if let Some(name) = service_of(&entry.key[PORTS.len()..]) {
                world.register(name, &model::decode::<PortsRow>(&entry)?);
            }
        }
        for (_, written) in targets {
            written.iter().cloned().for_each(|resource| world.add(resource));
        }
        let warn = |(_, written): &(Target, Option<Resource>)| {
            written.as_ref().map(|resource| world.warnings(resource).join("; ")).unwrap_or_default()
        };
        Ok(targets.iter().map(warn).collect())
    }

    async fn workloads(&self) -> Result<Vec<v1::Resource>, RequestError> {
        let mut found = Vec::new();
        for entry in self.store.range(WORKLOADS, None).await?.entries {
            let row: WorkloadRow = model::decode(&entry)?;
            let namespace = SpiffeId::parse(&row.identity)
                .ok()
                .and_then(|id| id.namespace().map(ToOwned::to_owned))
                .unwrap_or_default();
            let lease = match entry.lease {
                Some(lease) => self.store.lease(lease).await?,
                None => None,
            };
            let ports = row.ports.iter().map(|served| {
                json!({
                    "service": served.service, "port": served.port.number, "name": served.port.name,
                    "protocol": served.port.protocol.as_str(), "target_port": served.target_port,
                    "healthy": served.healthy,
                })
            });
            let json = json!({
                "id": row.id, "identity": row.identity, "zone": row.zone, "address": row.address,
                "mesh_port": row.mesh_port, "weight": row.weight, "ports": ports.collect::<Vec<_>>(),
                "lease_age_ms": lease.map(|lease| (lease.ttl - lease.remaining).as_millis() as u64),
            });
            found.push(resource("Workload", &namespace, &row.id, json.to_string(), &entry));
        }
        Ok(found)
    }

    async fn tokens(&self) -> Result<Vec<v1::Resource>, RequestError> {
        let mut found = Vec::new();
        for entry in self.store.range(TOKENS, None).await?.entries {
            let row: TokenRow = model::decode(&entry)?;
            let json = json!({
                "id": &entry.key[TOKENS.len()..], "namespace": row.namespace, "account": row.account,
                "services": row.services, "expires": row.expires, "single_use": row.single_use,
                "used": row.used.as_ref().map(|used| used.at),
            });
            found.push(resource(
                "Token",
                &row.namespace,
                &entry.key[TOKENS.len()..],
                json.to_string(),
                &entry,
            ));
        }
        Ok(found)
    }
}

impl Target {
    fn key(&self) -> String {
        match self {
            Self::Service(name) => service_key(name),
            Self::MeshConfig => MESH_CONFIG_KEY.to_owned(),
            Self::Governing(key) => key.clone(),
        }
    }

    /// The row of registered ports after a deletion: what workloads serve stays in the mesh.
    fn left(&self, workloads: &[WorkloadRow]) -> Option<Bytes> {
        let Self::Service(name) = self else { return None };
        let mut row = PortsRow::default();
        for served in workloads.iter().flat_map(|workload| workload.served(name)) {
            row.add(&served.port);
        }
        (!row.ports.is_empty()).then(|| model::encode(&row))
    }
}

/// What a service's virtual addresses claim.
fn claims(spec: &ServiceSpec) -> impl Iterator<Item = (IpAddr, u16)> {
    spec.addresses.iter().flat_map(|address| spec.ports.iter().map(|port| (*address, port.port)))
}

fn invalid(resource: &v1::Resource, why: impl std::fmt::Display) -> RequestError {
    let place =
        if resource.namespace.is_empty() { String::new() } else { format!(".{}", resource.namespace) };
    RequestError::Invalid(format!("{} {}{place}: {why}", resource.kind, resource.name))
}

/// Which row a resource of a request is.
fn target(resource: &v1::Resource) -> Result<Target, RequestError> {
    match resource.kind.as_str() {
        "Service" => ServiceName::new(&resource.namespace, &resource.name)
            .map(Target::Service)
            .map_err(|error| invalid(resource, error)),
        "MeshConfig" if resource.name == MESH_CONFIG_NAME && resource.namespace.is_empty() => {
            Ok(Target::MeshConfig)
        }
        "MeshConfig" => {
            Err(invalid(resource, "a mesh has one MeshConfig, named default, without a namespace"))
        }
        kind if GOVERNING.contains(&kind) => {
            check_label(&resource.namespace).map_err(|error| invalid(resource, error))?;
            let name = &resource.name;
            if name.len() > MAX_NAME || name.split('.').any(|label| check_label(label).is_err()) {
                return Err(invalid(
                    resource,
                    format!("its name is not labels joined by dots, of at most {MAX_NAME} characters"),
                ));
            }
            Ok(Target::Governing(governing_key(kind, &resource.namespace, name)))
        }
        _ => Err(invalid(
            resource,
            format!(
                "not a kind this version can apply; it has Service, MeshConfig, {}",
                GOVERNING.join(", ")
            ),
        )),
    }
}

/// The resource as it is written, checked again here: a client is not believed.
fn parse(resource: &v1::Resource) -> Result<Resource, RequestError> {
    let parsed = Resource::from_json(&resource.json).map_err(|error| invalid(resource, error.message))?;
    let same = parsed.kind() == resource.kind
        && parsed.namespace() == resource.namespace
        && parsed.name() == resource.name;
    if same { Ok(parsed) } else { Err(invalid(resource, "its document names another resource")) }
}

fn respond(request: &v1::ApplyRequest, outcomes: &[Outcome], warnings: Vec<String>) -> v1::ApplyResponse {
    let told = outcomes.iter().zip(warnings);
    let results = request.resources.iter().zip(told).map(|(resource, (outcome, warning))| v1::Applied {
        kind: resource.kind.clone(),
        namespace: resource.namespace.clone(),
        name: resource.name.clone(),
        outcome: (*outcome).into(),
        warning,
    });
    v1::ApplyResponse { results: results.collect() }
}

fn text(entry: &Entry) -> String {
    String::from_utf8_lossy(&entry.value).into_owned()
}

fn resource(kind: &str, namespace: &str, name: &str, json: String, entry: &Entry) -> v1::Resource {
    v1::Resource {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        json,
        revision: entry.revision,
    }
}
