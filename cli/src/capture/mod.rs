//! `outrigger capture`: the redirect that brings an application's connections to its sidecar.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`args`] | the command line |
//! | [`rules`] | what is captured, whichever program has it |
//! | [`nft`], [`iptables`] | the same in the words of each program, and back |
//! | [`program`] | running them |

pub(crate) mod args;
mod iptables;
mod nft;
mod program;
mod rules;

use serde_json::{Value, json};

use self::args::{Backend, CaptureArgs, CaptureCommand, How, InstallArgs, RemoveArgs, ShowArgs};
use self::iptables::{Family, Found};
use self::program::{Trouble, run};
use self::rules::{Plan, Way};
use crate::args::Output;
use crate::failure::Failure;
use crate::output;

pub(crate) fn command(args: &CaptureArgs) -> Result<(), Failure> {
    match &args.command {
        CaptureCommand::Install(args) => install(args),
        CaptureCommand::Remove(args) => remove(args),
        CaptureCommand::Show(args) => show(args),
    }
}

/// What a backend has of ours.
enum State {
    Nothing,
    /// All of it, as this plan has it.
    Whole(Plan),
    /// Some of it, and what is wrong.
    Part(String),
}

fn install(args: &InstallArgs) -> Result<(), Failure> {
    let plan = args.wish.plan();
    let ports = [plan.outbound_port, plan.inbound_port, plan.mesh_port, plan.admin_port];
    if (1..ports.len()).any(|at| ports[..at].contains(&ports[at])) {
        return Err(Failure::usage("the sidecar's four ports must differ"));
    }
    let backend = choose(&args.how, &plan, args.dry_run)?;
    if args.dry_run {
        let scripts = match backend {
            Backend::Nft => vec![("nft -f -".to_owned(), nft::install(&plan))],
            Backend::Iptables => iptables_scripts(|found, family| found.install(&plan, family), true)?,
        };
        return print_scripts(&args.how, backend, &scripts);
    }
    let unchanged = matches!(state(backend)?, State::Whole(found) if found == plan);
    if !unchanged {
        put(backend, &plan)?;
    }
    // The other one's go last: meanwhile both lead to the sidecar.
    let replaced = take_away(other(backend)).unwrap_or(false);
    match state(backend)? {
        State::Whole(found) if found == plan => {}
        State::Whole(_) | State::Nothing => {
            return Err(Failure::job(
                "the rules were installed and are not in force: does another program change them?",
            ));
        }
        State::Part(wrong) => {
            return Err(Failure::job(format!("the rules are not as they were installed: {wrong}")));
        }
    }
    if plan.uid == 0 {
        output::say(
            "outrigger: what runs as root is not captured, since the sidecar does: give it a user of its own",
        );
    }
    let changed = !unchanged || replaced;
    match args.how.output {
        Output::Json => output::print_json(&report(Some(backend), Some(&plan), &[], Some(changed)))?,
        Output::Text => {
            let word = if changed { "captured" } else { "captured already" };
            output::print_line(&format!("{word} ({}): {}", backend.name(), words(&plan)))?;
        }
    }
    Ok(())
}

