//! Responses of HTTP/1 that are malformed, or break: what the client gets.

use crate::client::End;
use crate::pair::Pair;
use crate::upstream::Answer;

const POST: &[u8] = b"POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_response_that_two_parsers_might_read_differently_is_an_error() {
    let pair = Pair::start().await;
    for (what, bytes) in [
        ("two lengths", &b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc"[..]),
        ("a list of lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nabc"),
        ("a folded header", b"HTTP/1.1 200 OK\r\nx-a: 1\r\n 2\r\ncontent-length: 0\r\n\r\n"),
        ("a space before a colon", b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n"),
        ("a NUL in a value", b"HTTP/1.1 200 OK\r\nx-a: 1\x002\r\ncontent-length: 0\r\n\r\n"),
        ("no status", b"HTTP/1.1 OK\r\n\r\n"),
        ("a status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
        ("another protocol", b"ICY 200 OK\r\n\r\n"),
        ("no head", b"hello\r\n\r\n"),
    ] {
        pair.upstream.answers(Answer { bytes: bytes.to_vec(), closes: true, ..Answer::default() });
        let mut raw = pair.connect().await;
        raw.send(POST).await;
        let response = raw.response("POST").await.unwrap();
        let reason = response.header("x-mesh-reason");
        assert_eq!((response.status, reason), (502, Some("app_reset")), "{what}: {}", response.head);
    }
}

#[tokio::test]
async fn interim_responses_end_here_and_the_final_one_passes() {
    let pair = Pair::start().await;
    for interim in ["100 Continue", "102 Processing", "103 Early Hints\r\nlink: </a>"] {
        let bytes = format!("HTTP/1.1 {interim}\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        pair.upstream.answers(Answer { bytes: bytes.into(), ..Answer::default() });
        let mut raw = pair.connect().await;
        raw.send(POST).await;
        let response = raw.response("POST").await.unwrap();
        assert_eq!((response.status, &response.body[..]), (200, &b"ok"[..]), "{interim}");
    }
}

#[tokio::test]
async fn an_early_final_status_arrives_although_the_body_is_awaited() {
    let pair = Pair::start().await;
    let bytes =
        b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig".to_vec();
    pair.upstream.answers(Answer { bytes, early: true, ..Answer::default() });
    let mut raw = pair.connect().await;
    raw.send(b"POST / HTTP/1.1\r\nhost: orders.shop\r\nexpect: 100-continue\r\ncontent-length: 1000\r\n\r\n")
        .await;
    let mut response = raw.response("POST").await.unwrap();
    if response.status == 100 {
        response = raw.response("POST").await.unwrap();
    }
    assert_eq!((response.status, &response.body[..]), (413, &b"big"[..]));
}

#[tokio::test]
async fn a_part_of_a_response_never_passes_for_all_of_it() {
    let pair = Pair::start().await;
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\npart\r\n";
    let whole = format!("{chunked}0\r\n\r\n");
    let old = b"GET / HTTP/1.0\r\nhost: orders.shop\r\n\r\n";
    // To a client of HTTP/1.0 the end of the connection is the end of the response.
    pair.upstream.answers(Answer { bytes: whole.into(), ..Answer::default() });
    let mut raw = pair.connect().await;
    raw.send(old).await;
    let response = raw.response("GET").await.unwrap();
    assert_eq!((response.status, &response.body[..]), (200, &b"part"[..]));
    assert!(response.header("content-length").is_none() && response.header("transfer-encoding").is_none());
    pair.upstream.answers(Answer { bytes: chunked.into(), closes: true, ..Answer::default() });
    let mut raw = pair.connect().await;
    raw.send(old).await;
    let (got, end) = raw.rest().await;
    assert_eq!(end, End::Reset, "{}", String::from_utf8_lossy(&got));
    // To one of HTTP/1.1 the last chunk is.
    let mut raw = pair.connect().await;
    raw.send(b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
    let (got, _) = raw.rest().await;
    assert!(!got.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&got));
}

#[tokio::test]
async fn a_response_without_a_body_keeps_the_connection_in_step() {
    let pair = Pair::start().await;
    for (method, bytes, status) in [
        ("GET", &b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"[..], 304),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", 304),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200),
    ] {
        let what = String::from_utf8_lossy(bytes);
        let mut raw = pair.connect().await;
        pair.upstream.answers(Answer { bytes: bytes.to_vec(), ..Answer::default() });
        raw.send(format!("{method} /empty HTTP/1.1\r\nhost: orders.shop\r\n\r\n").as_bytes()).await;
        let response = raw.response(method).await.unwrap();
        assert_eq!(response.status, status, "{what}");
        // What comes next is the next response, to the client and from the application alike.
        pair.upstream.answers(Answer::default());
        for _ in 0..2 {
            raw.send(POST).await;
            let next = raw.response("POST").await.unwrap();
            assert_eq!((next.status, &next.body[..]), (200, &b"ok"[..]), "{what}: {}", next.head);
        }
    }
}

#[tokio::test]
async fn trailers_that_nobody_announced_or_asked_for_end_here() {
    let pair = Pair::start().await;
    let body = "transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 2\r\n\r\n";
    let (announced, unannounced) = (format!("trailer: x-sum\r\n{body}"), body.to_owned());
    let asks = "te: trailers\r\nconnection: te\r\n";
    for (asks, headers, passes) in
        [(asks, &announced, true), ("", &announced, false), (asks, &unannounced, false)]
    {
        pair.upstream
            .answers(Answer { bytes: format!("HTTP/1.1 200 OK\r\n{headers}").into(), ..Answer::default() });
        let mut raw = pair.connect().await;
        for _ in 0..2 {
            raw.send(format!("GET / HTTP/1.1\r\nhost: orders.shop\r\n{asks}\r\n").as_bytes()).await;
            let response = raw.response("GET").await.unwrap();
            let text = String::from_utf8_lossy(&response.body).to_ascii_lowercase();
            assert!(
                response.status == 200 && text.starts_with("2\r\nok\r\n0\r\n"),
                "{asks:?} {headers:?}: {text}"
            );
            assert_eq!(text.contains("x-sum: 2"), passes, "{asks:?} {headers:?}: {text}");
        }
    }
}
