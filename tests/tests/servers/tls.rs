//! TLS of the application's own, which the mesh carries and never opens.

use std::net::SocketAddr;

use outrigger_common::tasks::Tasks;
use outrigger_tests::component::{Running, bound};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::servers::{self, Certificate, Daemon, Place, clients, work};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::raw::taken;
use crate::road::{Road, SERVICE};

const SECRET: &str = "for nobody on the way\n";

/// A TLS server of OpenSSL behind the road, with a file to ask for.
async fn server(place: &Place) -> (Certificate, Daemon) {
    let certificate = Certificate::new(SERVICE, &place.directory);
    let server = servers::tls(place, &certificate).await;
    std::fs::write(server.directory.join("secret"), SECRET).unwrap();
    (certificate, server)
}

/// curl asks for the file at `https://host/secret`, connecting to an address of ours, and trusts nothing but the
/// server's own certificate.
fn curl(place: &Place, certificate: &Certificate, host: &str, to: SocketAddr) -> Running {
    let mut curl = bound(&[], std::path::Path::new("curl"));
    curl.args(["--silent", "--show-error", "--connect-to", &format!("{host}:443:{to}")]);
    curl.arg("--cacert").arg(&certificate.chain).arg(format!("https://{host}/secret"));
    clients::spawn(place, curl, "")
}

/// A way to `to` on which the first bytes of a connection arrive one after the other, each after the one before was
/// read, and the rest as it comes.
async fn piecemeal(to: SocketAddr, pieces: &'static [usize]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    Tasks::current().spawn("piecemeal", async move {
        let (mut from, _) = listener.accept().await.unwrap();
        let mut to_front = TcpStream::connect(to).await.unwrap();
        to_front.set_nodelay(true).unwrap();
        for &length in pieces {
            let mut piece = vec![0; length];
            from.read_exact(&mut piece).await.unwrap();
            to_front.write_all(&piece).await.unwrap();
            taken(&to_front, to).await;
        }
        let _ended = copy_bidirectional(&mut from, &mut to_front).await;
    });
    at
}

#[tokio::test]
async fn a_hello_is_passed_on_by_the_name_in_it() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let (certificate, server) = server(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    let named = road.front.outbound;
    assert_eq!(work::fine(curl(&place, &certificate, SERVICE, named)).await, SECRET);
    assert_eq!(road.detected("tls").await, 1.0);
    // In pieces, cut in the record's head, in the hello's, before the name and inside.
    let slow = piecemeal(named, &[1, 3, 5, 40, 70]).await;
    assert_eq!(work::fine(curl(&place, &certificate, SERVICE, slow)).await, SECRET);
    assert_eq!(road.detected("tls").await, 2.0);
    road.carried(2).await;
    // To names that are nobody's the mesh shows no certificate, least of all one of its own.
    for nobody in ["nobody.shop", "example.com"] {
        let (success, said) = curl(&place, &certificate, nobody, named).finish().await;
        assert!(!success && !said.contains("certificate"), "{said}");
    }
    road.carried(2).await;
}

#[tokio::test]
async fn a_dedicated_port_carries_tls_whatever_name_it_says() {
    let mesh = Mesh::start().await;
    let place = Place::loopback(mesh.directory());
    let (certificate, server) = server(&place).await;
    let road = Road::unmarked(&mesh, &[server.address]).await;
    assert_eq!(work::fine(curl(&place, &certificate, SERVICE, road.at)).await, SECRET);
    let slow = piecemeal(road.at, &[1, 3, 5, 40, 70]).await;
    assert_eq!(work::fine(curl(&place, &certificate, SERVICE, slow)).await, SECRET);
    road.carried(2).await;
    assert_eq!(road.detected("tls").await, 2.0);
    // It arrives, and the client itself finds that the name is not the server's.
    let (success, said) = curl(&place, &certificate, "example.com", road.at).finish().await;
    assert!(!success && said.contains("SSL"), "{said}");
}
