//! The first certificate by join token, and every later one by the certificate before it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::v1;
use outrigger_api::v1::certificates_client::CertificatesClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::{self, Trust, describe};
use outrigger_common::mtls::{IdentityError, KeyRequest, Svid};
use outrigger_common::telemetry::chain;
use tonic::{Code, Status};

use super::link::Link;
use super::status::Status as Standing;
use crate::shared::Shared;
use crate::tls::TlsConfigs;

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
    // One key for all tries: the registry recognises a repeated request whose answer was lost.
    let request = KeyRequest::generate().map_err(|source| unusable(shared, source))?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match join_once(shared, &request).await {
            Ok(answer) => return complete(request, answer).map_err(|source| unusable(shared, source)),
            Err(Attempt::Refused(error)) => return Err(error),
            Err(Attempt::Later(why)) => waiting(why),
        }
        tokio::time::sleep(backoff.next(fastrand::f64())).await;
    }
}

/// Why one try did not succeed.
enum Attempt {
    /// Trying again would not help.
    Refused(JoinError),
    /// It may.
    Later(String),
}

async fn join_once(shared: &Shared, request: &KeyRequest) -> Result<v1::CertificateResponse, Attempt> {
    let (registry, token) = (&shared.config.registry, &shared.config.token);
    let refused =
        |message: String| Attempt::Refused(JoinError::Refused { registry: registry.clone(), message });
    let channel = channel::registry(registry, Trust::Pin(token.pin.as_str().into()));
    let channel = channel.map_err(|error| refused(format!("registry.address: {error}")))?;
    let message = v1::JoinRequest {
        token_id: token.id.clone(),
        secret: token.secret.clone(),
        csr: request.csr.to_vec(),
    };
    within(JoinClient::new(channel).join(message)).await.map_err(|status| match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            refused(status.message().to_owned())
        }
        _ => Attempt::Later(format!("cannot join the registry at {registry}: {}", describe(&status))),
    })
}

fn unusable(shared: &Shared, source: IdentityError) -> JoinError {
    JoinError::Identity { registry: shared.config.registry.clone(), source }
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

/// Renews for ever: at two thirds of each lifetime, more often while it fails. A certificate that has
/// expired proves nothing any more: then the join token has to do, if it still can.
pub async fn renew_forever(shared: Arc<Shared>, link: Arc<Link>, status: Arc<Standing>) {
    let mut due = due(&shared);
    let mut backoff = retry_pace(&shared);
    loop {
        // The wall clock decides, and it may jump: never sleep past a look at it.
        let wait = due.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        if SystemTime::now() < due {
            continue;
        }
        let left =
            || shared.svid.load().as_ref().map(|svid| svid.remaining(SystemTime::now())).unwrap_or_default();
        let result =
            if left().is_zero() { rejoin(&shared, &link).await } else { renew(&shared, &link).await };
        match result {
            Ok(()) => {
                status.expired(None);
                due = self::due(&shared);
                backoff = retry_pace(&shared);
            }
            Err(error) => {
                let left = left();
                tracing::warn!(error, expires_in = ?left, "certificate not renewed; trying again");
                if left.is_zero() {
                    status.expired(Some(format!(
                        "the certificate has expired and cannot be renewed ({error}); give this sidecar a new token of `outrigger token` and restart it"
                    )));
                }
                due = SystemTime::now() + backoff.next(fastrand::f64());
            }
        }
    }
}

async fn rejoin(shared: &Shared, link: &Link) -> Result<(), String> {
    let request = KeyRequest::generate().map_err(|error| chain(&error))?;
    let answer = join_once(shared, &request).await.map_err(|attempt| match attempt {
        Attempt::Refused(error) => chain(&error),
        Attempt::Later(why) => why,
    })?;
    replace(shared, link, complete(request, answer))
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
        .map_err(|status| describe(&status))?;
    replace(shared, link, complete(request, answer))
}

/// Puts a later certificate in force, if it is still ours.
fn replace(shared: &Shared, link: &Link, svid: Result<Svid, IdentityError>) -> Result<(), String> {
    let svid = svid.map_err(|error| chain(&error))?;
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
