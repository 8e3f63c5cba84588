//! What an error proves about delivery, with peers that refuse in every way HTTP/2 has.

use ::h2::Reason;
use ::h2::server::{Connection, SendResponse};
use tokio::io::AsyncWriteExt;

use super::*;
use crate::pool::undelivered;

type Peer = Connection<DuplexStream, Bytes>;

/// Sends one request to a peer and returns how it failed.
async fn failure(peer: impl AsyncFnOnce(Peer, SendResponse<Bytes>)) -> ::h2::Error {
    let (place, mut accepted) = Place::new(TERMS);
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let end = accepted.recv().await.unwrap();
    let serve = async {
        let mut connection = ::h2::server::handshake(end).await.unwrap();
        let (_, respond) = connection.accept().await.unwrap().unwrap();
        peer(connection, respond).await;
    };
    let (result, ()) = tokio::join!(send(&stream), serve);
    result.unwrap_err()
}

#[tokio::test(start_paused = true)]
async fn a_refused_stream_was_not_delivered() {
    let error = failure(async |mut peer, mut respond| {
        respond.send_reset(Reason::REFUSED_STREAM);
        let _ended = tokio::time::timeout(Duration::from_secs(1), peer.accept()).await;
    })
    .await;
    assert!(undelivered(&error), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_reset_for_any_other_reason_may_have_been_delivered() {
    for reason in [
        Reason::NO_ERROR,
        Reason::PROTOCOL_ERROR,
        Reason::INTERNAL_ERROR,
        Reason::STREAM_CLOSED,
        Reason::CANCEL,
        Reason::ENHANCE_YOUR_CALM,
        Reason::HTTP_1_1_REQUIRED,
    ] {
        let error = failure(async |mut peer, mut respond| {
            respond.send_reset(reason);
            let _ended = tokio::time::timeout(Duration::from_secs(1), peer.accept()).await;
        })
        .await;
        assert!(!undelivered(&error), "{reason:?}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_ends_without_a_word_may_have_delivered() {
    let error = failure(async |peer, respond| drop((peer, respond))).await;
    assert!(!undelivered(&error), "{error:?}");
}

/// A peer of bytes: its preface, then `goaway` once a request is there, then the end.
async fn goaway(last_stream: u32, reason: u32) -> ::h2::Error {
    let (place, mut accepted) = Place::new(TERMS);
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let mut end = accepted.recv().await.unwrap();
    let serve = async {
        // Empty SETTINGS (RFC 9113 section 6.5).
        end.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        until_headers(&mut end).await;
        // GOAWAY (RFC 9113 section 6.8): 8 bytes, type 7, on stream 0.
        let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
        frame.extend(last_stream.to_be_bytes());
        frame.extend(reason.to_be_bytes());
        end.write_all(&frame).await.unwrap();
        drop(end);
    };
    let (result, ()) = tokio::join!(send(&stream), serve);
    result.unwrap_err()
}

/// Reads the client's preface and frames up to its first HEADERS.
async fn until_headers(end: &mut DuplexStream) {
    use tokio::io::AsyncReadExt;
    let mut preface = [0; 24];
    end.read_exact(&mut preface).await.unwrap();
    loop {
        let mut head = [0; 9];
        end.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        end.read_exact(&mut payload).await.unwrap();
        if head[3] == 1 {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_above_the_last_of_a_goaway_was_not_delivered_whatever_the_reason() {
    for reason in [0, 1, 2, 11] {
        let error = goaway(0, reason).await;
        assert!(undelivered(&error), "{reason}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_up_to_the_last_of_a_goaway_may_have_been_delivered() {
    for (last, reason) in [(1, 0), (1, 2), ((1 << 31) - 1, 0)] {
        let error = goaway(last, reason).await;
        assert!(!undelivered(&error), "{last} {reason}: {error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_error_of_our_own_making_proves_nothing() {
    // A HEADERS frame on stream 0 breaks the protocol: our side ends the connection with a GOAWAY.
    let (place, mut accepted) = Place::new(TERMS);
    let stream = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let mut end = accepted.recv().await.unwrap();
    let serve = async {
        end.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
        until_headers(&mut end).await;
        end.write_all(&[0, 0, 1, 1, 4, 0, 0, 0, 0, 0x88]).await.unwrap();
        end
    };
    let (result, _end) = tokio::join!(send(&stream), serve);
    let error = result.unwrap_err();
    assert!(!undelivered(&error), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_connection_told_to_go_takes_no_new_request_and_finishes_its_own() {
    let (place, mut accepted) = Place::new(TERMS);
    let first = place.acquire(&limits(), Reuse::Any).await.unwrap();
    let end = accepted.recv().await.unwrap();
    let serve = async {
        let mut peer = ::h2::server::handshake(end).await.unwrap();
        let (_, mut respond) = peer.accept().await.unwrap().unwrap();
        peer.graceful_shutdown();
        let answer = async {
            // Once the GOAWAY is there, others are sent elsewhere.
            while place.set.has_room(Reuse::Any) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            respond.send_response(Response::new(()), true).unwrap();
        };
        tokio::join!(answer, async { while peer.accept().await.is_some() {} });
    };
    let (result, ()) = tokio::join!(send(&first), serve);
    assert!(result.unwrap().status().is_success());
    let second = place.acquire(&limits(), Reuse::Any).await.unwrap();
    assert_eq!(place.made(), 2);
    drop(second);
}
