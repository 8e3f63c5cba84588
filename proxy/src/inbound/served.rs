//! What this sidecar serves: the ports it registers, found by SNI. Nothing else is reachable
//! through it.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use outrigger_api::resource::Protocol;
use outrigger_common::name::{InvalidName, ServiceName};
use outrigger_common::tasks::Tasks;

use crate::config::Config;
use crate::control::snapshot::server_name;
use crate::pool::app::{self, AppLimits, AppPool};
use crate::route::DEFAULT_ROUTE;
use crate::telemetry::metrics::{Direction, Edge, Metrics};

/// All served ports, by the server name that names them.
#[derive(Debug)]
pub struct ServedPorts(HashMap<String, Arc<ServedPort>>);

/// One served port.
#[derive(Debug)]
pub struct ServedPort {
    /// The service.
    pub service: ServiceName,
    /// How the application is spoken to.
    pub protocol: Protocol,
    /// Connections to the application.
    pub app: Arc<AppPool>,
    metrics: Arc<Metrics>,
    /// Edges by caller, so that a request does not look them up by label.
    edges: RwLock<HashMap<Box<str>, Arc<Edge>>>,
}

impl ServedPorts {
    /// The ports of the configuration, in the namespace of the certificate.
    ///
    /// # Errors
    /// A name that cannot be one, which the configuration's check excludes.
    pub fn new(
        config: &Config,
        namespace: &str,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, InvalidName> {
        let limits = AppLimits {
            connect: config.timeouts.connect,
            idle: config.pool.app_idle_timeout,
            header_bytes: config.limits.header_bytes,
            max_age: config.pool.max_age,
        };
        let mut ports = HashMap::new();
        for served in &config.services {
            let service = ServiceName::new(namespace, &served.name)?;
            let port = ServedPort {
                protocol: served.protocol,
                app: app::swept(served.target, limits, tasks),
                metrics: metrics.clone(),
                edges: RwLock::default(),
                service: service.clone(),
            };
            ports.insert(server_name(&service, served.port), Arc::new(port));
        }
        Ok(Self(ports))
    }

    /// The port an SNI names, if it is served.
    pub fn find(&self, server_name: &str) -> Option<Arc<ServedPort>> {
        self.0.get(server_name).cloned()
    }

    /// Every port, for people.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ServedPort)> {
        self.0.iter().map(|(name, port)| (name.as_str(), port.as_ref()))
    }
}

impl ServedPort {
    /// The edge from `source`.
    pub fn edge(&self, source: &str) -> Arc<Edge> {
        if let Some(edge) = self.edges.read().expect("no holder of this lock panics").get(source) {
            return edge.clone();
        }
        let edge = self.metrics.edge(Direction::Inbound, source, self.service.as_str(), DEFAULT_ROUTE);
        self.edges.write().expect("no holder of this lock panics").insert(source.into(), edge.clone());
        edge
    }
}
