//! Server mode: the store, the routes and a listener put together.

use std::net::SocketAddr;

use outrigger_common::drain::Drain;
use outrigger_common::listen::{ListenError, bind};
use outrigger_common::tasks::Tasks;

use crate::config::ServerConfig;
use crate::routes::{App, router};
use crate::serve::{ServeOptions, serve};
use crate::store::{OpenError, Store};

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The database cannot be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The system does not say which address was bound.
    #[error("cannot read the address of the listener")]
    Address(#[source] std::io::Error),
}

/// Serves orders until `drain` starts, then finishes what is in flight. Calls `ready` with the bound
/// address once requests are answered.
///
/// # Errors
/// When the address or the database cannot be had; afterwards failures are answers, not errors.
pub async fn run(
    config: ServerConfig,
    ready: impl FnOnce(SocketAddr),
    drain: Drain,
) -> Result<(), ServerError> {
    let tasks = Tasks::current();
    let listener = bind(config.listen, "server.listen").await?;
    let address = listener.local_addr().map_err(ServerError::Address)?;
    let (store, writer) = Store::open(config.store, &tasks).await?;
    let app = App { store: store.clone(), body_timeout: config.body_timeout };
    tracing::info!(%address, "order service ready");
    ready(address);
    let options =
        ServeOptions { max_connections: config.max_connections, drain_timeout: config.drain_timeout };
    serve(listener, router(app), options, drain).await;
    store.close(writer, config.drain_timeout).await;
    Ok(())
}
