//! `h2spec`, which sends a server of HTTP/2 what RFC 9113 and RFC 7541 forbid and looks at what comes
//! back.

use std::net::SocketAddr;

use outrigger_tests::component::component;
use outrigger_tests::mesh::Mesh;

use crate::shop::{Nghttpd, Shop, client, said};

/// Cases of the pinned version without `--strict`.
const CASES: &str = "145 tests, 145 passed, 0 skipped, 0 failed";
/// And with it.
const STRICT_CASES: &str = "146 tests, 146 passed, 0 skipped, 0 failed";

/// Runs every case against an address; returns the summary, and what it says about those that failed.
fn judge(shop: &Shop, at: SocketAddr, extra: &[&str]) -> (String, String) {
    let program = component("OUTRIGGER_TEST_H2SPEC");
    let (host, port) = (at.ip().to_string(), at.port().to_string());
    // Its own two seconds for each answer are little on a busy machine.
    let mut args = vec!["--host", &host, "--port", &port, "--timeout", "10"];
    args.extend(extra);
    let output = client(shop.mesh.directory(), &program.to_string_lossy(), &args);
    let text = said(&output);
    let summary = text.lines().rfind(|line| line.contains(" tests, ")).unwrap_or_default().to_owned();
    let failures = text.split_once("Failures:").map_or("", |(_, failures)| failures).trim().to_owned();
    assert!(!summary.is_empty(), "no summary:\n{text}");
    assert_eq!(output.status.success(), failures.is_empty(), "{}: {summary}\n{failures}", output.status);
    (summary, failures)
}

#[tokio::test]
async fn every_case_of_h2spec_passes_on_a_dedicated_port() {
    for protocol in ["http2", "auto"] {
        let mesh = Mesh::start().await;
        std::fs::write(mesh.directory().join("index.html"), "a page\n").unwrap();
        let nghttpd = Nghttpd::start(mesh.directory(), &[]).await;
        let shop = Shop::open(mesh, protocol, nghttpd.address).await;
        let port = shop.dedicated();
        for (extra, expected) in [(&[] as &[&str], CASES), (&["--strict"], STRICT_CASES)] {
            let (summary, failures) = judge(&shop, port, extra);
            println!("{protocol}: {summary}");
            assert_eq!(summary, expected, "{protocol}:\n{failures}");
        }
        let metrics = shop.replica.metrics().await;
        assert!(metrics.sum("mesh_requests_total", &[("direction", "inbound"), ("status", "200")]) > 50.0);
        shop.rests().await;
    }
}
