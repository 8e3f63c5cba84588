//! The administrator's calls.

use std::pin::Pin;
use std::time::SystemTime;

use outrigger_api::v1;
use outrigger_api::v1::admin_server::Admin as AdminService;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Services, caller};
use crate::backup;
use crate::error::RequestError;

pub(super) struct Admin(pub(super) Services);

#[tonic::async_trait]
impl AdminService for Admin {
    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupChunk, Status>> + Send>>;

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
    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let caller = caller(&request)?.id;
        let snapshot = self.0.store.snapshot().await.map_err(RequestError::from)?;
        tracing::warn!(identity = %caller, revision = snapshot.revision, "backup handed out: whoever has it can act as this mesh's root");
        let chunks = backup::encode(snapshot, SystemTime::now());
        let chunks = chunks.map(|data| Ok(v1::BackupChunk { data: data.to_vec() }));
        Ok(Response::new(Box::pin(tokio_stream::iter(chunks))))
    }
}
