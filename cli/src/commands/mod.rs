//! One file a command. Each builds the runtime it needs: the sidecar and the registry bring their own.

mod apply;
mod completions;
mod get;
mod policies;
mod registry;
mod token;
mod version;

use std::future::Future;
use std::process::ExitCode;

use crate::args::{Command, RegistryArgs, RegistryCommand};
use crate::failure::Failure;
use crate::{capture, demo, output};

/// Runs a command and returns its exit code; what went wrong is said on standard error.
pub(crate) fn run(command: Command) -> ExitCode {
    let result = match command {
        Command::Proxy(args) => return outrigger_proxy::cli::main_with(&args),
        Command::Registry(RegistryArgs { command: None, run }) => {
            return outrigger_registry::cli::main_with(&run);
        }
        Command::Registry(RegistryArgs { command: Some(RegistryCommand::Backup(args)), .. }) => {
            registry::check(&args).and_then(|()| block_on(registry::backup(&args)))
        }
        Command::Registry(RegistryArgs { command: Some(RegistryCommand::Restore(args)), .. }) => {
            registry::restore(&args)
        }
        Command::Demo(args) => demo::check(&args).and_then(|()| block_on(demo::run(&args))),
        Command::Apply(args) => {
            apply::read(&args).and_then(|resources| block_on(apply::run(&args, resources)))
        }
        Command::Get(args) => block_on(get::run(&args)),
        Command::Token(args) => block_on(token::run(&args)),
        Command::Capture(args) => capture::command(&args),
        Command::Version(args) => version::run(&args),
        Command::Completions(args) => completions::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let message = failure.to_string();
            if !message.is_empty() {
                output::say(&format!("outrigger: {message}"));
            }
            failure.exit_code()
        }
    }
}

/// Runs a future on this thread: commands wait for one thing at a time, and the demo's children are
/// bound to the thread that started them.
fn block_on(future: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::job(format!("cannot start: {error}")))?;
    runtime.block_on(future)
}
