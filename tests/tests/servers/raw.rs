//! Bytes that are no protocol: what arrives, in how many connections, and how they end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger_common::tasks::Tasks;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::{soon, until};
use rustix::process::Signal;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::road::{Road, SERVICE};

/// A server that is the test itself.
struct Raw {
    address: SocketAddr,
    accepted: mpsc::Receiver<TcpStream>,
    count: Arc<AtomicUsize>,
}

impl Raw {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (sender, accepted) = mpsc::channel(64);
        let count = Arc::new(AtomicUsize::new(0));
        let (address, counted) = (listener.local_addr().unwrap(), count.clone());
        Tasks::current().spawn("raw server", async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                if sender.send(stream).await.is_err() {
                    return;
                }
            }
        });
        Self { address, accepted, count }
    }

    /// A road to it, whose looks at its health are over and not counted.
    async fn road(&mut self, mesh: &Mesh, protocol: Option<&str>) -> Road {
        let road = Road::with(mesh, &[self.address], protocol, &json!({})).await;
        while self.accepted.try_recv().is_ok() {}
        self.count.store(0, Ordering::Relaxed);
        road
    }

    async fn next(&mut self) -> TcpStream {
        soon("a connection arrives at the server", self.accepted.recv()).await.unwrap()
    }

    fn connections(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

async fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

async fn hears(stream: &mut TcpStream, text: &[u8]) {
    let mut found = vec![0; text.len()];
    let what = format!("{:?} arrives", String::from_utf8_lossy(text));
    soon(&what, stream.read_exact(&mut found)).await.unwrap();
    assert_eq!(found, text, "{:?}", String::from_utf8_lossy(&found));
}

async fn says(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
}

/// The end, and nothing before it.
async fn hears_the_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    soon("the other side ends", stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
}

/// A connection that breaks is no connection that ends.
async fn hears_it_break(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = soon("the other side breaks", stream.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

/// Waits until whoever listens at `at` has read all that this client sent.
pub(crate) async fn taken(client: &TcpStream, at: SocketAddr) {
    let hex = |address: SocketAddr| {
        let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
        // As Linux writes it: the address in the machine's order of bytes, the port not.
        format!("{:08X}:{:04X}", u32::from_ne_bytes(address.ip().octets()), address.port())
    };
    let [there, here] = [at, client.local_addr().unwrap()].map(hex);
    until("what was sent has been read", || async {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let rows: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().skip(1).collect()).collect();
        // Bytes sent and not acknowledged, and bytes received and not read.
        let queues = |local: &str, remote: &str| {
            let row = rows.iter().find(|row| row[0] == local && row[1] == remote);
            row.expect("the connection is open")[3].split_once(':').expect("two queues")
        };
        queues(&here, &there).0 == "00000000" && queues(&there, &here).1 == "00000000"
    })
    .await;
}

#[tokio::test]
async fn a_greeting_arrives_at_a_client_that_says_nothing() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let mut client = connect(road.at).await;
    let mut accepted = server.next().await;
    says(&mut accepted, b"220 at your service\r\n").await;
    hears(&mut client, b"220 at your service\r\n").await;
    // Whatever the client says from now on belongs to the same connection, even if it looks like HTTP.
    says(&mut client, b"GET / HTTP/1.1\r\nhost: goods\r\n\r\n").await;
    hears(&mut accepted, b"GET / HTTP/1.1\r\nhost: goods\r\n\r\n").await;
    // The client is done, the server is not.
    client.shutdown().await.unwrap();
    hears_the_end(&mut accepted).await;
    says(&mut accepted, b"221 a last word\r\n").await;
    hears(&mut client, b"221 a last word\r\n").await;
    drop(accepted);
    hears_the_end(&mut client).await;
    road.carried(1).await;
    assert_eq!((server.connections(), road.detected("server_first").await), (1, 1.0));
}

#[tokio::test]
async fn a_client_that_ends_without_a_word_is_answered() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let mut client = connect(road.at).await;
    client.shutdown().await.unwrap();
    let mut accepted = server.next().await;
    hears_the_end(&mut accepted).await;
    says(&mut accepted, b"Sun Nov 22 2026\r\n").await;
    drop(accepted);
    hears(&mut client, b"Sun Nov 22 2026\r\n").await;
    hears_the_end(&mut client).await;
    road.carried(1).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn the_server_may_be_done_before_the_client() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let mut client = connect(road.at).await;
    says(&mut client, b"hello\n").await;
    let mut accepted = server.next().await;
    hears(&mut accepted, b"hello\n").await;
    accepted.shutdown().await.unwrap();
    hears_the_end(&mut client).await;
    says(&mut client, b"still here\n").await;
    hears(&mut accepted, b"still here\n").await;
    drop(client);
    hears_the_end(&mut accepted).await;
    road.carried(1).await;
}

