//! The first certificate by join token, and every later one by the certificate before it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::v1;
use outrigger_api::v1::certificates_client::CertificatesClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::{self, Trust};
use outrigger_common::mtls::{IdentityError, KeyRequest, Svid};
use outrigger_common::telemetry::chain;
use tonic::{Code, Status};

use super::link::Link;
use crate::shared::{Shared, TlsConfigs};

/// Longest call for a certificate.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest sleep before the wall clock is looked at again: it may jump.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The registry will not give this sidecar a certificate, however often it asks.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The token is refused.
    #[error(
        "the registry at {registry} refused the join token: {message}; make a new one with `outrigger token`"
    )]
    Refused {
        /// Where the registry is.
        registry: String,
        /// What it said.
        message: String,
    },
    /// The identity cannot be used.
    #[error("the certificate of the registry at {registry} cannot be used")]
    Identity {
        /// Where the registry is.
        registry: String,
        /// What is wrong.
        #[source]
        source: IdentityError,
    },
}

/// Joins, waiting for the registry as long as it takes. `waiting` hears why.
///
/// Cancel safety: a single-use token may be spent.
///
/// # Errors
/// The token or the answer is no good: asking again would not help.
pub async fn join(shared: &Shared, waiting: impl Fn(String)) -> Result<Svid, JoinError> {
    let config = &shared.config;
    let registry = || config.registry.clone();
    let identity = |source| JoinError::Identity { registry: registry(), source };
    // One key for all tries: the registry recognises a repeated request whose answer was lost.
    let request = KeyRequest::generate().map_err(identity)?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let trust = Trust::Pin(config.token.pin.as_str().into());
    loop {
        let status = match channel::registry(&config.registry, trust.clone()) {
            Ok(channel) => {
                let message = v1::JoinRequest {
                    token_id: config.token.id.clone(),
                    secret: config.token.secret.clone(),
                    csr: request.csr.to_vec(),
                };
                match within(JoinClient::new(channel).join(message)).await {
                    Ok(answer) => return complete(request, answer).map_err(identity),
                    Err(status) => status,
                }
            }
            Err(error) => Status::invalid_argument(format!("registry.address: {error}")),
        };
        let message = status.message().to_owned();
        match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::FailedPrecondition => {
                return Err(JoinError::Refused { registry: registry(), message });
            }
            _ => waiting(format!("cannot join the registry at {}: {}", config.registry, chain(&status))),
        }
        tokio::time::sleep(backoff.next(fastrand::f64())).await;
    }
}

/// Puts an identity in force: TLS of both sides, the registry's channel, the gauge.
///
/// # Errors
/// When the identity cannot be used for TLS; nothing changes then.
pub fn install(shared: &Shared, svid: Svid) -> Result<(), IdentityError> {
    shared.tls.store(Some(Arc::new(TlsConfigs::new(&svid)?)));
    let expiry = svid.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    shared.metrics.certificate_expiry.set(expiry.as_secs_f64());
    tracing::info!(identity = %svid.id, valid_for = ?svid.remaining(SystemTime::now()), "certificate in force");
    shared.svid.store(Some(Arc::new(svid)));
    Ok(())
}

/// Renews for ever: at two thirds of each lifetime, more often while it fails.
pub async fn renew_forever(shared: Arc<Shared>, link: Arc<Link>) {
    let mut due = due(&shared);
    let mut backoff = retry_pace(&shared);
    loop {
        // The wall clock decides, and it may jump: never sleep past a look at it.
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        if SystemTime::now() < due {
            continue;
        }
        match renew(&shared, &link).await {
            Ok(()) => {
                due = self::due(&shared);
                backoff = retry_pace(&shared);
            }
            Err(error) => {
                let left = shared
                    .svid
                    .load()
                    .as_ref()
                    .map(|svid| svid.remaining(SystemTime::now()))
                    .unwrap_or_default();
                tracing::warn!(error, expires_in = ?left, "certificate not renewed; trying again");
                due = SystemTime::now() + backoff.next(fastrand::f64());
            }
        }
    }
}

fn due(shared: &Shared) -> SystemTime {
    shared.svid.load().as_ref().map_or_else(SystemTime::now, |svid| svid.renew_at(fastrand::f64()))
}

/// Certificates of seconds are retried within their last third; long ones up to once a minute.
fn retry_pace(shared: &Shared) -> Backoff {
    let lifetime = shared
        .svid
        .load()
        .as_ref()
        .map(|svid| svid.not_after.duration_since(svid.obtained).unwrap_or_default());
    let longest =
        (lifetime.unwrap_or_default() / 30).clamp(Duration::from_millis(100), Duration::from_secs(60));
    Backoff::new(Duration::from_millis(100), longest)
}

async fn renew(shared: &Shared, link: &Link) -> Result<(), String> {
    let request = KeyRequest::generate().map_err(|error| chain(&error))?;
    let message = v1::RenewCertificateRequest { csr: request.csr.to_vec() };
    let answer = within(CertificatesClient::new(link.channel()).renew(message))
        .await
        .map_err(|status| chain(&status))?;
    let svid = complete(request, answer).map_err(|error| chain(&error))?;
    if shared.caller.get().is_some_and(|caller| caller.id != svid.id) {
        return Err(format!("the registry sent a certificate of {}", svid.id));
    }
    install(shared, svid).map_err(|error| chain(&error))?;
    link.renew().map_err(|error| chain(&error))
}

fn complete(request: KeyRequest, answer: v1::CertificateResponse) -> Result<Svid, IdentityError> {
    let der = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
    request.complete(der(answer.chain), der(answer.bundle))
}

async fn within<T>(call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer within 10s")),
    }
}
