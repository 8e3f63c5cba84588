//! An application that is a bare socket: it records what it receives and answers as told.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it answers when it is told nothing else.
pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// What a connection has been sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Received {
    /// The bytes of one message, or what came of it before the connection ended.
    pub(crate) bytes: Vec<u8>,
    /// Whether all of it came.
    pub(crate) whole: bool,
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// As it goes out.
    pub(crate) bytes: Vec<u8>,
    /// The connection ends afterwards.
    pub(crate) closes: bool,
    /// With a reset.
    pub(crate) resets: bool,
    /// Given before the body of the request has come.
    pub(crate) early: bool,
}

impl Default for Answer {
    fn default() -> Self {
        Self { bytes: OK.to_vec(), closes: false, resets: false, early: false }
    }
}

#[derive(Default)]
struct State {
    received: Mutex<Vec<Received>>,
    answer: Mutex<Answer>,
}

/// See the module; its port closes when dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _stop: DrainTrigger,
}

impl Upstream {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = DrainTrigger::new();
        let (state, heard, tasks) = (Arc::new(State::default()), stop.listen(), Tasks::current());
        let shared = state.clone();
        Tasks::current().spawn("upstream", async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = heard.signalled() => return,
                };
                let (state, heard) = (shared.clone(), heard.clone());
                tasks.spawn("upstream connection", async move {
                    tokio::select! {
                        () = connection(stream, &state) => {}
                        () = heard.signalled() => {}
                    }
                });
            }
        });
        Self { address, state, _stop: stop }
    }

    /// What it answers from now on.
    pub(crate) fn answers(&self, answer: Answer) {
        *self.state.answer.lock().unwrap() = answer;
    }

    /// What it has received since the last time it was asked.
    pub(crate) fn take(&self) -> Vec<Received> {
        std::mem::take(&mut *self.state.received.lock().unwrap())
    }
}

async fn connection(mut stream: TcpStream, state: &State) {
    let mut read = Vec::new();
    loop {
        let Some(head) = grow(&mut stream, &mut read, head_end).await else { break };
        let answer = state.answer.lock().unwrap().clone();
        if answer.early {
            stream.write_all(&answer.bytes).await.unwrap();
        }
        let framing = String::from_utf8_lossy(&read[..head]).to_ascii_lowercase();
        let Some(end) =
            grow(&mut stream, &mut read, |read| body_end(&framing, &read[head..]).map(|n| head + n)).await
        else {
            break;
        };
        let rest = read.split_off(end);
        state.received.lock().unwrap().push(Received { bytes: read, whole: true });
        read = rest;
        if !answer.early && stream.write_all(&answer.bytes).await.is_err() {
            break;
        }
        if answer.resets {
            stream.set_zero_linger().unwrap();
        }
        if answer.closes || answer.resets {
            return;
        }
    }
    if !read.is_empty() {
        state.received.lock().unwrap().push(Received { bytes: read, whole: false });
    }
}

/// Reads until `end` finds one; `None` when the connection ends before.
async fn grow(
    stream: &mut TcpStream,
    read: &mut Vec<u8>,
    end: impl Fn(&[u8]) -> Option<usize>,
) -> Option<usize> {
    loop {
        if let Some(at) = end(read) {
            return Some(at);
        }
        if !matches!(stream.read_buf(read).await, Ok(1..)) {
            return None;
        }
    }
}

pub(crate) fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

pub(crate) fn head_end(read: &[u8]) -> Option<usize> {
    find(read, b"\r\n\r\n").map(|at| at + 4)
}

/// Where a body ends. Only what a careful peer writes is understood: everything else never ends.
pub(crate) fn body_end(head: &str, body: &[u8]) -> Option<usize> {
    let value = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
    if value("transfer-encoding: ").is_some() {
        let last = if body.starts_with(b"0\r\n") { 0 } else { find(body, b"\r\n0\r\n")? + 2 };
        return find(&body[last + 1..], b"\r\n\r\n").map(|at| last + 1 + at + 4);
    }
    let length = value("content-length: ").map_or(0, |length| length.trim().parse().unwrap());
    (body.len() >= length).then_some(length)
}
