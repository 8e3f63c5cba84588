//! What the real clients do with the real servers, asserted by what comes back: the same with or without a mesh.
//!
//! Each may be done again at the same server.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Daemon, Place, clients, letters};
use crate::component::{Running, bound};
use crate::wait::until;

/// Bytes of each large thing: more than any socket or relay on the way buffers.
pub const LARGE: usize = 4 << 20;
/// Rows, messages and commands sent without waiting.
const MANY: usize = 10_000;

/// What a client says when it succeeds.
///
/// # Panics
/// When it fails.
pub async fn fine(client: Running) -> String {
    let (success, said) = client.finish().await;
    assert!(success, "{}", &said[..said.floor_char_boundary(4000)]);
    said
}

/// Tables written and read, much data in both directions, and an error that is the database's own.
///
/// # Panics
/// When any of it goes wrong.
pub async fn mariadb(place: &Place, to: SocketAddr) {
    let literal = "mesh".repeat(LARGE / 4);
    let statements = format!(
        "use test;
         create or replace table orders (id int primary key, item longtext);
         insert into orders select seq, concat('item ', seq) from seq_1_to_{MANY};
         insert into orders values (0, '{literal}');
         select count(*), sum(id) from orders where id > 0;
         select item = repeat('mesh', {LARGE} / 4) from orders where id = 0;
         select item from orders where id = 0;
         select item from orders where id > 0 order by id;"
    );
    let said = fine(clients::mariadb(place, to, &statements)).await;
    let mut lines = said.lines();
    let sum = MANY * (MANY + 1) / 2;
    assert_eq!(lines.next(), Some(format!("{MANY}\t{sum}").as_str()));
    assert_eq!(lines.next(), Some("1"), "what was sent arrived as it was");
    assert!(lines.next() == Some(literal.as_str()), "what was read is what was sent");
    assert!(lines.eq((1..=MANY).map(|id| format!("item {id}"))));
    let (success, said) = clients::mariadb(place, to, "select * from test.nothing").finish().await;
    assert!(!success && said.contains("ERROR 1146"), "{said}");
}

/// COPY in and out, a large value, a notification that comes by itself, and an error that is the database's own.
/// `options` are more of the connection string.
///
/// # Panics
/// When any of it goes wrong.
pub async fn postgres(place: &Place, to: SocketAddr, options: &str) {
    let rows: String = (1..=MANY).fold(String::new(), |mut rows, id| {
        let _never_fails = writeln!(rows, "{id}\titem {id}");
        rows
    });
    let literal = "mesh".repeat(LARGE / 4);
    let statements = format!(
        "drop table if exists orders;
         create table orders (id int primary key, item text);
         copy orders from stdin;\n{rows}\\.
         select count(*), sum(id) from orders;
         copy (select * from orders order by id) to stdout;
         select '{literal}' = repeat('mesh', {LARGE} / 4);
         select repeat('mesh', {LARGE} / 4);
         listen news;
         notify news, 'by itself';
         select 1 / 1;"
    );
    let said = fine(clients::psql(place, to, options, &statements)).await;
    // That there was no such table is said as well.
    let mut lines = said.lines().filter(|line| !line.contains("NOTICE"));
    let sum = MANY * (MANY + 1) / 2;
    assert_eq!(lines.next(), Some(format!("{MANY}|{sum}").as_str()));
    assert!(lines.by_ref().take(MANY).eq(rows.lines()), "what was copied out is what was copied in");
    assert_eq!(lines.next(), Some("t"), "what was sent arrived as it was");
    assert!(lines.next() == Some(literal.as_str()), "what was read is what is there");
    let rest: Vec<_> = lines.collect();
    assert!(rest.iter().any(|line| line.contains("\"news\" with payload \"by itself\"")), "{rest:?}");
    let (success, said) = clients::psql(place, to, options, "select 1 / 0").finish().await;
    assert!(!success && said.contains("division by zero"), "{said}");
}