#[tokio::test]
async fn who_speaks_first_makes_no_connection_more() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    for number in 0..20 {
        let mut client = connect(road.at).await;
        // Every other client is slow to begin: the server has its connection before.
        let early = if number % 2 == 0 { None } else { Some(server.next().await) };
        says(&mut client, b"\0\x01binary").await;
        let mut accepted = match early {
            Some(accepted) => accepted,
            None => server.next().await,
        };
        hears(&mut accepted, b"\0\x01binary").await;
        says(&mut accepted, b"answer").await;
        hears(&mut client, b"answer").await;
        drop(client);
        hears_the_end(&mut accepted).await;
    }
    road.carried(20).await;
    assert_eq!((server.connections(), road.detected("opaque").await), (20, 20.0));
}

#[tokio::test]
async fn a_connection_made_for_a_silent_client_is_dropped_when_it_speaks_http() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let mut client = connect(road.at).await;
    let mut unused = server.next().await;
    says(&mut client, b"GET /late HTTP/1.1\r\nhost: whatever\r\n\r\n").await;
    // No byte of what the client said is in it.
    let mut rest = Vec::new();
    let _reset = soon("it ends", unused.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    let mut accepted = server.next().await;
    hears(&mut accepted, b"GET /late HTTP/1.1\r\n").await;
    says(&mut accepted, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody").await;
    hears(&mut client, b"HTTP/1.1 200 OK\r\n").await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"body") {
        soon("the answer arrives", client.read_buf(&mut answer)).await.unwrap();
    }
    assert_eq!((server.connections(), road.detected("http1").await), (2, 1.0));
    let metrics = road.front.metrics().await;
    let request = [("direction", "outbound"), ("destination", SERVICE), ("status", "200")];
    assert_eq!(metrics.sum("mesh_requests_total", &request), 1.0);
}

#[tokio::test]
async fn a_connection_still_being_made_is_given_up_when_the_client_speaks_http() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let in_flight = async |count: u64| {
        until(&format!("{count} in flight"), || async {
            road.front.endpoints(SERVICE).await[0]["in_flight"] == count
        })
        .await;
    };
    let replica = &road.replicas[0].process;
    replica.signal(Signal::STOP);
    let mut client = connect(road.at).await;
    in_flight(1).await;
    says(&mut client, b"GET / HTTP/1.1\r\nhost: whatever\r\n\r\n").await;
    until("it is known for HTTP", || async { road.detected("http1").await == 1.0 }).await;
    replica.signal(Signal::CONT);
    let mut accepted = server.next().await;
    hears(&mut accepted, b"GET / HTTP/1.1\r\n").await;
    says(&mut accepted, b"HTTP/1.1 204 No Content\r\n\r\n").await;
    hears(&mut client, b"HTTP/1.1 204 No Content\r\n").await;
    // While the client's connection is still there.
    in_flight(0).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn one_byte_and_silence_stalls_no_server_that_speaks_first() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    // Beginnings of HTTP/1, of HTTP/2, of TLS, of a line, and of nothing known.
    for beginning in [b"G".as_slice(), b"PRI * HT", b"\x16\x03", b"\r", b"\n", b"\0"] {
        let mut client = connect(road.at).await;
        says(&mut client, beginning).await;
        let mut accepted = server.next().await;
        says(&mut accepted, b"220 at your service\r\n").await;
        hears(&mut client, b"220 at your service\r\n").await;
        says(&mut client, b"and the rest\r\n").await;
        hears(&mut accepted, &[beginning, b"and the rest\r\n"].concat()).await;
        drop(accepted);
        hears_the_end(&mut client).await;
    }
    road.carried(6).await;
    assert_eq!(server.connections(), 6);
    for http in ["http1", "h2", "tls"] {
        assert_eq!(road.detected(http).await, 0.0, "{http}");
    }
}

