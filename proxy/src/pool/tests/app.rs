//! Connections to the application: which are kept, and what their end means for a request.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::pool::app::{AppLimits, AppPool, Evidence, Verdict};

const LIMITS: AppLimits = AppLimits {
    connect: Duration::from_secs(1),
    idle: Duration::from_secs(3),
    header_bytes: 64 << 10,
    max_age: Duration::from_secs(600),
};

/// A pool, and the application it leads to.
async fn pool() -> (AppPool, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (AppPool::new(listener.local_addr().unwrap(), LIMITS, Tasks::current()), listener)
}

/// Reads one request.
async fn read(tcp: &mut TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(tcp.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn a_connection_that_has_been_idle_is_not_for_what_may_not_be_repeated() {
    let (pool, listener) = pool().await;
    let serve = async {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read(&mut tcp).await;
        tcp.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        tcp
    };
    let use_it = async {
        let mut connection = pool.connect().await.unwrap();
        let response = connection.send(get()).await.unwrap();
        assert_eq!(response.status(), 204);
        connection
    };
    let (connection, _tcp) = tokio::join!(use_it, serve);
    pool.give_back(connection);
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(1001)).await;
    assert!(pool.reuse(Reuse::of(false)).await.is_none());
    let kept = pool.reuse(Reuse::of(true)).await.unwrap();
    pool.give_back(kept);
    assert!(pool.reuse(Reuse::of(false)).await.is_some(), "used just now");
}

#[tokio::test]
async fn a_failed_request_knows_whether_the_application_had_begun_to_answer() {
    for (answer, answered) in [("", false), ("HTTP/1.1 2", true)] {
        let (pool, listener) = pool().await;
        let serve = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            read(&mut tcp).await;
            tcp.write_all(answer.as_bytes()).await.unwrap();
        };
        let failing = async { pool.connect().await.unwrap().send(get()).await.unwrap_err() };
        let (failed, ()) = tokio::join!(failing, serve);
        assert!(failed.unsent.is_none());
        assert_eq!(failed.answered, answered, "{answer:?}");
    }
}

#[test]
fn only_the_end_of_a_kept_connection_sends_a_request_again() {
    for bits in 0..32 {
        let bit = |n: u8| bits & (1 << n) != 0;
        let evidence = Evidence {
            unsent: bit(0),
            refused: bit(1),
            reused: bit(2),
            answered: bit(3),
            repeatable: bit(4),
        };
        let verdict = evidence.verdict();
        if verdict == Verdict::Again {
            assert!(evidence.reused, "{evidence:?}");
            assert!(evidence.unsent || (evidence.repeatable && !evidence.answered), "{evidence:?}");
        }
        // What is called undelivered is.
        assert!(verdict != Verdict::Unsent || evidence.unsent, "{evidence:?}");
        assert!(verdict != Verdict::Refused || evidence.refused, "{evidence:?}");
        // And nothing that need not is called lost.
        if verdict == Verdict::Reset {
            assert!(!evidence.unsent && !evidence.refused, "{evidence:?}");
            let kept = evidence.reused && evidence.repeatable && !evidence.answered;
            assert!(!kept, "{evidence:?}");
        }
    }
}

#[tokio::test]
async fn connections_of_the_mesh_have_a_time_for_acknowledgements() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    crate::pool::pulse::end_when_unacknowledged(&tcp);
    assert_eq!(rustix::net::sockopt::tcp_user_timeout(&tcp).unwrap(), 5000);
}