fn remove(args: &RemoveArgs) -> Result<(), Failure> {
    let backends: &[Backend] = match args.how.backend {
        Some(Backend::Nft) => &[Backend::Nft],
        Some(Backend::Iptables) => &[Backend::Iptables],
        None => &[Backend::Nft, Backend::Iptables],
    };
    let mut removed = Vec::new();
    let mut missing = Vec::new();
    for &backend in backends {
        if args.dry_run {
            let scripts = match backend {
                Backend::Nft if nft_listing()?.is_some() => vec![("nft -f -".to_owned(), nft::remove())],
                Backend::Nft => Vec::new(),
                Backend::Iptables => iptables_scripts(
                    |found, _| if found.is_any() { found.remove() } else { String::new() },
                    true,
                )?,
            };
            print_scripts(&args.how, backend, &scripts)?;
            continue;
        }
        match take_away(backend) {
            Ok(true) => removed.push(backend.name()),
            Ok(false) => {}
            // What is not installed has nothing of ours.
            Err(trouble @ Trouble::Missing(_)) => missing.push(trouble),
            Err(trouble) if args.how.backend.is_none() && matches!(trouble, Trouble::Failed { .. }) => {
                missing.push(trouble);
            }
            Err(trouble) => return Err(trouble.failure()),
        }
    }
    if let (true, Some(trouble)) = (missing.len() == backends.len(), missing.first()) {
        return Err(trouble.failure());
    }
    if args.dry_run {
        return Ok(());
    }
    match args.how.output {
        Output::Json => output::print_json(&json!({"removed": removed}))?,
        Output::Text if removed.is_empty() => output::print_line("nothing was captured")?,
        Output::Text => output::print_line(&format!("no longer captured ({})", removed.join(", ")))?,
    }
    Ok(())
}

fn show(args: &ShowArgs) -> Result<(), Failure> {
    let backends = args.how.backend.map_or(vec![Backend::Nft, Backend::Iptables], |one| vec![one]);
    let (mut wrong, mut troubles) = (Vec::new(), Vec::new());
    let (mut whole, mut seen) = (None, None);
    for &backend in &backends {
        match state(backend) {
            Ok(State::Nothing) => {}
            Ok(State::Whole(plan)) => {
                seen = seen.or(Some(backend));
                whole = whole.or(Some((backend, plan)));
            }
            Ok(State::Part(why)) => {
                seen = seen.or(Some(backend));
                wrong.push(format!("{}: {why}", backend.name()));
            }
            Err(trouble) => troubles.push(trouble),
        }
    }
    if let Some(trouble) = troubles.iter().find(|trouble| matches!(trouble, Trouble::Forbidden(_))) {
        return Err(trouble.failure());
    }
    if let (true, Some(trouble)) = (troubles.len() == backends.len(), troubles.first()) {
        return Err(trouble.failure());
    }
    let plan = whole.as_ref().map(|(_, plan)| plan);
    let backend = whole.as_ref().map(|(backend, _)| *backend).or(seen);
    match args.how.output {
        Output::Json => output::print_json(&report(backend, plan, &wrong, None))?,
        Output::Text => match (backend, plan) {
            (Some(backend), Some(plan)) => {
                output::print_line(&format!("captured ({}): {}", backend.name(), words(plan)))?;
            }
            (Some(backend), None) => output::print_line(&format!("captured in part ({})", backend.name()))?,
            (None, _) => output::print_line("nothing is captured")?,
        },
    }
    if !wrong.is_empty() {
        let again = "run `outrigger capture install` again";
        return Err(Failure::job(format!("not whole: {}; {again}", wrong.join("; "))));
    }
    // Text has said so; scripts have the code.
    if whole.is_none() { Err(Failure::job("")) } else { Ok(()) }
}

fn report(backend: Option<Backend>, plan: Option<&Plan>, wrong: &[String], changed: Option<bool>) -> Value {
    let mut report = json!({
        "backend": backend.map(Backend::name),
        "installed": backend.is_some(),
        "complete": plan.is_some() && wrong.is_empty(),
        "problems": wrong,
        "plan": plan,
    });
    if let Some(changed) = changed {
        report["changed"] = changed.into();
    }
    report
}

fn words(plan: &Plan) -> String {
    let mut words = format!(
        "outbound to port {}, inbound to port {}; not user {}, inbound not ports {}, {}",
        plan.outbound_port, plan.inbound_port, plan.uid, plan.mesh_port, plan.admin_port
    );
    for port in &plan.exclude_inbound_ports {
        words.push_str(&format!(", {port}"));
    }
    let ports = plan.exclude_outbound_ports.iter().map(|port| format!("port {port}"));
    let open: Vec<_> = ports.chain(plan.exclude_ranges.iter().map(ToString::to_string)).collect();
    if !open.is_empty() {
        words.push_str(&format!("; outbound not {}", open.join(", ")));
    }
    words
}

