//! HTTP through two sidecars means what it means without them.

use bytes::Bytes;
use http::{HeaderMap, Method, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::client::{Broken, read, request, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::{soon, until};

use crate::shop::ORDERS;

/// One application behind three services that declare different protocols. Dropped in this order.
struct Versions {
    front: Sidecar,
    replica: Sidecar,
    app: App,
    mesh: Mesh,
}

async fn versions() -> Versions {
    let mesh = Mesh::start().await;
    let app = App::start("app").await;
    let replica = mesh
        .sidecar("orders-1")
        .serves("orders", &app)
        .serves_at("one", 80, "http1", app.address)
        .serves_at("two", 80, "http2", app.address)
        .start()
        .await;
    let services = [ORDERS, "one.shop", "two.shop"];
    let front = mesh.caller("front", &services).await;
    for service in services {
        front.knows_healthy(service, 1).await;
    }
    Versions { front, replica, app, mesh }
}

#[tokio::test]
async fn the_application_sees_the_declared_version_or_the_clients_own() {
    let Versions { front, app, mesh: _mesh, replica: _replica } = versions().await;
    for (service, http2, expected) in [
        (ORDERS, false, Version::HTTP_11),
        (ORDERS, true, Version::HTTP_2),
        ("one.shop", false, Version::HTTP_11),
        ("one.shop", true, Version::HTTP_11),
        ("two.shop", false, Version::HTTP_2),
        ("two.shop", true, Version::HTTP_2),
    ] {
        app.forget();
        let client = if http2 { front.client_http2() } else { front.client() };
        let answer = client.post(service, "/path?q=1", "body").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "app"));
        assert_eq!(answer.version, if http2 { Version::HTTP_2 } else { Version::HTTP_11 });
        let seen = app.only();
        assert_eq!(seen.version, expected, "{service}, client http2: {http2}");
        assert_eq!(seen.uri.path_and_query().unwrap(), "/path?q=1");
        let host = seen.uri.authority().map_or(seen.header("host"), |authority| authority.as_str());
        assert_eq!(host, service);
        assert_eq!((&seen.body[..], &seen.method), (&b"body"[..], &Method::POST));
    }
}

#[tokio::test]
async fn bodies_stream_and_trailers_pass_both_ways_in_every_pair_of_versions() {
    let Versions { front, app, mesh: _mesh, replica: _replica } = versions().await;
    for (service, http2) in [("one.shop", false), ("one.shop", true), ("two.shop", false), ("two.shop", true)]
    {
        app.forget();
        let client = if http2 { front.client_http2() } else { front.client() };
        let (chunks, body) = streamed();
        let headers = [("x-app-echo", "1"), ("trailer", "x-sum"), ("te", "trailers")];
        let mut response =
            client.head(stream_request(Method::POST, service, "/", &headers, body)).await.unwrap();
        assert_eq!(response.status(), 200, "the head comes before the request has ended");
        for chunk in ["one", "two", "three"] {
            chunks.send(Ok(Frame::data(Bytes::from(chunk)))).await.unwrap();
            let frame = soon("the chunk comes back", response.body_mut().frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_data().unwrap(), chunk, "{service} {http2}: before the body ends");
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "11".parse().unwrap());
        chunks.send(Ok(Frame::trailers(trailers))).await.unwrap();
        drop(chunks);
        let answer = soon("the end", read(response)).await.unwrap();
        until("the application notes the request", || async { !app.seen().is_empty() }).await;
        let seen = app.only();
        assert!(seen.complete && seen.body == "onetwothree");
        assert_eq!(seen.trailers.as_ref().map(|t| &t["x-sum"]).unwrap(), "11", "{service} {http2}");
        // Over HTTP/1.1 this application announces none, so none can come back.
        if service == "two.shop" && http2 {
            assert_eq!(answer.trailers.as_ref().map(|t| &t["x-sum"]).unwrap(), "11");
        }
    }
}

