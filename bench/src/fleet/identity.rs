//! The fleet's identities: one a namespace, joined with a token like any sidecar's and shared by all
//! simulated sidecars of the namespace. Joining ten thousand times is another scenario.

use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_api::v1::admin_client::AdminClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_common::channel::{self, Trust};
use outrigger_common::mtls::{KeyRequest, Svid, client_config};
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;

use super::plan::{self, Plan};
use super::process::Registry;

const ACCOUNT: &str = "fleet";

/// Joins once for each namespace.
///
/// # Errors
/// What the registry refuses.
pub(super) async fn join(registry: &Registry, plan: &Plan) -> anyhow::Result<Vec<Svid>> {
    let admin = channel(registry, Svid::read_dir(&registry.admin())?)?;
    let mut identities = Vec::new();
    for namespace in 0..plan.namespaces() {
        let request = v1::CreateTokenRequest {
            namespace: plan::namespace(namespace),
            account: ACCOUNT.to_owned(),
            services: plan.services_of(namespace).map(plan::label).collect(),
            ttl_seconds: 0,
        };
        let token = AdminClient::new(admin.clone()).create_token(request).await?.into_inner();
        identities.push(exchange(registry, &Token::parse(&token.token)?).await?);
    }
    Ok(identities)
}

async fn exchange(registry: &Registry, token: &Token) -> anyhow::Result<Svid> {
    let key = KeyRequest::generate()?;
    let message =
        v1::JoinRequest { token_id: token.id.clone(), secret: token.secret.clone(), csr: key.csr.to_vec() };
    let trust = Trust::Pin(token.pin.as_str().into());
    let channel = channel::registry(&registry.grpc().to_string(), trust)?;
    let answer = JoinClient::new(channel).join(message).await.context("joining")?.into_inner();
    let certificates = |ders: Vec<Vec<u8>>| ders.into_iter().map(Into::into).collect();
    Ok(key.complete(certificates(answer.chain), certificates(answer.bundle))?)
}

/// Returns a channel that proves an identity.
///
/// # Errors
/// Never, with an address that is one.
pub(super) fn channel(registry: &Registry, svid: Svid) -> anyhow::Result<Channel> {
    let cell = Arc::new(ArcSwapOption::from_pointee(svid));
    Ok(channel::registry(&registry.grpc().to_string(), Trust::Svid(cell))?)
}

/// Returns what connects as an identity.
///
/// # Errors
/// When the identity cannot be used for TLS.
pub(super) fn connector(svid: &Svid) -> anyhow::Result<TlsConnector> {
    Ok(TlsConnector::from(client_config(svid, &[b"h2"])?))
}
