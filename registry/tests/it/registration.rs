//! Who may register what, and for how long it is believed.

use std::time::Instant;

use outrigger_api::v1;
use outrigger_api::v1::Protocol;
use tonic::Code;

use crate::harness::{Mesh, refused, served, until, workload};

#[tokio::test]
async fn a_subscriber_hears_of_registration_health_and_deregistration() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    assert_eq!(watcher.held["orders.shop"], None, "unknown at once");
    let lease = server.register(workload("w1", "orders.shop", 80)).await.unwrap();
    assert_eq!(lease.ttl_ms, 10_000);
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 1)).await;
    let service = watcher.held["orders.shop"].clone().unwrap();
    let endpoint = &service.endpoints[0];
    assert_eq!(endpoint.identity, "spiffe://mesh.local/ns/shop/sa/orders");
    assert_eq!((endpoint.workload.as_str(), endpoint.port, endpoint.mesh_port), ("w1", 80, 15008));
    assert!(endpoint.healthy && service.ports[0].protocol() == Protocol::Http1);
    assert_eq!(server.renew(&lease.lease, &[false]).await.unwrap(), 10_000);
    watcher.until("orders.shop", |service| service.is_some_and(|s| !s.endpoints[0].healthy)).await;
    let begun = Instant::now();
    let (answer, _) = tokio::join!(server.deregister(&lease.lease, 5000), async {
        watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.is_empty())).await;
        println!("removal reached the subscriber after {:?}", begun.elapsed());
    });
    println!("deregistration took {:?}", begun.elapsed());
    let answer = answer.unwrap();
    assert_eq!((answer.subscribers, answer.acknowledged), (1, 1));
    refused(server.renew(&lease.lease, &[true]).await, Code::NotFound, "register again");
}

#[tokio::test]
async fn a_workloads_weight_reaches_subscribers() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    for weight in [0, 1, 1000] {
        let request = v1::RegisterRequest { weight, ..workload("w1", "orders.shop", 80) };
        server.register(request).await.unwrap();
        watcher.until("orders.shop", |s| s.is_some_and(|s| s.endpoints[0].weight == weight)).await;
    }
}

#[tokio::test]
async fn deregistration_waits_for_a_silent_subscriber_only_so_long() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let lease = server.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    let mut silent = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let _unconcerned = mesh.sidecar("shop", "back", &[]).await.watch(&["other.shop"]).await;
    let answer = server.deregister(&lease, 100).await.unwrap();
    assert_eq!((answer.subscribers, answer.acknowledged), (1, 0));
    silent.update_unacknowledged().await;
    assert_eq!(silent.workloads("orders.shop"), Vec::<String>::new());
}

#[tokio::test]
async fn a_workload_that_falls_silent_is_gone_after_its_time() {
    let mesh = Mesh::start("lease_ttl: 1s\n").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let kept = server.register(workload("kept", "orders.shop", 80)).await.unwrap().lease;
    server.register(workload("lost", "orders.shop", 80)).await.unwrap();
    let begun = Instant::now();
    let (renewing, stop) = tokio::sync::oneshot::channel::<()>();
    let keep = async {
        let mut stop = stop;
        while tokio::time::timeout(std::time::Duration::from_millis(250), &mut stop).await.is_err() {
            server.renew(&kept, &[true]).await.unwrap();
        }
    };
    let watch = async {
        watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 2)).await;
        watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 1)).await;
        renewing.send(()).unwrap();
    };
    tokio::join!(keep, watch);
    println!("gone after {:?}", begun.elapsed());
    assert!(begun.elapsed().as_millis() >= 900, "{:?}", begun.elapsed());
    assert_eq!(watcher.workloads("orders.shop"), ["kept"]);
    assert_eq!(mesh.metric("mesh_registry_leases_expired_total").await, 1.0);
}

#[tokio::test]
async fn services_that_were_not_granted_are_refused() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    for name in ["payments.shop", "orders.other"] {
        refused(sidecar.register(workload("w1", name, 80)).await, Code::PermissionDenied, "outrigger token");
    }
    let caller = v1::RegisterRequest { ports: vec![], ..workload("w1", "x.y", 1) };
    sidecar.register(caller).await.unwrap();
    // A second token for the same identity adds to what it may register.
    let second = mesh.sidecar("shop", "orders", &["payments"]).await;
    for name in ["payments.shop", "orders.shop"] {
        second.register(workload("w2", name, 80)).await.unwrap();
    }
}

#[tokio::test]
async fn another_identity_may_neither_take_over_nor_renew_nor_remove() {
    let mesh = Mesh::start("").await;
    let owner = mesh.sidecar("shop", "orders", &["orders"]).await;
    let other = mesh.sidecar("shop", "thief", &["orders"]).await;
    let lease = owner.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    refused(other.register(workload("w1", "orders.shop", 80)).await, Code::PermissionDenied, "belongs to");
    refused(other.renew(&lease, &[true]).await, Code::PermissionDenied, "another identity");
    refused(other.deregister(&lease, 0).await, Code::PermissionDenied, "another identity");
    owner.renew(&lease, &[true]).await.unwrap();
    for bad in ["", "w1", "w1/", "w1/0000000000000000", "w2/0000000000000001"] {
        refused(owner.renew(bad, &[true]).await, Code::NotFound, "register again");
    }
    // The owner itself may register again: the old lease no longer counts.
    let again = owner.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    refused(owner.renew(&lease, &[true]).await, Code::NotFound, "register again");
    owner.renew(&again, &[true]).await.unwrap();
}