#[tokio::test]
async fn what_is_declared_opaque_is_not_looked_at() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, Some("tcp")).await;
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for beginning in
        [b"GET / HTTP/1.1\r\nhost: goods\r\nx-mesh-a: 1\r\n\r\n".as_slice(), preface, b"\x16\x03\x01"]
    {
        let mut client = connect(road.at).await;
        says(&mut client, beginning).await;
        let mut accepted = server.next().await;
        hears(&mut accepted, beginning).await;
        drop(client);
        hears_the_end(&mut accepted).await;
    }
    let mut client = connect(road.at).await;
    let mut accepted = server.next().await;
    says(&mut accepted, b"220 at your service\r\n").await;
    hears(&mut client, b"220 at your service\r\n").await;
    drop(accepted);
    hears_the_end(&mut client).await;
    drop(client);
    road.carried(4).await;
    assert_eq!(server.connections(), 4);
    let metrics = road.front.metrics().await;
    assert_eq!(metrics.sum("mesh_protocol_detections_total", &[("direction", "outbound")]), 0.0);
}

#[tokio::test]
async fn what_breaks_on_one_side_breaks_on_the_other() {
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let mut road = server.road(&mesh, None).await;
    let open = async |server: &mut Raw| {
        let mut client = connect(road.at).await;
        says(&mut client, b"hello\n").await;
        let mut accepted = server.next().await;
        hears(&mut accepted, b"hello\n").await;
        says(&mut accepted, b"half an ans").await;
        hears(&mut client, b"half an ans").await;
        (client, accepted)
    };
    let (mut client, accepted) = open(&mut server).await;
    reset(accepted);
    hears_it_break(&mut client).await;
    let (client, mut accepted) = open(&mut server).await;
    reset(client);
    hears_it_break(&mut accepted).await;
    // A sidecar that dies has said nothing of an end either.
    let (mut client, _accepted) = open(&mut server).await;
    road.replicas[0].process.kill();
    hears_it_break(&mut client).await;
    let metrics = road.front.metrics().await;
    let closed = |reason| {
        metrics.sum("mesh_tcp_connections_closed_total", &[("direction", "outbound"), ("reason", reason)])
    };
    assert_eq!((closed(""), closed("client_closed"), closed("upstream_reset")), (0.0, 1.0, 2.0));
    // And where there is nobody, there is no end of an answer.
    let mut client = connect(road.at).await;
    hears_it_break(&mut client).await;
}

#[tokio::test]
async fn much_in_both_directions_at_once_waits_for_who_reads_slowly() {
    const BYTES: usize = 64 << 20;
    let (mesh, mut server) = (Mesh::start().await, Raw::start().await);
    let road = server.road(&mesh, None).await;
    let mut client = connect(road.at).await;
    says(&mut client, b"!").await;
    let mut accepted = server.next().await;
    hears(&mut accepted, b"!").await;
    let before = [&road.front, &road.replicas[0]].map(|sidecar| sidecar.process.resident_bytes());
    let (mut reading, mut writing) = client.split();
    // Nobody reads yet: the writer gets no further than the buffers of kernels and sidecars.
    let pattern: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let mut ahead = 0;
    while let Ok(written) = tokio::time::timeout(
        std::time::Duration::from_secs(1),
        writing.write(&pattern[ahead % pattern.len()..]),
    )
    .await
    {
        ahead += written.unwrap();
        assert!(ahead < BYTES, "{ahead} bytes were taken that nobody read");
    }
    println!("{ahead} bytes lie on the way");
    let send = async {
        while ahead < BYTES {
            let piece = &pattern[ahead % pattern.len()..];
            ahead += writing.write(&piece[..piece.len().min(BYTES - ahead)]).await.unwrap();
        }
        writing.shutdown().await.unwrap();
    };
    let echo = async {
        let (mut from, mut to) = accepted.split();
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let receive = async {
        let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
        loop {
            let read = reading.read(&mut buffer).await.unwrap();
            if read == 0 {
                return at;
            }
            for (offset, byte) in buffer[..read].iter().enumerate() {
                assert_eq!(*byte, pattern[(at + offset) % pattern.len()], "byte {}", at + offset);
            }
            at += read;
        }
    };
    let (_, _, received) = tokio::join!(send, echo, receive);
    assert_eq!(received, BYTES);
    for (sidecar, before) in [&road.front, &road.replicas[0]].into_iter().zip(before) {
        let grown = sidecar.process.resident_bytes().saturating_sub(before);
        println!("{} has grown by {} KiB", sidecar.id, grown >> 10);
        assert!(grown < 8 << 20, "{} has grown by {grown} bytes", sidecar.id);
    }
    road.carried(1).await;
}
