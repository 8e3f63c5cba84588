//! The child's half of the promise that no process of the demo outlives the demo.
//!
//! Two independent bonds, because each alone has a hole. The *parent-death signal* is the kernel's:
//! it ends even a child that is stopped. The *lifeline* is a pipe on standard input whose other end
//! only the demo holds: it ends a child whose parent died before the signal was asked for.

use std::io::Read;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};

use clap::Parser;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

use crate::output;

/// Set by the demo in its children, to its own process id. Nothing people need to know about.
pub(super) const PARENT_VARIABLE: &str = "OUTRIGGER_DEMO_CHILD";
/// First argument of a child that is the order service instead of one of the public commands.
pub(super) const ORDER_SERVICE: &str = "order-service";
/// First argument of a child that makes an application behind it look sick.
pub(super) const RELAY: &str = "relay";
/// The last byte the demo wrote to the lifeline: an order to a relay. 0: none yet.
pub(super) static ORDERED: AtomicU8 = AtomicU8::new(0);

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// A command as typed, or a child that runs one.
    Command,
    /// A child that is the reference application.
    OrderService,
    /// A child that stands before an application, in chaos.
    Relay,
}

/// Ties this process to the demo that started it, if one did.
pub(crate) fn bind_to_parent() -> Role {
    let Some(parent) = std::env::var(PARENT_VARIABLE).ok().and_then(|text| Pid::from_raw(text.parse().ok()?))
    else {
        return Role::Command;
    };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        output::say(&format!(
            "outrigger: no parent-death signal ({error}): only the lifeline ends this process"
        ));
    }
    // A parent that died before the line above sends no signal any more.
    if getppid() != Some(parent) {
        std::process::exit(1);
    }
    let lifeline = std::thread::Builder::new().name("lifeline".to_owned()).spawn(wait_for_the_end);
    if lifeline.is_err() {
        std::process::exit(1);
    }
    match std::env::args().nth(1).as_deref() {
        Some(ORDER_SERVICE) => Role::OrderService,
        Some(RELAY) => Role::Relay,
        _ => Role::Command,
    }
}

/// Ends the process when the demo lets go of the pipe. What is written to it meanwhile are orders,
/// which only relays get.
fn wait_for_the_end() {
    let mut order = [0; 1];
    loop {
        match std::io::stdin().read(&mut order) {
            Ok(1..) => ORDERED.store(order[0], Ordering::Relaxed),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => std::process::exit(1),
        }
    }
}

#[derive(Debug, Parser)]
#[command(name = "outrigger")]
struct OrderServiceArgs {
    #[command(subcommand)]
    mode: order_service::cli::Command,
}

/// Runs the order service with the arguments after the first.
pub(crate) fn run_order_service() -> ExitCode {
    let args = OrderServiceArgs::parse_from(std::env::args_os().skip(1));
    order_service::cli::run_command(&args.mode)
}
