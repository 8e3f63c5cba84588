//! What an idle sidecar costs.

use outrigger_tests::process::binary;

use crate::shop::Shop;

#[tokio::test]
async fn an_idle_sidecar_is_small() {
    let shop = Shop::open(1).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for process in [&shop.front.process, &shop.replicas[0].process, &shop.mesh.registry] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        let parts: Vec<_> = status.lines().filter(|line| line.starts_with("Rss")).collect();
        println!("{} MiB resident: {parts:?}", mib(process.resident_bytes()));
    }
    // Only an optimised binary says something about the promise.
    if binary().components().any(|part| part.as_os_str() == "release" || part.as_os_str() == "dist") {
        assert!(shop.front.process.resident_bytes() <= 10 << 20);
    }
}
