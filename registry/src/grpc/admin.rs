//! The administrator's calls.

use std::time::SystemTime;

use outrigger_api::v1;
use outrigger_api::v1::admin_server::Admin as AdminService;
use tonic::{Request, Response, Status};

use super::Services;

pub(super) struct Admin(pub(super) Services);

#[tonic::async_trait]
impl AdminService for Admin {
    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        Ok(Response::new(self.0.resources.apply(request.get_ref()).await?))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        Ok(Response::new(self.0.resources.get(request.get_ref()).await?))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        Ok(Response::new(self.0.joins.create_token(request.into_inner(), SystemTime::now()).await?))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        self.0.joins.revoke_token(&request.get_ref().id).await?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }
}
