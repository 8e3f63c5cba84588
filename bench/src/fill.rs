//! A mesh full of services: workloads that are nothing but entries in the registry.
//!
//! All of them lead to the one inbound sidecar, whose identity they share, so that calls of any endpoint of the
//! called service arrive.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use outrigger_api::v1;
use outrigger_api::v1::registration_client::RegistrationClient;
use outrigger_tests::mesh::{Mesh, NAMESPACE};
use tonic::transport::Channel;

use crate::certs::NAME;
use crate::outrigger::Scale;

/// Services one workload may serve, as one token may grant.
const GROUP: usize = 250;

/// What was registered; its leases run for ten minutes from the last [`Filling::renew`].
#[derive(Default)]
pub(crate) struct Filling {
    clients: Vec<RegistrationClient<Channel>>,
    leases: Vec<(usize, String, usize)>,
    services: usize,
    mesh_port: u16,
    turn: u32,
}

impl Filling {
    /// Registers what a mesh of that size has beside the one workload that is real.
    ///
    /// # Errors
    /// When the registry refuses.
    pub(crate) async fn register(mesh: &Mesh, mesh_port: u16, scale: Scale) -> Result<Self> {
        let services = scale.services.saturating_sub(1);
        let mut filling = Self { clients: Vec::new(), leases: Vec::new(), services, mesh_port, turn: 0 };
        // Beside the real endpoint of the called service.
        let replicas = scale.endpoints.saturating_sub(1);
        filling.join(mesh, "orders", &["orders"]).await;
        for replica in 0..replicas {
            filling.add(0, &format!("filler-{replica}"), &[NAME.to_owned()], 100).await?;
        }
        let names: Vec<_> = (0..services).map(service).collect();
        for (group, names) in names.chunks(GROUP).enumerate() {
            let grants: Vec<&str> = names.iter().map(String::as_str).collect();
            filling.join(mesh, &format!("group{group}"), &grants).await;
            let full: Vec<_> = names.iter().map(|name| format!("{name}.{NAMESPACE}")).collect();
            for replica in 0..scale.endpoints {
                filling.add(group + 1, &format!("group{group}-{replica}"), &full, 100).await?;
            }
        }
        Ok(filling)
    }

    /// Full names of the services nobody calls.
    pub(crate) fn services(&self) -> impl Iterator<Item = String> {
        (0..self.services).map(|number| format!("{}.{NAMESPACE}", service(number)))
    }

    /// Changes one endpoint of the called service: its weight.
    ///
    /// # Errors
    /// When the registry refuses.
    pub(crate) async fn change(&mut self) -> Result<()> {
        self.turn += 1;
        let weight = 100 + self.turn % 2;
        let lease = self.put(0, "filler-0", &[NAME.to_owned()], weight).await?;
        if let Some(first) = self.leases.first_mut() {
            first.1 = lease;
        }
        Ok(())
    }

    /// Keeps all leases.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) async fn renew(&mut self) -> Result<()> {
        for (client, lease, ports) in &self.leases {
            let request = v1::RenewRequest { lease: lease.clone(), healthy: vec![true; *ports] };
            self.clients[*client].renew(request).await.context("renew a lease")?;
        }
        Ok(())
    }

    async fn join(&mut self, mesh: &Mesh, account: &str, services: &[&str]) {
        let identity = mesh.identity(NAMESPACE, account, services).await;
        self.clients.push(RegistrationClient::new(mesh.channel(identity)));
    }

    async fn add(&mut self, client: usize, workload: &str, services: &[String], weight: u32) -> Result<()> {
        let lease = self.put(client, workload, services, weight).await?;
        self.leases.push((client, lease, services.len()));
        Ok(())
    }

    async fn put(
        &mut self,
        client: usize,
        workload: &str,
        services: &[String],
        weight: u32,
    ) -> Result<String> {
        let ports = services.iter().map(|service| v1::ServedPort {
            service: service.clone(),
            port: Some(v1::Port { number: 80, ..Default::default() }),
            target_port: 80,
            healthy: true,
        });
        let request = v1::RegisterRequest {
            workload: workload.to_owned(),
            address: Ipv4Addr::LOCALHOST.to_string(),
            mesh_port: self.mesh_port.into(),
            ports: ports.collect(),
            weight,
            ..Default::default()
        };
        let answer = self.clients[client].register(request).await.context("register a workload")?;
        Ok(answer.into_inner().lease)
    }
}

fn service(number: usize) -> String {
    format!("service-{number:04}")
}
