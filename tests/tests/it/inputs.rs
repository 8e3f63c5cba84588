//! Wrong input ends a process at once, with an exit code and words that name place and remedy.

use std::path::Path;

use outrigger_tests::mesh::Mesh;
use outrigger_tests::process::command;
use outrigger_tests::wait::until;
use serde_json::{Value, json};

/// Runs a command that must end by itself: exit code and standard error.
fn run(args: &[&str]) -> (i32, String) {
    // An ordinary command, not a child of a mesh.
    let output = command(args).env_remove("OUTRIGGER_DEMO_CHILD").output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn write(directory: &Path, name: &str, settings: &Value) -> String {
    let path = directory.join(name);
    std::fs::write(&path, format!("{settings:#}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A configuration that would work.
fn proxy(mesh: &Mesh, token: &str) -> Value {
    json!({
        "registry": {"address": mesh.grpc},
        "join": {"token": token},
        "outbound": {"listen": "127.0.0.1:0"},
        "mesh": {"listen": "127.0.0.1:0"},
        "admin": {"listen": "127.0.0.1:0"},
    })
}

#[tokio::test]
async fn a_wrong_configuration_ends_a_sidecar_with_2_and_names_the_key() {
    let mesh = Mesh::start().await;
    let good = proxy(&mesh, &mesh.token("shop", "front", &[]).await.expose());
    let change = |path: &[&str], value: Value| {
        let mut settings = good.clone();
        let mut place = &mut settings;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        settings
    };
    for (settings, words) in [
        (change(&["outbuond"], json!({"listen": "127.0.0.1:0"})), &["outbuond", "bad.yaml:"][..]),
        (change(&["timeouts", "requests"], json!("1s")), &["requests"]),
        (change(&["timeouts", "request"], json!("1 fortnight")), &["bad.yaml:", "10s"]),
        (change(&["timeouts", "request"], json!("1ms")), &["timeouts.request", "10ms"]),
        (change(&["outbound", "listen"], json!("0.0.0.0:0")), &["outbound.listen", "loopback", "127.0.0.1"]),
        (change(&["join", "token"], json!("nonsense")), &["join.token", "outrigger token"]),
        (change(&["upstreams"], json!(["orders"])), &["upstreams"]),
        (
            change(&["services"], json!([{"name": "Bad Name", "port": 80, "target": "127.0.0.1:1"}])),
            &["services"],
        ),
    ] {
        let file = write(mesh.directory(), "bad.yaml", &settings);
        let (code, text) = run(&["proxy", "--config", &file]);
        assert_eq!(code, 2, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in {text:?}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
    let (code, text) = run(&["proxy", "--config", "none.yaml"]);
    assert!(code == 2 && text.contains("none.yaml"), "{text}");
}

#[tokio::test]
async fn a_port_in_use_ends_a_process_with_1_and_names_the_key() {
    let mesh = Mesh::start().await;
    let token = mesh.token("shop", "front", &[]).await.expose();
    let taken = mesh.http.to_string();
    for key in ["outbound", "mesh", "admin"] {
        let mut settings = proxy(&mesh, &token);
        settings[key]["listen"] = json!(taken);
        let file = write(mesh.directory(), "taken.yaml", &settings);
        let (code, text) = run(&["proxy", "--config", &file]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&taken) && text.contains(&format!("{key}.listen")), "{text}");
    }
    for key in ["grpc", "http"] {
        let mut settings = json!({"data_dir": mesh.directory().join("other"), "grpc": {"listen": "127.0.0.1:0"}, "http": {"listen": "127.0.0.1:0"}});
        settings[key]["listen"] = json!(taken);
        let file = write(mesh.directory(), "taken.yaml", &settings);
        let (code, text) = run(&["registry", "--config", &file]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&taken) && text.contains(&format!("{key}.listen")), "{text}");
    }
}

#[tokio::test]
async fn a_token_that_is_no_good_ends_a_sidecar_with_1_and_names_the_remedy() {
    let mesh = Mesh::start().await;
    let used = mesh.token_for("shop", "front", &[], 0).await;
    let first = mesh.sidecar("front").token(&used.expose()).start().await;
    let expired = mesh.token_for("shop", "front", &[], 1).await;
    let mut guessed = mesh.token("shop", "front", &[]).await;
    guessed.secret = "A".repeat(guessed.secret.len());
    // Time itself is what is tested: the token's single second.
    tokio::time::sleep(std::time::Duration::from_millis(2100)).await;
    for (what, token) in [("used", used), ("expired", expired), ("guessed", guessed)] {
        let file = write(mesh.directory(), "token.yaml", &proxy(&mesh, &token.expose()));
        let (code, text) = run(&["proxy", "--config", &file]);
        assert_eq!(code, 1, "{what}: {text}");
        assert!(
            text.contains("refused the join token") && text.contains("`outrigger token`"),
            "{what}: {text}"
        );
        assert!(!text.contains(&token.secret), "{what}: the secret is in {text}");
    }
    assert_eq!(first.get("/ready").await.0, 200);
}

#[tokio::test]
async fn a_sidecar_waits_for_a_registry_that_is_not_there_yet() {
    let mut mesh = Mesh::start().await;
    let token = mesh.token("shop", "front", &[]).await.expose();
    mesh.registry.kill();
    let front = mesh.sidecar("front").token(&token).launch().await;
    until("it says what it waits for", || async {
        let (status, text) = front.get("/ready").await;
        status == 503 && text.contains("no certificate yet") && text.contains(&mesh.grpc.to_string())
    })
    .await;
    let answer = front.client().get("orders.shop", "/").await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.reason()),
        (503, "discovery_unavailable"),
        "{}",
        answer.text()
    );
    mesh.restart_registry().await;
    front.ready().await;
}

#[tokio::test]
async fn a_damaged_data_directory_is_refused_and_left_as_it_is() {
    let mut mesh = Mesh::start().await;
    mesh.registry.signal(rustix::process::Signal::TERM);
    mesh.registry.end().await;
    let files = std::fs::read_dir(mesh.data()).unwrap().map(|entry| entry.unwrap().path());
    let store =
        files.filter(|path| path.is_file()).max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    std::fs::write(&store, b"not a store at all").unwrap();
    let config = mesh.directory().join("registry.yaml");
    let (code, text) = run(&["registry", "--config", config.to_str().unwrap()]);
    println!("{}", text.trim());
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(store.to_str().unwrap()), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(std::fs::read(&store).unwrap(), b"not a store at all");
}