#[tokio::test]
async fn announced_trailers_of_a_response_reach_the_client() {
    let mesh = Mesh::start().await;
    let app = App::with("app", |_| async {
        let (chunks, body) = streamed();
        outrigger_common::tasks::Tasks::current().spawn("body", async move {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "3".parse().unwrap());
            for frame in [Frame::data(Bytes::from_static(b"abc")), Frame::trailers(trailers)] {
                let _gone = chunks.send(Ok(frame)).await;
            }
        });
        let mut response = http::Response::new(body);
        response.headers_mut().insert("trailer", "x-sum".parse().unwrap());
        Ok(response)
    })
    .await;
    let _replica = mesh
        .sidecar("orders-1")
        .serves_at("one", 80, "http1", app.address)
        .serves_at("two", 80, "http2", app.address)
        .account("orders")
        .start()
        .await;
    let front = mesh.caller("front", &["one.shop", "two.shop"]).await;
    front.knows_healthy("two.shop", 1).await;
    for (service, http2) in [("one.shop", false), ("one.shop", true), ("two.shop", false), ("two.shop", true)]
    {
        let client = if http2 { front.client_http2() } else { front.client() };
        let answer =
            client.send(request(Method::GET, service, "/", &[("te", "trailers")], "")).await.unwrap();
        assert_eq!(answer.text(), "abc");
        let trailer = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
        assert_eq!(trailer.map(|sum| sum.to_str().unwrap()), Some("3"), "{service}, client http2: {http2}");
    }
}

#[tokio::test]
async fn messages_without_a_body_have_none() {
    let Versions { front, app: _app, mesh: _mesh, replica: _replica } = versions().await;
    for service in ["one.shop", "two.shop"] {
        for client in [front.client(), front.client_http2()] {
            let head =
                client.send(request(Method::HEAD, service, "/", &[("x-app-body", "77")], "")).await.unwrap();
            assert_eq!((head.status.as_u16(), head.body.len()), (200, 0), "{service}: {}", head.reason());
            assert_eq!(head.header("content-length"), "77", "{service}: HEAD says how long GET's would be");
            for status in ["204", "304"] {
                let headers = [("x-app-status", status), ("x-app-body", "0")];
                let answer = client.send(request(Method::GET, service, "/", &headers, "")).await.unwrap();
                assert_eq!((answer.status.as_str(), answer.body.len()), (status, 0));
            }
            // The connection is in step afterwards.
            assert_eq!(client.get(service, "/").await.unwrap().text(), "app");
        }
    }
}

#[tokio::test]
async fn long_but_legal_heads_pass() {
    let Versions { front, app, mesh: _mesh, replica: _replica } = versions().await;
    let long = "x".repeat(60 << 10);
    let many: Vec<_> = (0..80).map(|number| (format!("x-many-{number}"), "y".repeat(600))).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for client in [front.client(), front.client_http2()] {
        for (target, headers) in
            [("/", vec![("x-long", long.as_str())]), (&*format!("/{long}"), Vec::new()), ("/", many.clone())]
        {
            app.forget();
            let answer = client.send(request(Method::GET, "one.shop", target, &headers, "")).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.reason()), (200, ""), "{} fields", headers.len());
            let seen = app.only();
            assert!(headers.iter().all(|(name, value)| seen.header(name) == *value) && seen.uri == *target);
        }
    }
    // What is too long is refused where it comes in, with a reason, and nowhere else.
    let mut refused = 0;
    for length in (62 << 10..66 << 10).step_by(256) {
        let long = "x".repeat(length);
        let answer =
            front.client().send(request(Method::GET, "one.shop", "/", &[("x-long", &long)], "")).await;
        match answer.unwrap().status.as_u16() {
            200 => assert_eq!(refused, 0, "{length}"),
            431 => refused += 1,
            other => panic!("{other} at {length}"),
        }
    }
    assert!(refused > 0);
    let labels = [("status", "431"), ("destination", "unknown")];
    until("each is counted, when its connection has ended", async || {
        front.metrics().await.sum("mesh_requests_total", &labels) == f64::from(refused)
    })
    .await;
}

