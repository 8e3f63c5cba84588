//! Generates messages and services with protox, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let own = ["types", "discovery", "registration", "certificate", "admin"]
        .map(|name| format!("proto/outrigger/v1/{name}.proto"));
    let files = own.into_iter().chain(["proto/grpc/health/v1/health.proto".to_owned()]);
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
