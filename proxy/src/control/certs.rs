//! The first certificate by join token, and every later one by the certificate before it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_api::v1::certificates_client::CertificatesClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_common::backoff::Backoff;
use outrigger_common::channel::{self, Trust, describe};
use outrigger_common::mtls::{IdentityError, KeyRequest, Svid, clock};
use outrigger_common::telemetry::chain;
use tonic::{Code, Status};

use super::disk::keeper::Keeper;
use super::link::Link;
use super::status::Status as Standing;
use crate::shared::Shared;
use crate::tls::TlsConfigs;

/// Longest call for a certificate.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Least pause between renewals that a wrong clock makes useless.
const CLOCK_PAUSE: Duration = Duration::from_secs(5);
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
    /// There is neither an identity nor a token.
    #[error("no join token is configured; make one with `outrigger token` and set join.token_file")]
    NoToken,
    /// What is on disk will not do, and the token does not help.
    #[error("{why}, and this sidecar cannot rejoin; give it a new token of `outrigger token`")]
    State {
        /// What is wrong with the state on disk.
        why: String,
        /// Why joining failed.
        #[source]
        source: Box<Self>,
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

/// Joins, waiting for the registry as long as it takes. `waiting` hears why. Returns the identity and
/// the id of the token.
///
/// Cancel safety: a single-use token may be spent.
///
/// # Errors
/// The token or the answer is no good: asking again would not help.
pub async fn join(shared: &Shared, waiting: impl Fn(String)) -> Result<(Svid, String), JoinError> {
    let token = shared.config.token.as_ref().ok_or(JoinError::NoToken)?;
    // One key for all tries: the registry recognises a repeated request whose answer was lost.
    let request = KeyRequest::generate().map_err(|source| unusable(shared, source))?;
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        match join_once(shared, token, &request).await {
            Ok(answer) => {
                let svid = complete(request, answer).map_err(|source| unusable(shared, source))?;
                return Ok((svid, token.id.clone()));
            }
            Err(Attempt::Refused(error)) => return Err(error),
            Err(Attempt::Later(why)) => waiting(why),
        }
        tokio::time::sleep(backoff.next(fastrand::f64())).await;
    }
}

/// Joins in one try, with the same result.
///
/// Cancel safety: a single-use token may be spent.
///
/// # Errors
/// Why not, for people.
pub async fn join_now(shared: &Shared) -> Result<(Svid, String), String> {
    let token = shared.config.token.as_ref().ok_or_else(|| JoinError::NoToken.to_string())?;
    let request = KeyRequest::generate().map_err(|error| chain(&error))?;
    let answer = join_once(shared, token, &request).await.map_err(|attempt| match attempt {
        Attempt::Refused(error) => chain(&error),
        Attempt::Later(why) => why,
    })?;
    let svid = complete(request, answer).map_err(|error| chain(&error))?;
    Ok((svid, token.id.clone()))
}

/// Why one try did not succeed.
enum Attempt {
    /// Trying again would not help.
    Refused(JoinError),
    /// It may.
    Later(String),
}

async fn join_once(
    shared: &Shared,
    token: &Token,
    request: &KeyRequest,
) -> Result<v1::CertificateResponse, Attempt> {
    let registry = &shared.config.registry;
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
    shared.metrics.control.certificate_expiry.set(expiry.as_secs_f64());
    tracing::info!(identity = %svid.id, valid_for = ?svid.remaining(clock::now()), "certificate in force");
    shared.svid.store(Some(Arc::new(svid)));
    Ok(())
}

/// What renewing works with.
pub struct Renewal {
    /// The sidecar.
    pub shared: Arc<Shared>,
    /// The channel to the registry.
    pub link: Arc<Link>,
    /// How it stands.
    pub status: Arc<Standing>,
    /// Where identities are kept, if they are.
    pub keeper: Option<Arc<Keeper>>,
    /// Id of the token that began the identity.
    pub token: String,
}

/// Renews for ever: at two thirds of each lifetime, more often while it fails. A certificate that has
/// expired proves nothing any more: then the join token has to do, if it still can.
pub async fn renew_forever(mut with: Renewal) {
    let Renewal { shared, link, status, .. } = &with;
    let (shared, link, status) = (shared.clone(), link.clone(), status.clone());
    let mut due = due(&shared);
    let mut backoff = retry_pace(&shared);
    loop {
        // The wall clock decides, and it may jump: never sleep past a look at it.
        let wait = due.duration_since(clock::now()).unwrap_or_default();
        tokio::time::sleep(wait.min(LOOK_AGAIN)).await;
        if clock::now() < due {
            continue;
        }
        let left =
            || shared.svid.load().as_ref().map(|svid| svid.remaining(clock::now())).unwrap_or_default();
        // A renewal is worth a try even then: our clock may be wrong, and the registry's counts.
        let mut result = renew(&shared, &link).await;
        if result.is_err() && left().is_zero() {
            result = with.rejoin().await;
        }
        match result {
            Ok(()) if left().is_zero() => {
                with.keep().await;
                status.expired(Some(
                    "a certificate just issued has expired by this machine's clock, which is ahead of the registry's: set it".to_owned(),
                ));
                due = clock::now() + backoff.next(fastrand::f64()).max(CLOCK_PAUSE);
            }
            Ok(()) => {
                with.keep().await;
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
                due = clock::now() + backoff.next(fastrand::f64());
            }
        }
    }
}

impl Renewal {
    async fn rejoin(&mut self) -> Result<(), String> {
        let (svid, token) = join_now(&self.shared).await?;
        replace(&self.shared, &self.link, Ok(svid))?;
        self.token = token;
        Ok(())
    }

    /// Puts the certificate in force on disk.
    async fn keep(&self) {
        if let (Some(keeper), Some(svid)) = (&self.keeper, self.shared.svid.load_full()) {
            keeper.identity(&svid, &self.token).await;
        }
    }
}

fn due(shared: &Shared) -> SystemTime {
    shared.svid.load().as_ref().map_or_else(clock::now, |svid| svid.renew_at(fastrand::f64()))
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
    let expired = svid.remaining(clock::now()).is_zero();
    install(shared, svid).map_err(|error| chain(&error))?;
    if expired {
        // Our clock is ahead: a new connection would find the registry's certificate expired as well,
        // while the one there goes on.
        return Ok(());
    }
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
