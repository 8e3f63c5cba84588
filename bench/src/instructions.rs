//! Instructions a request takes in each sidecar, counted by callgrind: a figure that does not depend on what else the
//! machine does, so that a check can hold it to what is recorded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outrigger_tests::mesh::{Mesh, Sidecar};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::certs::NAME;
use crate::outrigger::POLICIES;
use crate::subject::Stage;

/// Requests before the count: connections are made, tables of header compression filled.
const WARM: u32 = 500;
/// Requests counted.
const COUNTED: u32 = 3000;
/// Connections of the client.
const CONNECTIONS: u32 = 16;
/// Part by which a count may exceed the recorded one. Counts of one binary differ by less than 2%: how many requests
/// share a write depends on timing.
const TOLERANCE: f64 = 0.05;

/// What is recorded, and what to do with it.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The file with the recorded counts.
    #[arg(long, value_name = "FILE")]
    record: PathBuf,
    /// Record what is counted.
    #[arg(long)]
    update: bool,
    /// The compiler: counts of different ones are not compared.
    #[arg(long, value_name = "VERSION")]
    compiler: String,
}

/// Counts under one compiler and kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Counts {
    /// At the sidecar beside the client.
    caller: u64,
    /// At the sidecar beside the application.
    server: u64,
}

type Record = BTreeMap<String, Counts>;

/// Counts, and compares with what is recorded, or records it.
///
/// # Errors
/// When a request takes more than is recorded, or nothing could be counted.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let counted = count().await?;
    let key = format!("{}, {}", options.compiler, processor());
    let mut record: Record = match fs::read_to_string(&options.record) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("read {}", options.record.display()))?
        }
        Err(_) if options.update => Record::new(),
        Err(error) => return Err(error).with_context(|| format!("read {}", options.record.display())),
    };
    println!("instructions a request: caller {}, server {} ({key})", counted.caller, counted.server);
    if options.update {
        record.insert(key, counted);
        let text = serde_json::to_string_pretty(&record)?;
        return fs::write(&options.record, text + "\n").context("write the record");
    }
    match record.get(&key) {
        None => println!("not compared: nothing is recorded for this compiler and processor"),
        Some(recorded) => compare(counted, *recorded)?,
    }
    Ok(())
}

fn compare(counted: Counts, recorded: Counts) -> Result<()> {
    for (which, counted, recorded) in
        [("caller", counted.caller, recorded.caller), ("server", counted.server, recorded.server)]
    {
        // Far below what an f64 holds exactly.
        let ratio = counted as f64 / recorded as f64;
        println!("{which}: {ratio:.3} of the recorded {recorded}");
        ensure!(
            ratio <= 1.0 + TOLERANCE,
            "a request takes {counted} instructions at the {which}'s sidecar, {recorded} are recorded. Where that is \
             meant, record it with `cargo xtask instructions --update` and say why in the commit"
        );
    }
    Ok(())
}

/// The processor's name: the C library copies memory in other ways on others.
fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| "unknown processor".to_owned(), |(_, name)| name.trim().to_owned())
}

async fn count() -> Result<Counts> {
    let stage = Stage::set().await?;
    let mesh = Mesh::start().await;
    let revision = mesh.apply(POLICIES).await;
    let under = |name: &str| {
        let file = mesh.directory().join(name);
        let words = ["valgrind", "--tool=callgrind", "--instr-atstart=no"].map(str::to_owned);
        [words.as_slice(), &[format!("--callgrind-out-file={}", file.display())]].concat()
    };
    // Rarely: what it takes is not a request's.
    let health = json!({"health": {"interval": "60s"}});
    let server = mesh.sidecar("orders-1").serves_at("orders", 80, "http", stage.app).config(&health);
    let mut server = server.within(&under("server")).start().await;
    let caller = mesh.sidecar("front").calls(&[NAME]).config(&health).within(&under("caller"));
    let mut caller = caller.start().await;
    for sidecar in [&server, &caller] {
        sidecar.caught_up(revision).await;
    }
    caller.knows_healthy(NAME, 1).await;
    load(&caller, WARM)?;
    for sidecar in [&server, &caller] {
        instrument(sidecar, "on")?;
    }
    load(&caller, COUNTED)?;
    for sidecar in [&server, &caller] {
        instrument(sidecar, "off")?;
    }
    let mut counts = [0; 2];
    for (count, (sidecar, name)) in counts.iter_mut().zip([(&mut caller, "caller"), (&mut server, "server")])
    {
        // Its counts are written as it ends.
        sidecar.post_drain().await;
        sidecar.process.end().await;
        *count = total(&mesh.directory().join(name))? / u64::from(COUNTED);
    }
    Ok(Counts { caller: counts[0], server: counts[1] })
}

/// Sends requests, all of which must succeed.
fn load(caller: &Sidecar, requests: u32) -> Result<()> {
    let mut h2load = Command::new("h2load");
    h2load
        .args(["--h1", "--threads=1"])
        .arg(format!("--clients={CONNECTIONS}"))
        .arg(format!("--requests={requests}"))
        .arg(format!("--header=:authority: {NAME}"))
        .arg(format!("http://{}/", caller.outbound));
    let output = h2load.output().context("run h2load")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains(&format!(" {requests} succeeded")), "not every request succeeded:\n{text}");
    Ok(())
}

/// Switches the count on or off.
fn instrument(sidecar: &Sidecar, how: &str) -> Result<()> {
    let mut vgdb = Command::new("vgdb");
    vgdb.arg(format!("--pid={}", sidecar.process.pid())).args(["instrumentation", how]);
    let output = vgdb.output().context("run vgdb")?;
    ensure!(output.status.success(), "vgdb: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The sum of callgrind's counts.
fn total(file: &Path) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let totals = text.lines().find_map(|line| line.strip_prefix("totals: "));
    totals.and_then(|totals| totals.trim().parse().ok()).context("callgrind wrote no totals")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_recorded_fails_and_less_does_not() {
        let recorded = Counts { caller: 100_000, server: 100_000 };
        assert!(compare(recorded, recorded).is_ok());
        assert!(compare(Counts { server: 104_000, ..recorded }, recorded).is_ok());
        assert!(compare(Counts { server: 50_000, ..recorded }, recorded).is_ok());
        for worse in [Counts { caller: 106_000, ..recorded }, Counts { server: 106_000, ..recorded }] {
            let error = compare(worse, recorded).unwrap_err().to_string();
            assert!(error.contains("106000") && error.contains("--update"), "{error}");
        }
    }
}
