//! What cannot be reached through a sidecar: anything its workload did not register.

use outrigger_tests::app::App;
use outrigger_tests::client::raw;

use crate::identity::over_tls;
use crate::shop::{ORDERS, Shop};

#[tokio::test]
async fn a_peer_reaches_nothing_but_registered_ports() {
    let shop = Shop::open(1).await;
    let sidecar = &shop.replicas[0];
    let secret = App::start("secret").await;
    let visitor = shop.mesh.identity("shop", "visitor", &[]).await;
    let get = |host: &str| format!("GET /metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    // The name in TLS decides; another port, service or address is not served.
    for name in [
        format!("{}.orders.shop.mesh", secret.address.port()),
        format!("{}.orders.shop.mesh", sidecar.admin.port()),
        format!("{}.orders.shop.mesh", shop.apps[0].address.port()),
        "80.payments.shop.mesh".to_owned(),
        "80.orders.other.mesh".to_owned(),
        "localhost".to_owned(),
    ] {
        let answer = over_tls(sidecar.mesh, &name, Some(&visitor), get("orders.shop").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 421"), "{name}: {answer}");
        assert!(answer.contains("x-mesh-reason: not_served"), "{name}: {answer}");
    }
    assert_eq!(shop.apps[0].requests(), 0);
    // What the request itself says changes nothing.
    for host in [
        format!("127.0.0.1:{}", sidecar.admin.port()),
        format!("localhost:{}", secret.address.port()),
        "payments.shop".to_owned(),
    ] {
        let answer =
            over_tls(sidecar.mesh, "80.orders.shop.mesh", Some(&visitor), get(&host).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("app-1"), "{host}: {answer}");
        let absolute =
            format!("GET http://{host}/metrics HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = over_tls(sidecar.mesh, "80.orders.shop.mesh", Some(&visitor), absolute.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("app-1"), "{host}: {answer}");
    }
    assert_eq!(shop.apps[0].requests(), 6);
    assert_eq!(secret.requests(), 0);
}

#[tokio::test]
async fn an_application_reaches_no_address_of_its_machine_through_its_sidecar() {
    let shop = Shop::open(1).await;
    let front = &shop.front;
    let secret = App::start("secret").await;
    let client = front.client();
    for (name, status, reason) in [
        (format!("127.0.0.1:{}", secret.address.port()), 404, "unknown_service"),
        (format!("localhost:{}", secret.address.port()), 404, "unknown_service"),
        (format!("[::1]:{}", secret.address.port()), 404, "unknown_service"),
        (format!("127.0.0.1:{}", front.outbound.port()), 508, "loop"),
        (format!("localhost:{}", front.admin.port()), 508, "loop"),
        (format!("0.0.0.0:{}", front.mesh.port()), 508, "loop"),
        (format!("orders.shop:{}", secret.address.port()), 404, "unknown_port"),
        ("169.254.169.254".to_owned(), 404, "unknown_service"),
    ] {
        let answer = client.get(&name, "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (status, reason), "{name}: {}", answer.text());
        let absolute = format!("GET http://{name}/ HTTP/1.1\r\nhost: {ORDERS}\r\nconnection: close\r\n\r\n");
        let answer = raw(front.outbound, absolute.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "the target wins over Host: {answer}");
    }
    assert_eq!(secret.requests() + shop.apps[0].requests(), 0);
}