fn print_scripts(how: &How, backend: Backend, scripts: &[(String, String)]) -> Result<(), Failure> {
    match how.output {
        Output::Json => {
            let scripts: Vec<_> = scripts
                .iter()
                .map(|(command, script)| json!({"command": command, "input": script}))
                .collect();
            output::print_json(&json!({"backend": backend.name(), "scripts": scripts}))?;
        }
        Output::Text => {
            for (command, script) in scripts {
                output::print(&format!("# {command}\n{script}"))?;
            }
        }
    }
    Ok(())
}

const fn other(backend: Backend) -> Backend {
    match backend {
        Backend::Nft => Backend::Iptables,
        Backend::Iptables => Backend::Nft,
    }
}

/// The backend asked for; else nft if its transaction passes the kernel's checks, else iptables.
fn choose(how: &How, plan: &Plan, dry_run: bool) -> Result<Backend, Failure> {
    if let Some(backend) = how.backend {
        return Ok(backend);
    }
    if dry_run {
        // Needs no rights, hence no checks.
        return Ok(match run("nft", &["--version"], "") {
            Err(Trouble::Missing(_)) if run("iptables", &["--version"], "").is_ok() => Backend::Iptables,
            _ => Backend::Nft,
        });
    }
    match run("nft", &["--check", "--file", "-"], &nft::install(plan)) {
        Ok(_) => Ok(Backend::Nft),
        Err(Trouble::Forbidden(program)) => Err(Trouble::Forbidden(program).failure()),
        Err(nft) => match run("iptables", &["--version"], "") {
            Ok(_) => Ok(Backend::Iptables),
            Err(Trouble::Missing(_)) if matches!(nft, Trouble::Missing(_)) => Err(Failure::job(
                "neither nft nor iptables is installed: install the package nftables (Debian, Alpine and Fedora all call it so)",
            )),
            Err(_) => Err(nft.failure()),
        },
    }
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        trouble.failure()
    }
}

/// The families iptables must have rules for.
fn families() -> Vec<Family> {
    Family::BOTH.into_iter().filter(|family| *family == Family::V4 || program::has_ipv6()).collect()
}

fn saved(family: Family) -> Result<Found, Trouble> {
    let saved = run(&format!("{}-save", family.program()), &[], "")?;
    // Fails where nft is not, where iptables is of the older kind, and where there is no such table.
    let listing = run("nft", &["list", "table", nft_family(family), "nat"], "");
    Ok(Found::read(&saved, listing.ok().as_deref()))
}

/// How nft calls it.
const fn nft_family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// A script a family; `lenient`: where what is in force cannot be read, as if nothing were.
fn iptables_scripts(
    script: impl Fn(&Found, Family) -> String,
    lenient: bool,
) -> Result<Vec<(String, String)>, Trouble> {
    let mut scripts = Vec::new();
    for family in families() {
        let found = match saved(family) {
            Err(_) if lenient => Found::default(),
            found => found?,
        };
        let script = script(&found, family);
        if !script.is_empty() {
            scripts.push((format!("{}-restore --noflush", family.program()), script));
        }
    }
    Ok(scripts)
}

/// Puts the plan in force: all of it, or for iptables as much as an earlier check promises.
fn put(backend: Backend, plan: &Plan) -> Result<(), Trouble> {
    match backend {
        Backend::Nft => run("nft", &["--file", "-"], &nft::install(plan)).map(drop),
        Backend::Iptables => {
            let mut scripts = Vec::new();
            for family in families() {
                let restore = format!("{}-restore", family.program());
                let script = saved(family)?.install(plan, family);
                run(&restore, &["--noflush", "--test"], &script)?;
                scripts.push((restore, script));
            }
            for (at, (restore, script)) in scripts.iter().enumerate() {
                if let Err(trouble) = run(restore, &["--noflush"], script) {
                    // One family alone would leave the other uncaptured, and look whole.
                    if at > 0 {
                        let _as_good_as_it_gets = take_away(Backend::Iptables);
                    }
                    return Err(trouble);
                }
            }
            Ok(())
        }
    }
}

