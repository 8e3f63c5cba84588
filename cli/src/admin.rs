//! The registry's admin interface, as every command speaks to it: over mutual TLS, as the admin
//! identity, with errors that name the address or the directory and what to do.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use outrigger_api::v1::admin_client::AdminClient;
use outrigger_api::v1::{
    Applied, ApplyRequest, BackupRequest, CreateTokenRequest, CreateTokenResponse, GetRequest, Resource,
    RevokeTokenRequest,
};
use outrigger_common::channel::{self, Trust};
use outrigger_common::identity::Principal;
use outrigger_common::mtls::{IdentityError, Svid};
use outrigger_common::telemetry::chain;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

use crate::failure::Failure;

/// Limit of one call, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// The registry, as an administrator sees it.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    client: AdminClient<Channel>,
    address: String,
}

impl Admin {
    /// Reads the identity; connects at the first call.
    pub(crate) fn new(address: &str, identity: &Path) -> Result<Self, Failure> {
        let svid = read_identity(identity)?;
        let trust = Trust::Svid(Arc::new(ArcSwapOption::from_pointee(svid)));
        let channel = channel::registry(address, trust)
            .map_err(|error| Failure::usage(format!("{address:?} is no address: {}", chain(&error))))?;
        Ok(Self { client: AdminClient::new(channel), address: address.to_owned() })
    }

    /// Writes or deletes resources in one transaction.
    pub(crate) async fn apply(&self, request: ApplyRequest) -> Result<Vec<Applied>, Failure> {
        Ok(self.call(self.client.clone().apply(request)).await?.results)
    }

    /// Reads resources and live state.
    pub(crate) async fn get(&self, request: GetRequest) -> Result<Vec<Resource>, Failure> {
        Ok(self.call(self.client.clone().get(request)).await?.resources)
    }

    /// Makes a join token.
    pub(crate) async fn create_token(
        &self,
        request: CreateTokenRequest,
    ) -> Result<CreateTokenResponse, Failure> {
        self.call(self.client.clone().create_token(request)).await
    }

    /// Makes a join token useless.
    pub(crate) async fn revoke_token(&self, id: &str) -> Result<(), Failure> {
        let request = RevokeTokenRequest { id: id.to_owned() };
        self.call(self.client.clone().revoke_token(request)).await.map(|_| ())
    }

    /// Everything the registry holds, as a backup.
    pub(crate) async fn backup(&self) -> Result<Vec<u8>, Failure> {
        let mut client = self.client.clone();
        let mut chunks = self.call(client.backup(BackupRequest {})).await?;
        let mut backup = Vec::new();
        loop {
            // The limit is for each piece: a large backup may take its time, a silent registry not.
            let chunk = async { chunks.message().await.map(Response::new) };
            match self.call(chunk).await? {
                Some(chunk) => backup.extend_from_slice(&chunk.data),
                None => return Ok(backup),
            }
        }
    }

    async fn call<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(Failure::Job(explain(&self.address, &status))),
            Err(_) => Err(Failure::job(format!(
                "the registry at {} did not answer within {} s; see its log",
                self.address,
                CALL_TIMEOUT.as_secs()
            ))),
        }
    }
}

fn read_identity(directory: &Path) -> Result<Svid, Failure> {
    let place = directory.display();
    let svid = Svid::read_dir(directory).map_err(|error| match &error {
        IdentityError::File { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Failure::usage(format!(
            "no admin identity in {place}: the registry writes one to <data_dir>/admin at its first start; \
             name that directory with --identity or OUTRIGGER_IDENTITY"
        )),
        other => Failure::usage(format!("the admin identity in {place} cannot be used: {}", chain(other))),
    })?;
    if *svid.id.principal() != Principal::Admin {
        return Err(Failure::usage(format!(
            "{place} holds the identity {}, not the admin's; name the registry's <data_dir>/admin with --identity",
            svid.id
        )));
    }
    if svid.remaining(SystemTime::now()).is_zero() {
        return Err(Failure::usage(format!(
            "the admin identity in {place} has expired; a running registry renews it in its <data_dir>/admin: \
             start the registry, or copy the files from there again"
        )));
    }
    Ok(svid)
}

/// What a status means, and the remedy where there is one.
fn explain(address: &str, status: &Status) -> String {
    let message = status.message();
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => format!(
            "the registry at {address} refused this identity: {message}; use the identity in that registry's \
             <data_dir>/admin (--identity)"
        ),
        // A call that never reached the registry carries the cause as a source.
        Code::Unavailable | Code::Unknown | Code::Internal if untrusted(status) => format!(
            "the server at {address} and this identity do not belong to one mesh: {}; use the identity in that \
             registry's <data_dir>/admin (--identity), or name another registry with --registry",
            innermost(status)
        ),
        Code::Unavailable | Code::Unknown | Code::Internal if std::error::Error::source(status).is_some() => {
            format!(
                "cannot reach the registry at {address}: {}; start it, or name another with --registry or \
             OUTRIGGER_REGISTRY",
                innermost(status)
            )
        }
        Code::Unavailable => format!("the registry at {address} is not available: {message}; try again"),
        _ => format!("the registry at {address} refused: {message}"),
    }
}

/// Whether there was a connection, but no trust: rustls reports both sides' refusals as invalid data,
/// our channel a server that is not the registry as permission denied.
fn untrusted(error: &dyn std::error::Error) -> bool {
    let mut causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.any(|cause| {
        let kind = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(kind, Some(std::io::ErrorKind::InvalidData | std::io::ErrorKind::PermissionDenied))
    })
}

/// The text of the innermost cause: the layers around it say only that something failed.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_identity_names_the_directory_and_the_remedy() {
        let error = Admin::new("127.0.0.1:1", Path::new("/nowhere/admin")).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Failure::Usage(_)));
        assert!(text.contains("/nowhere/admin") && text.contains("--identity"), "{text}");
    }

    #[test]
    fn a_refusal_names_address_and_reason() {
        let text = explain("h:1", &Status::permission_denied("not the admin"));
        assert!(
            text.contains("h:1") && text.contains("not the admin") && text.contains("--identity"),
            "{text}"
        );
        assert!(explain("h:1", &Status::invalid_argument("no such port")).contains("no such port"));
    }
}
