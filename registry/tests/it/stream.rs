//! The watch protocol on the wire.

use outrigger_api::v1;
use outrigger_api::v1::watch_request::Message as Asked;
use tonic::Code;

use crate::harness::{Mesh, hello, refused, soon, until, workload};

#[tokio::test]
async fn only_what_was_subscribed_to_is_sent_and_nothing_after_unsubscribing() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["a", "b", "c"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["a.shop", "b.shop"]).await;
    for (id, name) in [("c1", "c.shop"), ("b1", "b.shop"), ("a1", "a.shop")] {
        server.register(workload(id, name, 80)).await.unwrap();
    }
    watcher.until("a.shop", |service| service.is_some()).await;
    watcher.until("b.shop", |service| service.is_some()).await;
    assert!(!watcher.held.contains_key("c.shop"));
    watcher.subscribe(&["c.shop"], &["b.shop"]).await;
    watcher.until("c.shop", |service| service.is_some()).await;
    server.register(workload("b2", "b.shop", 80)).await.unwrap();
    server.register(workload("a2", "a.shop", 80)).await.unwrap();
    watcher.until("a.shop", |service| service.is_some_and(|s| s.endpoints.len() == 2)).await;
    assert_eq!(watcher.workloads("b.shop"), ["b1"], "nothing more about what it gave up");
}

#[tokio::test]
async fn a_returning_sidecar_hears_only_what_changed() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["a", "b"]).await;
    for (id, name) in [("a1", "a.shop"), ("b1", "b.shop")] {
        server.register(workload(id, name, 80)).await.unwrap();
    }
    let front = mesh.sidecar("shop", "front", &[]).await;
    let watcher = front.watch(&["a.shop", "b.shop"]).await;
    assert!(!watcher.welcome.resumed);
    let (cursor, store) = (watcher.cursor.clone(), watcher.welcome.store_id.clone());
    drop(watcher);
    until("the stream is gone", || async { mesh.metric("mesh_registry_streams").await == 0.0 }).await;
    let mut same = front.hello(hello(&cursor, &["a.shop", "b.shop"])).await.unwrap();
    assert!(same.welcome.resumed && same.welcome.store_id == store);
    assert_eq!(same.update().await.changes, [], "nothing changed, and that is said");
    server.register(workload("b2", "b.shop", 80)).await.unwrap();
    let mut later = front.hello(hello(&cursor, &["a.shop", "b.shop", "gone.shop"])).await.unwrap();
    later.update().await;
    assert!(!later.held.contains_key("a.shop"));
    assert_eq!(later.workloads("b.shop"), ["b1", "b2"]);
    assert_eq!(later.held["gone.shop"], None);
}

#[tokio::test]
async fn a_cursor_of_another_store_or_of_the_future_gets_everything() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["a"]).await;
    server.register(workload("a1", "a.shop", 80)).await.unwrap();
    let front = mesh.sidecar("shop", "front", &[]).await;
    let mut future = u64::MAX.to_be_bytes().to_vec();
    future.extend(front.watch(&[]).await.welcome.store_id.bytes());
    for cursor in [b"\0\0\0\0\0\0\0\x01another".to_vec(), future, b"rubbish".to_vec()] {
        let mut watcher = front.hello(hello(&cursor, &["a.shop"])).await.unwrap();
        assert!(!watcher.welcome.resumed);
        watcher.update().await;
        assert_eq!(watcher.workloads("a.shop"), ["a1"]);
        assert!(watcher.sampling.is_some());
    }
}

#[tokio::test]
async fn a_stream_that_does_not_acknowledge_gets_the_latest_when_it_does() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["a"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["a.shop"]).await;
    const ROUNDS: usize = 60;
    for n in 0..ROUNDS {
        server.register(workload(&format!("w{n:02}"), "a.shop", 80)).await.unwrap();
    }
    let mut updates = 0;
    while watcher.held["a.shop"].as_ref().is_none_or(|service| service.endpoints.len() < ROUNDS) {
        let update = watcher.update_unacknowledged().await;
        updates += 1;
        if updates == 16 {
            watcher.ack(update.nonce).await;
        }
    }
    assert!(updates < ROUNDS, "{updates} updates for {ROUNDS} changes");
}

#[tokio::test]
async fn a_refused_resource_is_counted_and_sent_whole_next_time() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["a"]).await;
    server.register(workload("a1", "a.shop", 80)).await.unwrap();
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["a.shop"]).await;
    let nack = v1::Nack { nonce: 2, resource: "Service/a.shop".into(), reason: "too new".into() };
    watcher.ask(Asked::Nack(nack)).await;
    until("it is counted", || async { mesh.metric("mesh_registry_nacks_total").await == 1.0 }).await;
    server.register(workload("a2", "a.shop", 80)).await.unwrap();
    let update = watcher.update().await;
    assert!(matches!(update.changes[0].change, Some(v1::change::Change::Service(_))), "{update:?}");
}

#[tokio::test]
async fn a_full_stream_may_remove_services() {
    let mesh = Mesh::start("").await;
    let names: Vec<_> = (0..10_000).map(|n| format!("s{n}.shop")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let front = mesh.sidecar("shop", "front", &[]).await;
    let mut watcher = front.hello(hello(&[], &names)).await.unwrap();
    watcher.update().await;
    watcher.subscribe(&["new.shop"], &names[..1]).await;
    watcher.update().await;
    assert_eq!(watcher.held.get("new.shop"), Some(&None));
}

#[tokio::test]
async fn streams_that_break_the_protocol_are_told_why() {
    let mesh = Mesh::start("").await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let old = v1::Hello { protocol_version: 99, ..hello(&[], &[]) };
    refused(front.hello(old).await.map(|_| ()), Code::FailedPrecondition, "version 99");
    let many: Vec<_> = (0..10_001).map(|n| format!("s{n}.shop")).collect();
    let many = v1::Hello { services: many, ..hello(&[], &[]) };
    refused(front.hello(many).await.map(|_| ()), Code::ResourceExhausted, "10000");
    refused(front.hello(hello(&[], &["Bad"])).await.map(|_| ()), Code::InvalidArgument, "Bad");
    let mut twice = front.watch(&[]).await;
    twice.ask(Asked::Hello(hello(&[], &[]))).await;
    assert_eq!(twice.end().await.code(), Code::InvalidArgument);
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    requests.send(v1::WatchRequest { message: Some(Asked::Ack(v1::Ack { nonce: 1 })) }).await.unwrap();
    let mut client = v1::discovery_client::DiscoveryClient::new(front.channel.clone());
    let stream = client.watch(tokio_stream::wrappers::ReceiverStream::new(stream)).await.unwrap();
    refused(soon("end", stream.into_inner().message()).await, Code::InvalidArgument, "Hello");
    until("no stream is left", || async { mesh.metric("mesh_registry_streams").await == 0.0 }).await;
}

#[tokio::test]
async fn streams_end_when_the_registry_stops() {
    let mesh = Mesh::start("").await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["a.shop"]).await;
    let (end, ()) = tokio::join!(watcher.end(), mesh.stop());
    assert_eq!(end.code(), Code::Unavailable, "{end:?}");
}
