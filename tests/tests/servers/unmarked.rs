//! Services whose protocol nobody declared.

use outrigger_tests::component::Running;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::servers::{self, Certificate, Daemon, Place, clients, work};
use outrigger_tests::wait::until;

use crate::road::{Road, SERVICE};

#[tokio::test]
async fn mariadb_speaks_first() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let server = servers::mariadb(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    work::mariadb(&place, road.at).await;
    // The one that works and the one that fails.
    road.carried(2).await;
    assert_eq!(road.detected("server_first").await, 2.0);
    large_things_were_counted(&road).await;

    let mut asleep = clients::mariadb(&place, road.at, "select 'begun'; select sleep(1000)");
    until("a statement runs", || async {
        let list = "select count(*) from information_schema.processlist where info like '%sleep(1000)%'
                    and id <> connection_id()";
        work::fine(clients::mariadb(&place, road.at, list)).await.trim() == "1"
    })
    .await;
    assert!(asleep.ended().is_none());
    dies_under(server, asleep, "Lost connection").await;
}

/// Waits until bytes of both directions are on both sidecars' pages: a client may have its answer before
/// the last of it is counted.
async fn large_things_were_counted(road: &Road) {
    for (sidecar, direction) in [(&road.front, "outbound"), (&road.replicas[0], "inbound")] {
        let labels = [("direction", direction), ("destination", SERVICE)];
        for name in ["mesh_tcp_received_bytes_total", "mesh_tcp_sent_bytes_total"] {
            until(&format!("{direction} {name} has all"), || async {
                sidecar.metrics().await.sum(name, &labels) > work::LARGE as f64
            })
            .await;
        }
    }
}

/// Kills a server under a client, which must not take that for the end of its answer.
async fn dies_under(mut server: Daemon, client: Running, says: &str) {
    server.kill();
    // Not all of them say it with their exit codes too.
    let (_, said) = client.finish().await;
    assert!(said.contains(says), "{said}");
}

#[tokio::test]
async fn postgres_without_tls_is_asked_for_it_and_says_no() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let server = servers::postgres(&place, None).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    // psql begins with an SSLRequest and goes on in the clear on the same connection.
    work::postgres(&place, road.at, "sslmode=prefer").await;
    road.carried(2).await;
    assert_eq!(road.detected("opaque").await, 2.0);
    // And without.
    let answer = work::fine(clients::psql(&place, road.at, "sslmode=disable", "select 6 * 7")).await;
    assert_eq!(answer, "42\n");
    road.carried(3).await;
    assert_eq!(road.detected("opaque").await, 3.0);
    let (success, said) = clients::psql(&place, road.at, "sslmode=require", "select 1").finish().await;
    assert!(!success && said.contains("server does not support SSL"), "{said}");
    large_things_were_counted(&road).await;
}

#[tokio::test]
async fn postgres_with_tls_is_proven_to_its_client() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let certificate = Certificate::new(SERVICE, mesh.directory());
    let server = servers::postgres(&place, Some(&certificate)).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    let verify = format!("host={SERVICE} sslmode=verify-full sslrootcert={}", certificate.chain.display());
    work::postgres(&place, road.at, &verify).await;
    let own = "select ssl, version from pg_stat_ssl where pid = pg_backend_pid()";
    let said = work::fine(clients::psql(&place, road.at, &verify, own)).await;
    assert_eq!(said, "t|TLSv1.3\n", "the connection is encrypted from psql to the server");
    road.over(3).await;
    assert_eq!(road.detected("opaque").await, 3.0, "what comes after the SSLRequest is nobody's business");
}

#[tokio::test]
async fn redis_is_spoken_to_first() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let server = servers::redis(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    work::redis(&place, road.at).await;
    assert_eq!(road.detected("server_first").await, 0.0);
    assert!(road.detected("opaque").await >= 7.0);
    for http in ["http1", "h2", "tls"] {
        assert_eq!(road.detected(http).await, 0.0, "{http}");
    }
    large_things_were_counted(&road).await;
    // What waits for a reply longer than anybody speaks.
    let mut waits = clients::redis(&place, road.at, "ping\nblpop nothing 0\n");
    work::heard(&mut waits, "PONG\n").await;
    dies_under(server, waits, "Server closed the connection").await;
}

#[tokio::test]
async fn nats_speaks_first() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let server = servers::nats(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    work::nats(&place, road.at).await;
    road.carried(4).await;
    assert_eq!(road.detected("server_first").await, 4.0);
    large_things_were_counted(&road).await;
}

#[tokio::test]
async fn mail_is_delivered() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let server = servers::smtp(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    work::smtp(&place, road.at, &server).await;
    road.carried(3).await;
    assert_eq!(road.detected("server_first").await, 3.0);
}

#[tokio::test]
async fn connections_are_shared_out_over_servers() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let servers = [servers::redis(&place).await, servers::redis(&place).await];
    for (server, name) in servers.iter().zip(["one\n", "two\n"]) {
        work::fine(clients::redis(&place, server.address, &format!("set name {name}"))).await;
    }
    let road = Road::unmarked(&mesh, &servers.each_ref().map(|server| server.address)).await;
    // Connections that stay: each is in flight, so that the server with fewer is as likely as can be.
    let mut clients: Vec<_> =
        (0..20).map(|_| clients::redis(&place, road.at, "get name\nblpop nothing 0\n")).collect();
    let mut counts = [0; 2];
    for client in &mut clients {
        work::heard(client, "\n").await;
        counts[usize::from(client.output().starts_with("two"))] += 1;
    }
    println!("20 connections are shared out as {counts:?}");
    assert!(counts.iter().all(|&count| count >= 5), "{counts:?}");
    // A server that is gone takes its own connections with it, and new ones go to the other.
    drop(clients);
    let [mut one, _two] = servers;
    one.kill();
    for _ in 0..20 {
        assert_eq!(work::fine(clients::redis(&place, road.at, "get name\n")).await, "two\n");
    }
}