#[tokio::test]
async fn an_id_belongs_to_its_namespace_alone() {
    let mesh = Mesh::start("").await;
    let first = mesh.sidecar("other", "squatter", &["orders"]).await;
    let second = mesh.sidecar("shop", "orders", &["orders"]).await;
    let others = first.register(workload("w1", "orders.other", 80)).await.unwrap().lease;
    let own = second.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop", "orders.other"]).await;
    for name in ["orders.shop", "orders.other"] {
        watcher.until(name, |service| service.is_some_and(|s| s.endpoints.len() == 1)).await;
        assert_eq!(watcher.workloads(name), ["w1"]);
    }
    refused(second.renew(&others, &[true]).await, Code::NotFound, "register again");
    second.renew(&own, &[true]).await.unwrap();
    second.deregister(&own, 0).await.unwrap();
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.is_empty())).await;
    assert_eq!(watcher.workloads("orders.other"), ["w1"]);
}

#[tokio::test]
async fn registrations_that_make_no_sense_say_what_would() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let good = || workload("w1", "orders.shop", 80);
    let with = |change: &dyn Fn(&mut v1::RegisterRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    for (request, words) in [
        (with(&|r| r.workload = String::new()), "workload"),
        (with(&|r| r.workload = "a/b".into()), "workload"),
        (with(&|r| r.workload = "a".repeat(254)), "workload"),
        (with(&|r| r.zone = "a b".into()), "zone"),
        (with(&|r| r.address = "host.example".into()), "IP address"),
        (with(&|r| r.address = "0.0.0.0".into()), "connect to"),
        (with(&|r| r.address = "::".into()), "connect to"),
        (with(&|r| r.address = "::ffff:0.0.0.0".into()), "connect to"),
        (with(&|r| r.address = "224.0.0.1".into()), "connect to"),
        (with(&|r| r.mesh_port = 0), "mesh_port"),
        (with(&|r| r.mesh_port = 65536), "mesh_port"),
        (with(&|r| r.weight = 1001), "weight: 1001 is out of range; use 0 to 1000"),
        (with(&|r| r.weight = 65536 + 5), "weight"),
        (with(&|r| r.ports[0].target_port = 0), "target_port"),
        (with(&|r| r.ports[0].port = None), "port"),
        (with(&|r| r.ports[0].port.as_mut().unwrap().number = 70000), "70000"),
        (with(&|r| r.ports[0].port.as_mut().unwrap().name = "A b".into()), "port name"),
        (with(&|r| r.ports[0].port.as_mut().unwrap().protocol = 99), "protocol 99"),
        (with(&|r| r.ports[0].service = "orders".into()), "service"),
        (with(&|r| r.ports.push(r.ports[0].clone())), "twice"),
        (with(&|r| r.ports = vec![r.ports[0].clone(); 257]), "at most"),
    ] {
        refused(sidecar.register(request).await, Code::InvalidArgument, words);
    }
    let lease = sidecar.register(good()).await.unwrap().lease;
    refused(sidecar.renew(&lease, &[true, true]).await, Code::InvalidArgument, "each port");
}

#[tokio::test]
async fn ports_add_up_and_contradictions_are_refused_while_the_other_lives() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let first = sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    sidecar.register(workload("w2", "orders.shop", 81)).await.unwrap();
    let mut grpc = workload("w3", "orders.shop", 80);
    grpc.ports = vec![served("orders.shop", 80, Protocol::Grpc)];
    refused(
        sidecar.register(grpc.clone()).await,
        Code::FailedPrecondition,
        "http1 to workload w1, but grpc here",
    );
    sidecar.deregister(&first, 0).await.unwrap();
    sidecar.register(grpc).await.unwrap();
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    watcher.until("orders.shop", |s| s.is_some_and(|s| s.endpoints.len() == 2)).await;
    let ports = &watcher.held["orders.shop"].as_ref().unwrap().ports;
    let ports: Vec<_> = ports.iter().map(|port| (port.number, port.protocol())).collect();
    assert_eq!(ports, [(80, Protocol::Grpc), (81, Protocol::Http1)]);
}

#[tokio::test]
async fn who_declares_no_protocol_contradicts_nobody() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let with = |id: &str, protocol| {
        let mut request = workload(id, "orders.shop", 80);
        request.ports = vec![served("orders.shop", 80, protocol)];
        request
    };
    // Replicas may declare it one after the other.
    let first = sidecar.register(with("w1", Protocol::Unspecified)).await.unwrap().lease;
    sidecar.register(with("w2", Protocol::Http1)).await.unwrap();
    let third = sidecar.register(with("w3", Protocol::Unspecified)).await.unwrap().lease;
    watcher.until("orders.shop", |s| s.is_some_and(|s| s.endpoints.len() == 3)).await;
    assert_eq!(watcher.held["orders.shop"].as_ref().unwrap().ports[0].protocol(), Protocol::Http1);
    // Who serves it alone may take that back.
    for lease in [first, third] {
        sidecar.deregister(&lease, 0).await.unwrap();
    }
    sidecar.register(with("w2", Protocol::Unspecified)).await.unwrap();
    watcher.until("orders.shop", |s| s.is_some_and(|s| s.ports[0].protocol() == Protocol::Unspecified)).await;
}

#[tokio::test]
async fn a_service_outlives_its_workloads() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let lease = sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    sidecar.deregister(&lease, 0).await.unwrap();
    until("no endpoint", || async {
        mesh.get("/v1/services/shop/orders").await.1["endpoints"] == serde_json::json!([])
    })
    .await;
    let watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    assert_eq!(watcher.workloads("orders.shop"), Vec::<String>::new());
}
