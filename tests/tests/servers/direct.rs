//! What the servers do without a mesh: what it changes shows in comparison alone.

use outrigger_tests::servers::{self, Place, work};

#[tokio::test]
async fn the_clients_find_the_servers_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place::loopback(directory.path());
    let server = servers::mariadb(&place).await;
    work::mariadb(&place, server.address).await;
    let server = servers::postgres(&place, None).await;
    work::postgres(&place, server.address, "").await;
    let server = servers::redis(&place).await;
    work::redis(&place, server.address).await;
    let server = servers::nats(&place).await;
    work::nats(&place, server.address).await;
    let server = servers::smtp(&place).await;
    work::smtp(&place, server.address, &server).await;
}
