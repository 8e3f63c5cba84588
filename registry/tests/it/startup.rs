//! What keeps a registry from starting, and that it says so.

use outrigger_registry::Registry;

use crate::harness::{Mesh, config};

async fn error(config: outrigger_registry::Config) -> String {
    match Registry::bind(config).await {
        Ok(_) => panic!("it should not start"),
        Err(error) => outrigger_common::telemetry::chain(&error),
    }
}

#[tokio::test]
async fn ports_in_use_and_directories_in_use_are_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let first = Mesh::start_in(dir.path(), "").await.unwrap();
    let text = error(config(dir.path(), "")).await;
    assert!(text.contains("in use by another registry") && text.contains("data_dir"), "{text}");
    for (key, taken) in [("grpc", first.grpc.clone()), ("http", first.http.to_string())] {
        let other = tempfile::tempdir().unwrap();
        let mut config = config(other.path(), "");
        match key {
            "grpc" => config.grpc_listen = taken.parse().unwrap(),
            _ => config.http_listen = taken.parse().unwrap(),
        }
        let text = error(config).await;
        assert!(text.contains(&format!("{key}.listen")) && text.contains(&taken), "{text}");
    }
}

#[tokio::test]
async fn another_trust_domain_than_the_roots_is_refused_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_in(dir.path(), "").await.unwrap();
    let root = mesh.admin_svid().bundle;
    mesh.stop().await;
    let text = error(config(dir.path(), "trust_domain: other.example\n")).await;
    assert!(text.contains("mesh.local") && text.contains("set trust_domain to mesh.local"), "{text}");
    let again = Mesh::start_in(dir.path(), "").await.unwrap();
    assert_eq!(again.admin_svid().bundle, root);
}

#[tokio::test]
async fn a_damaged_store_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    Mesh::start_in(dir.path(), "").await.unwrap().stop().await;
    let file = dir.path().join("registry.redb");
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[..64].fill(0xff);
    std::fs::write(&file, &bytes).unwrap();
    let text = error(config(dir.path(), "")).await;
    assert!(text.contains(file.to_str().unwrap()) && text.contains("outrigger registry restore"), "{text}");
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}
