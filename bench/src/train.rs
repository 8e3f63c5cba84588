//! Load for sidecars that write down what they execute, so that the compiler can lay them out by it.
//!
//! Everything a sidecar does in the bench, and nothing else of the bench: no peers, no figures.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::idle::Crowd;
use crate::load::Load;
use crate::outrigger::{Outrigger, Scale};
use crate::subject::Stage;

/// Seconds of each load.
const SECONDS: u32 = 4;

/// How long they rest: leases are renewed, figures are given out, the connection is taken back.
const REST: Duration = Duration::from_secs(6);

/// What goes through as HTTP.
const HTTP: [Load; 7] = [
    Load::Saturation { close: false },
    Load::Rate { rate: 2000 },
    Load::Grpc { connections: 1, streams: 32 },
    Load::Grpc { connections: 10, streams: 32 },
    Load::Saturation { close: true },
    Load::Bulk { mib: 1, upload: false },
    Load::Bulk { mib: 1, upload: true },
];

/// What goes through as opaque bytes.
const TCP: [Load; 3] =
    [Load::Saturation { close: false }, Load::Rate { rate: 2000 }, Load::Bulk { mib: 1, upload: false }];

/// What sidecars do.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Phase {
    /// They start, carry one request, and rest: what every sidecar has in memory.
    Idle,
    /// Every load.
    Load,
}

/// Runs a phase, and ends the sidecars gently: what they know they write at their end.
///
/// # Errors
/// When a load or a sidecar fails.
pub(crate) async fn run(phase: Phase) -> Result<()> {
    let stage = Stage::set().await?;
    let mut mesh = Outrigger::start(stage.app, Scale::default()).await?;
    match phase {
        Phase::Idle => {
            let mut crowd = Crowd::default();
            crowd.grow(mesh.front.outbound, 1).await?;
            tokio::time::sleep(REST).await;
        }
        Phase::Load => load(&stage, &mesh).await?,
    }
    for process in [&mut mesh.front.process, &mut mesh.back.process] {
        process.signal(Signal::TERM);
        let status = process.end().await;
        ensure!(status.success(), "a sidecar ended with {status}:\n{}", process.log());
    }
    Ok(())
}

async fn load(stage: &Stage, mesh: &Outrigger) -> Result<()> {
    let (http, tcp) = (mesh.front.outbound, mesh.tcp_entry()?);
    let loads = HTTP.map(|load| (http, load)).into_iter().chain(TCP.map(|load| (tcp, load)));
    for (entry, load) in loads {
        let run = load.run(entry, SECONDS, stage.directory.path(), &[]).await?;
        println!("{load:?}: {} requests, {} failed", run.outcome.requests, run.outcome.failures);
    }
    Ok(())
}