fn nft_listing() -> Result<Option<Value>, Trouble> {
    let [family, name] = nft::TABLE;
    // Listed first: to ask for a table that is not there is an error like any other.
    let tables = run("nft", &["list", "tables"], "")?;
    if !tables.lines().any(|line| line.trim() == format!("table {family} {name}")) {
        return Ok(None);
    }
    let text = run("nft", &["--json", "list", "table", family, name], "")?;
    let listing = serde_json::from_str(&text);
    listing.map(Some).map_err(|error| Trouble::Failed {
        program: "nft".to_owned(),
        said: format!("its list is not JSON: {error}"),
    })
}

fn state(backend: Backend) -> Result<State, Trouble> {
    match backend {
        Backend::Nft => {
            let Some(listing) = nft_listing()? else { return Ok(State::Nothing) };
            let both = Way::BOTH.map(|way| nft::read(&listing, way));
            Ok(match both {
                [Ok(outbound), Ok(inbound)] => whole_or_part(Plan::of(&outbound, &inbound)),
                [Err(wrong), _] | [_, Err(wrong)] => State::Part(wrong),
            })
        }
        Backend::Iptables => {
            let mut found = Vec::new();
            for family in families() {
                found.push((family, saved(family)?));
            }
            if found.iter().all(|(_, found)| !found.is_any()) {
                return Ok(State::Nothing);
            }
            let mut in_force = Vec::new();
            for (family, found) in found {
                match found.rules(family) {
                    Ok(rules) => in_force.push(rules),
                    Err(wrong) => return Ok(State::Part(format!("{}: {wrong}", family.program()))),
                }
            }
            Ok(match in_force.as_slice() {
                [v4, rest @ ..] => whole_or_part(iptables::plan(v4, rest.first())),
                [] => State::Nothing,
            })
        }
    }
}

fn whole_or_part(plan: Option<Plan>) -> State {
    plan.map_or_else(|| State::Part("rules are missing, or in another order".to_owned()), State::Whole)
}

/// Takes away what a backend has of ours; whether there was anything.
fn take_away(backend: Backend) -> Result<bool, Trouble> {
    match backend {
        Backend::Nft => {
            if nft_listing()?.is_none() {
                return Ok(false);
            }
            run("nft", &["--file", "-"], &nft::remove()).map(|_| true)
        }
        Backend::Iptables => {
            let mut any = false;
            for family in Family::BOTH {
                let found = match saved(family) {
                    Ok(found) => found,
                    // IPv6 may not be there at all.
                    Err(_) if family == Family::V6 => continue,
                    Err(trouble) => return Err(trouble),
                };
                if found.is_any() {
                    run(&format!("{}-restore", family.program()), &["--noflush"], &found.remove())?;
                    any = true;
                    leave_no_trace(&found, family);
                }
            }
            Ok(any)
        }
    }
}

/// Takes away what iptables of the nftables kind made for us, unless somebody else uses it by now: then
/// the kernel refuses. The older kind refuses, too: its built-in chains are always there.
fn leave_no_trace(found: &Found, family: Family) {
    for chain in found.made() {
        let _used_or_older = run(family.program(), &["-t", "nat", "-X", chain], "");
    }
    let table = [nft_family(family), "nat"];
    let empty = || {
        let listing = run("nft", &["list", "table", table[0], table[1]], "");
        listing.is_ok_and(|listing| !listing.contains("chain"))
    };
    if found.made_table() && empty() {
        let _gone = run("nft", &["delete", "table", table[0], table[1]], "");
    }
}
