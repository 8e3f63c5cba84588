//! Requests of HTTP/1 in every form that two parsers might read differently: refused, or forwarded in
//! one form.

use outrigger_tests::wait::until;

use crate::pair::Pair;
use crate::table::ROWS;

/// One thing a client sends, on a connection of its own.
#[derive(Debug)]
pub(crate) struct Row {
    /// What is special about it.
    pub(crate) what: &'static str,
    pub(crate) send: &'static [u8],
    /// Its responses: statuses, with the mesh's reason where there is one.
    pub(crate) gets: &'static [(u16, &'static str)],
    /// Whether the connection ends after them; else it is good for more.
    pub(crate) ends: bool,
    /// What the application receives, without the headers that every request gets.
    pub(crate) upstream: Upstream,
}

#[derive(Debug)]
pub(crate) enum Upstream {
    Nothing,
    /// These, and no byte more.
    Whole(&'static [&'static [u8]]),
    /// Nothing, or the beginning of this, broken off: never all of it.
    Part(&'static [u8]),
}

#[tokio::test]
async fn what_two_parsers_might_read_differently_is_refused_or_forwarded_in_one_form() {
    let pair = Pair::start().await;
    let mut failed = Vec::new();
    for row in ROWS {
        if let Err(why) = check(&pair, row).await {
            failed.push(format!("{}: {why}", row.what));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test]
async fn what_the_library_refuses_by_itself_is_explained_and_counted() {
    let pair = Pair::start().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: orders.shop\r\n\r\n", "a".repeat(70_000));
    let large = format!("GET / HTTP/1.1\r\nhost: orders.shop\r\nx: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nhost: orders.shop\r\n{}\r\n", "x: 1\r\n".repeat(200));
    for (send, statuses) in
        [("GET /a\r\n\r\n".to_owned(), &[400][..]), (long, &[414, 431]), (large, &[431]), (many, &[431])]
    {
        let mut raw = pair.connect().await;
        raw.send(send.as_bytes()).await;
        let response = raw.response("GET").await.unwrap();
        assert!(statuses.contains(&response.status), "{}", response.head);
        assert_eq!(response.header("x-mesh-reason"), Some("bad_request"), "{}", response.head);
        raw.rest().await;
    }
    until("all four are counted", || async {
        let labels = [("reason", "bad_request"), ("destination", "unknown")];
        pair.front.metrics().await.sum("mesh_requests_total", &labels) == 4.0
    })
    .await;
    assert!(pair.received().await.is_empty());
}

async fn check(pair: &Pair, row: &Row) -> Result<(), String> {
    let mut raw = pair.connect().await;
    raw.send(row.send).await;
    for wanted in row.gets {
        let got = raw.response("GET").await.map_err(|end| format!("{end:?}, not {wanted:?}"))?;
        let reason = got.header("x-mesh-reason").unwrap_or_default();
        // Behind a response that is still being written, a refusal of the library's is bare.
        if got.status != wanted.0 || (wanted.1 != "?" && reason != wanted.1) {
            return Err(format!("{}, not {wanted:?}", got.head));
        }
    }
    if row.ends {
        let (rest, _) = raw.rest().await;
        if !rest.is_empty() {
            return Err(format!("and more: {:?}", String::from_utf8_lossy(&rest)));
        }
    } else {
        raw.send(b"GET /more HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
        let more = raw.response("GET").await.map_err(|end| format!("{end:?} instead of another response"))?;
        if more.status != 200 {
            return Err(format!("{} to another request", more.head));
        }
    }
    let mut received = pair.received().await;
    received.retain(|one| !one.bytes.starts_with(b"GET /more "));
    let as_wanted = match &row.upstream {
        Upstream::Nothing => received.is_empty(),
        Upstream::Whole(wanted) => {
            received.len() == wanted.len()
                && received.iter().zip(*wanted).all(|(got, wanted)| got.whole && got.bytes == *wanted)
        }
        Upstream::Part(of) => match &received[..] {
            [] => true,
            [got] => !got.whole && got.bytes.len() < of.len() && of.starts_with(&got.bytes),
            _ => false,
        },
    };
    let show =
        |one: &crate::upstream::Received| format!("{} {:?}", one.whole, String::from_utf8_lossy(&one.bytes));
    if as_wanted { Ok(()) } else { Err(received.iter().map(show).collect::<Vec<_>>().join(", ")) }
}