/// Commands one by one and many at once, a large value, and a message that comes by itself.
///
/// # Panics
/// When any of it goes wrong.
pub async fn redis(place: &Place, to: SocketAddr) {
    let said =
        fine(clients::redis(place, to, "set greeting hello\nget greeting\nincr nothing:at:all\nping\n"))
            .await;
    assert!(said.starts_with("OK\nhello\n") && said.ends_with("PONG\n"), "{said}");

    let pipeline = (0..MANY).fold(String::new(), |mut pipeline, number| {
        let value = format!("value {number}");
        let key = format!("key:{number}");
        let (key_length, length) = (key.len(), value.len());
        let _never_fails =
            write!(pipeline, "*3\r\n$3\r\nSET\r\n${key_length}\r\n{key}\r\n${length}\r\n{value}\r\n");
        pipeline
    });
    let said = fine(clients::redis_with(place, to, &["--pipe"], &pipeline)).await;
    assert!(said.contains(&format!("errors: 0, replies: {MANY}")), "{said}");
    let last = MANY - 1;
    assert_eq!(
        fine(clients::redis(place, to, &format!("get key:{last}\n"))).await,
        format!("value {last}\n")
    );

    let large = "mesh".repeat(LARGE / 4);
    assert_eq!(fine(clients::redis_with(place, to, &["-x", "set", "large"], &large)).await, "OK\n");
    let said = fine(clients::redis(place, to, "get large\n")).await;
    assert!(said.trim_end() == large, "what was read is what was sent");

    let mut subscriber = clients::redis_with(place, to, &["subscribe", "news"], "");
    heard(&mut subscriber, "subscribe\nnews\n1\n").await;
    assert_eq!(fine(clients::redis(place, to, "publish news hello\n")).await, "1\n");
    heard(&mut subscriber, "message\nnews\nhello\n").await;
}

/// Waits until a running client has written something.
///
/// # Panics
/// When it ends without.
pub async fn heard(client: &mut Running, what: &str) {
    until(&format!("a client hears {what:?}"), || {
        let said = client.output();
        assert!(client.ended().is_none() || said.contains(what), "it ended: {said}");
        async move { said.contains(what) }
    })
    .await;
}

/// Many messages from one connection to another, in order, large ones, and requests with replies.
///
/// # Panics
/// When any of it goes wrong.
pub async fn nats(place: &Place, to: SocketAddr) {
    for (count, size, requests) in [(MANY, 100, 20), (LARGE >> 20, 1 << 20, 0)] {
        let order = json!({"subject": "shop.orders", "count": count, "size": size, "requests": requests});
        let said = fine(clients::nats(place, to, &order)).await;
        let found: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert_eq!(found, json!({"received": count, "bytes": count * size, "answers": requests}));
    }
}

/// Letters from two clients, delivered as they were sent.
///
/// # Panics
/// When any of it goes wrong.
pub async fn smtp(place: &Place, to: SocketAddr, server: &Daemon) {
    let before = letters(server).len();
    let text: String = (0..MANY).fold(String::new(), |mut text, line| {
        // A line that begins with a dot is one that SMTP has to take care of: RFC 5321 section 4.5.2.
        let _never_fails = writeln!(text, ".line {line}");
        text
    });
    let short = "Subject: short\n\nhello\n";
    let long = format!("Subject: long\n\n{text}");
    fine(clients::msmtp(place, to, &["ann@shop.mesh", "bob@shop.mesh"], short)).await;
    fine(clients::msmtp(place, to, &["cleo@shop.mesh"], &long)).await;
    let mut curl = bound(&place.prefix, std::path::Path::new("curl"));
    curl.args(["--silent", "--show-error", "--upload-file", "-", "--mail-from", "dan@shop.mesh"]);
    curl.args(["--mail-rcpt", "eve@shop.mesh", &format!("smtp://{to}")]);
    fine(clients::spawn(place, curl, short)).await;
    // The server has said yes to all three, and what delivers them is its child.
    until("all letters are delivered", || async { letters(server).len() == before + 3 }).await;
    let letters = letters(server);
    let one = |start: &str| {
        let letter = letters.iter().find(|letter| letter.starts_with(start));
        letter.unwrap_or_else(|| panic!("{start}: {letters:?}")).replace("\r\n", "\n")
    };
    assert!(one("for ann@shop.mesh bob@shop.mesh\n").ends_with(short));
    assert!(one("for cleo@shop.mesh\n").ends_with(&format!("\n\n{text}")), "as it was sent");
    // curl adds an empty line.
    assert!(one("for eve@shop.mesh\n").trim_end().ends_with(short.trim_end()));
}
