//! What an idle sidecar costs.

use outrigger_tests::process::binary;

use crate::shop::Shop;

#[tokio::test]
async fn an_idle_sidecar_is_small() {
    let shop = Shop::open(1).await;
    for sidecar in [&shop.front, &shop.replicas[0]] {
        println!(
            "{}: {:.1} MiB resident",
            sidecar.id,
            sidecar.process.resident_bytes() as f64 / f64::from(1 << 20)
        );
    }
    println!("registry: {:.1} MiB resident", shop.mesh.registry.resident_bytes() as f64 / f64::from(1 << 20));
    // Only an optimised binary says something about the promise.
    if binary().components().any(|part| part.as_os_str() == "release" || part.as_os_str() == "dist") {
        assert!(shop.front.process.resident_bytes() <= 10 << 20);
    }
}