#[tokio::test]
async fn cookies_in_crumbs_are_one_line_to_an_application_of_http1() {
    let Versions { front, app, mesh: _mesh, replica: _replica } = versions().await;
    for (service, expected) in [("one.shop", &["a=1; b=2; c=3"][..]), ("two.shop", &["a=1", "b=2; c=3"])] {
        app.forget();
        let crumbs = [("cookie", "a=1"), ("cookie", "b=2; c=3")];
        let answer =
            front.client_http2().send(request(Method::GET, service, "/", &crumbs, "")).await.unwrap();
        assert_eq!(answer.status, 200);
        let heads = app.heads();
        let cookies: Vec<_> =
            heads[0].1.get_all("cookie").iter().map(|crumb| crumb.to_str().unwrap()).collect();
        assert_eq!(cookies, expected, "{service}");
    }
}

#[tokio::test]
async fn large_bodies_pass_in_bounded_memory() {
    const SIZE: usize = 20 << 20;
    let Versions { front, replica, app: _app, mesh: _mesh } = versions().await;
    for (service, client) in [("one.shop", front.client()), ("two.shop", front.client_http2())] {
        // Both sidecars have done this once: what grows from now on is the body.
        client
            .send(request(Method::POST, service, "/", &[("x-app-echo", "1")], vec![1; 1 << 20]))
            .await
            .unwrap();
        let before = [front.process.resident_bytes(), replica.process.resident_bytes()];
        let body: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
        let echo = request(Method::POST, service, "/", &[("x-app-echo", "1")], body.clone());
        let answer = client.send(echo).await.unwrap();
        assert!(answer.body == body, "{} bytes came back", answer.body.len());
        let after = [front.process.resident_bytes(), replica.process.resident_bytes()];
        for (name, n) in [("caller's", 0), ("server's", 1)] {
            let grown = after[n].saturating_sub(before[n]) >> 10;
            println!("{service}: the {name} sidecar grew by {grown} KiB to {} KiB", after[n] >> 10);
            assert!(grown < 8 << 10, "{grown} KiB for a body of {SIZE}");
        }
    }
}

#[tokio::test]
async fn the_meshs_own_headers_come_from_the_mesh_alone() {
    let mesh = Mesh::start().await;
    let (seen, noted) = tokio::sync::mpsc::channel(8);
    let app = App::with("app", move |request| {
        let seen = seen.clone();
        async move {
            seen.send(request.headers().clone()).await.unwrap();
            let mut response = ok("ok");
            for (name, value) in [
                ("x-mesh-reason", "app_reset"),
                ("x-mesh-delivered", "no"),
                ("x-mesh-processing-us", "1"),
                ("x-mesh-other", "1"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("x-kept", "1"),
            ] {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            Ok(response)
        }
    })
    .await;
    let mut noted = noted;
    let _replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http1", app.address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let headers = [
        ("x-mesh-source", "admin.shop"),
        ("x-mesh-http-version", "2"),
        ("x-mesh-anything", "1"),
        ("x-forwarded-client-cert", "URI=spiffe://mesh.local/ns/shop/sa/admin"),
        ("connection", "x-hop, x-forwarded-client-cert"),
        ("x-hop", "1"),
        ("keep-alive", "5"),
        ("upgrade", "websocket"),
        ("proxy-connection", "keep-alive"),
        ("te", "gzip, trailers"),
        ("x-kept", "1"),
    ];
    let answer = front.client().send(request(Method::GET, ORDERS, "/", &headers, "")).await.unwrap();
    let seen = noted.recv().await.unwrap();
    assert_eq!(app.requests(), 1, "what an application says is no reason to repeat");
    let names: Vec<_> = seen.keys().map(http::HeaderName::as_str).collect();
    assert!(!names.iter().any(|name| name.starts_with("x-mesh-")), "{names:?}");
    for gone in ["x-hop", "keep-alive", "upgrade", "proxy-connection"] {
        assert!(!seen.contains_key(gone), "{gone}: {seen:?}");
    }
    assert_eq!(seen["x-kept"], "1");
    let certs: Vec<_> = seen.get_all("x-forwarded-client-cert").iter().collect();
    assert_eq!(certs, ["By=spiffe://mesh.local/ns/shop/sa/orders;URI=spiffe://mesh.local/ns/shop/sa/front"]);
    assert!(seen.contains_key("traceparent") && seen.contains_key("x-request-id"));
    assert_eq!((answer.status.as_u16(), answer.header("x-kept")), (200, "1"));
    assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("x-mesh-")), "{:?}", answer.headers);
    assert!(!answer.headers.contains_key("x-hop") && !answer.headers.contains_key("keep-alive"));
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum("mesh_requests_total", &[("source", "front.shop"), ("reason", "")]), 1.0);
}

