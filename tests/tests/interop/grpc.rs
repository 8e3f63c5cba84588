//! gRPC's own interoperability programs, those of Go.

use std::path::Path;
use std::process::{Command, Output};

use outrigger_tests::component::component;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::process::Process;

use crate::shop::{Shop, client, free_address, listens, said};

/// Every case of the client but those that need credentials of a cloud, and [`NO_SERVER`].
const CASES: [&str; 18] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
    "orca_per_rpc",
    "orca_oob",
];
/// Needs a server that tells its name, and this one does not: only those of other languages do.
const NO_SERVER: &str = "pick_first_unary";
/// Cases that call Google's services for a token, or read a key of theirs.
const CLOUD: [&str; 7] = [
    "compute_engine_creds",
    "service_account_creds",
    "jwt_token_creds",
    "per_rpc_creds",
    "oauth2_auth_token",
    "google_default_credentials",
    "compute_engine_channel_credentials",
];
/// The balancer with which the client reads load reports, as gRPC's own script for this server has it.
const BALANCER: &str = r#"{"loadBalancingConfig": [{"test_backend_metrics_load_balancer": {}}]}"#;

fn call(directory: &Path, port: u16, case: &str) -> Output {
    let program = component("OUTRIGGER_TEST_GRPC_CLIENT");
    let port = port.to_string();
    let args = ["--server_host", "127.0.0.1", "--server_port", &port, "--service_config_json", BALANCER];
    // A second for each call of a soak, and ten for all, are little on a busy machine.
    let slow = [
        "--soak_per_iteration_max_acceptable_latency_ms",
        "20000",
        "--soak_overall_timeout_seconds",
        "50",
        "--soak_num_threads",
        "4",
        "--soak_iterations",
        "40",
    ];
    let args = [&args[..], &slow[..], &["--test_case", case]].concat();
    client(directory, &program.to_string_lossy(), &args)
}

#[tokio::test]
async fn every_case_of_grpcs_interop_passes_through_two_sidecars() {
    let mesh = Mesh::start().await;
    let address = free_address();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(component("OUTRIGGER_TEST_GRPC_SERVER"));
    command.args(["--port", &address.port().to_string()]);
    let server = Process::spawn("server", command, mesh.directory());
    listens(address).await;
    let shop = Shop::open(mesh, "grpc", address).await;
    let port = shop.dedicated().port();
    let directory = shop.mesh.directory();

    let failed: Vec<_> = CASES
        .iter()
        .filter_map(|case| {
            let output = call(directory, port, case);
            (!output.status.success()).then(|| format!("{case}: {}", said(&output)))
        })
        .collect();
    assert!(failed.is_empty(), "{failed:#?}");

    // All went through the mesh, and the ends of calls are those the server gave them.
    let metrics = shop.replica.metrics().await;
    for (status, least) in [("0", 90.0), ("2", 1.0), ("12", 2.0)] {
        let calls = [("direction", "inbound"), ("protocol", "grpc"), ("grpc_status", status)];
        let count = metrics.sum("mesh_requests_total", &calls);
        println!("status {status}: {count} calls");
        assert!(count >= least, "status {status}: {count}");
    }
    shop.rests().await;

    // A new case of a new version is not passed over, nor is one that starts to work.
    let help = said(&client(directory, &component("OUTRIGGER_TEST_GRPC_CLIENT").to_string_lossy(), &["-h"]));
    let (_, offered) = help.split_once("Valid options are:").unwrap_or_else(|| panic!("{help}"));
    let offered = offered.lines().skip(1).take_while(|line| !line.starts_with("  -"));
    for case in offered.filter_map(|line| Some(line.split_once(':')?.0.trim())) {
        assert!(CASES.contains(&case) || CLOUD.contains(&case) || case == NO_SERVER, "{case} is new\n{help}");
    }
    let direct = call(directory, address.port(), NO_SERVER);
    assert!(!direct.status.success() && said(&direct).contains("empty server ID"), "{}", said(&direct));
    drop(server);
}
