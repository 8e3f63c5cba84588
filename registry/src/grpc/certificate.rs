//! Joining and renewing.

use std::sync::Arc;
use std::time::SystemTime;

use outrigger_api::v1;
use outrigger_api::v1::certificates_server::Certificates as CertificatesService;
use outrigger_api::v1::join_server::Join as JoinService;
use tonic::{Request, Response, Status};

use super::caller;
use crate::join::Joins;

#[derive(Clone)]
pub(super) struct Certificates(pub(super) Arc<Joins>);

#[tonic::async_trait]
impl JoinService for Certificates {
    async fn join(
        &self,
        request: Request<v1::JoinRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        Ok(Response::new(self.0.join(request.into_inner(), SystemTime::now()).await?))
    }
}

#[tonic::async_trait]
impl CertificatesService for Certificates {
    async fn renew(
        &self,
        request: Request<v1::RenewCertificateRequest>,
    ) -> Result<Response<v1::CertificateResponse>, Status> {
        let id = caller(&request)?.id;
        let renewed = self.0.renew(&id, &request.get_ref().csr, SystemTime::now()).await;
        if let Err(error) = &renewed {
            tracing::warn!(identity = %id, %error, "renewal of a certificate refused");
        }
        Ok(Response::new(renewed?))
    }
}