#[tokio::test]
async fn a_name_in_every_form_reaches_its_service() {
    let Versions { front, app, mesh: _mesh, replica: _replica } = versions().await;
    for form in
        ["orders", "orders.shop", "orders.shop.mesh", "orders.shop.svc", "orders.shop.svc.cluster.local"]
    {
        for name in [form.to_owned(), format!("{form}:80"), form.to_uppercase()] {
            for client in [front.client(), front.client_http2()] {
                assert_eq!(client.get(&name, "/").await.unwrap().text(), "app", "{name}");
            }
            // As a client with `http_proxy` set says it.
            let absolute =
                format!("GET http://{name}/abs HTTP/1.1\r\nhost: other.shop\r\nconnection: close\r\n\r\n");
            let answer = outrigger_tests::client::raw(front.outbound, absolute.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("app"), "{name}: {answer}");
            assert_eq!(app.seen().last().unwrap().uri, "/abs", "the application gets origin-form");
        }
    }
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request_at_the_application() {
    let Versions { front, app, mesh: _mesh, replica } = versions().await;
    let (chunks, body) = streamed();
    let client = front.client();
    let upload = stream_request(Method::POST, ORDERS, "/", &[("x-app-echo", "1")], body);
    let mut response = client.head(upload).await.unwrap();
    chunks.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
    soon("the chunk comes back", response.body_mut().frame()).await.unwrap().unwrap();
    drop(response);
    drop(client);
    chunks.send(Err(std::io::Error::other("gone"))).await.unwrap();
    until("the application's side ends", || async { app.seen().len() == 1 }).await;
    assert!(!app.only().complete, "the application must not take a part for the whole");
    for sidecar in [&front, &replica] {
        until("nothing is left in flight", || async {
            sidecar.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
        })
        .await;
    }
}

#[tokio::test]
async fn a_broken_response_body_is_broken_for_the_client_too() {
    let mesh = Mesh::start().await;
    let (bodies, mut begun) = tokio::sync::mpsc::channel(1);
    let app = App::with("app", move |_| {
        let bodies = bodies.clone();
        async move {
            let (chunks, body) = streamed();
            bodies.send(chunks).await.unwrap();
            Ok(http::Response::new(body))
        }
    })
    .await;
    let _replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    for client in [front.client(), front.client_http2()] {
        let mut response = client.head(request(Method::GET, ORDERS, "/", &[], "")).await.unwrap();
        let chunks = begun.recv().await.unwrap();
        chunks.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        soon("the first chunk", response.body_mut().frame()).await.unwrap().unwrap();
        chunks.send(Err(std::io::Error::other("broken"))).await.unwrap();
        let rest = soon("the body ends", read(response)).await;
        assert!(matches!(rest, Err(Broken::Body { .. })), "{rest:?}");
        // Broken off at once, perhaps together with its head: an error all the same.
        // One that broke off before its head was read is asked for again, and breaks off again.
        let breaking = async {
            while let Some(chunks) = begun.recv().await {
                let _gone = chunks.send(Err(std::io::Error::other("broken"))).await;
            }
        };
        let result = tokio::select! {
            result = client.get(ORDERS, "/") => result,
            () = breaking => unreachable!("the application lives"),
        };
        println!("broken off at once: {result:?}");
        assert!(result.is_err() || result.is_ok_and(|answer| answer.status.is_server_error()));
    }
}
