//! One GET at a time, for health, state and metrics of the mesh's own processes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Limit of one exchange.
const LIMIT: Duration = Duration::from_secs(2);

/// Fetches `path` of a server on this machine.
pub(super) async fn get(address: SocketAddr, path: &str) -> io::Result<(StatusCode, Bytes)> {
    timeout(LIMIT, exchange(address, path)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Fetches `path` and reads its JSON; any status but 200 is an error.
pub(super) async fn get_json<T: DeserializeOwned>(address: SocketAddr, path: &str) -> io::Result<T> {
    match get(address, path).await? {
        (StatusCode::OK, body) => serde_json::from_slice(&body).map_err(io::Error::other),
        (status, _) => Err(io::Error::other(format!("{path} answered {status}"))),
    }
}

async fn exchange(address: SocketAddr, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::get(path).header(header::HOST, address.to_string()).body(Empty::<Bytes>::new());
    let request = request.map_err(io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        Ok((status, body))
    };
    tokio::pin!(answer);
    tokio::select! {
        result = &mut answer => result,
        // The connection ends by itself once the answer is in; then only the answer is left to take.
        _ended = connection => answer.await,
    }
}
