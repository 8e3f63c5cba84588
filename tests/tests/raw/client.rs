//! A client that is a bare socket.

use std::net::SocketAddr;

use outrigger_tests::wait::soon;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::upstream::{body_end, head_end};

/// A connection and what has been read from it.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// With its line, lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Closed,
    Reset,
}

impl Raw {
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// The other side may close before it has read everything.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _early = soon("the other side reads", self.stream.write_all(bytes)).await;
    }

    /// The next response, or how the connection ended before it was complete.
    pub(crate) async fn response(&mut self, method: &str) -> Result<Response, End> {
        soon("a response, or the end", self.read_response(method)).await
    }

    async fn read_response(&mut self, method: &str) -> Result<Response, End> {
        let head = self.until(head_end).await?;
        let text = String::from_utf8_lossy(&self.read[..head]).to_ascii_lowercase();
        let status: u16 = text.split(' ').nth(1).unwrap().parse().unwrap();
        let bodiless = method == "HEAD" || status < 200 || status == 204 || status == 304;
        let end = if bodiless {
            head
        } else if text.contains("\r\ncontent-length: ") || text.contains("\r\ntransfer-encoding: ") {
            self.until(|read| body_end(&text, &read[head..]).map(|n| head + n)).await?
        } else {
            match self.until(|_| None).await {
                Err(End::Closed) => self.read.len(),
                other => other?,
            }
        };
        let rest = self.read.split_off(end);
        let body = self.read.split_off(head);
        self.read = rest;
        Ok(Response { status, head: text, body })
    }

    /// Reads until `end` finds one.
    async fn until(&mut self, end: impl Fn(&[u8]) -> Option<usize>) -> Result<usize, End> {
        loop {
            if let Some(at) = end(&self.read) {
                return Ok(at);
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => return Err(End::Closed),
                Ok(_) => {}
                Err(_) => return Err(End::Reset),
            }
        }
    }

    /// What comes until the connection ends, and how it does.
    pub(crate) async fn rest(&mut self) -> (Vec<u8>, End) {
        let end = soon("the end of the connection", self.until(|_| None)).await;
        (std::mem::take(&mut self.read), end.unwrap_err())
    }

    /// At least that many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> Result<Vec<u8>, End> {
        soon("bytes", self.until(|read| (read.len() >= count).then_some(count))).await?;
        Ok(std::mem::take(&mut self.read))
    }
}
