//! Registering workloads.

use std::sync::Arc;

use outrigger_api::v1;
use outrigger_api::v1::registration_server::Registration as RegistrationService;
use tonic::{Request, Response, Status};

use super::caller;
use crate::registrar::Registrar;

pub(super) struct Registration(pub(super) Arc<Registrar>);

#[tonic::async_trait]
impl RegistrationService for Registration {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        let id = caller(&request)?.id;
        let registered = self.0.register(&id, request.get_ref()).await;
        if let Err(error) = &registered {
            tracing::warn!(identity = %id, %error, "registration refused");
        }
        Ok(Response::new(registered?))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        let id = caller(&request)?.id;
        Ok(Response::new(self.0.renew(&id, request.get_ref()).await?))
    }

    async fn deregister(
        &self,
        request: Request<v1::DeregisterRequest>,
    ) -> Result<Response<v1::DeregisterResponse>, Status> {
        let id = caller(&request)?.id;
        Ok(Response::new(self.0.deregister(&id, request.get_ref()).await?))
    }
}
