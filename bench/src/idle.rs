//! Client connections that make one request each and then stay, idle.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::SMALL;
use crate::certs::NAME;

/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(10);

/// Open connections, none of which is in use.
#[derive(Default)]
pub(crate) struct Crowd(Vec<TcpStream>);

impl Crowd {
    /// Grows to so many, one after the other: the peak of what a crowd does at once is not what is measured.
    ///
    /// # Errors
    /// When one is refused or not answered.
    pub(crate) async fn grow(&mut self, to: SocketAddr, count: usize) -> Result<()> {
        while self.0.len() < count {
            let number = self.0.len();
            let answered = tokio::time::timeout(ANSWER, connect(to)).await;
            self.0.push(answered.with_context(|| format!("connection {number} is not answered"))??);
        }
        Ok(())
    }
}

async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    let request = format!("GET /v1/orders/1 HTTP/1.1\r\nhost: {NAME}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::with_capacity(1024);
    while !answer.ends_with(SMALL.as_bytes()) {
        if stream.read_buf(&mut answer).await? == 0 {
            bail!("closed after {:?}", String::from_utf8_lossy(&answer));
        }
    }
    Ok(stream)
}
