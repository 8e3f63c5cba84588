//! How a command ends when it does not end well, as text for people and an exit code for scripts.

use std::fmt;
use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// What was given is wrong (arguments, files, identity); nothing was attempted. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// What was asked for did not happen. Exit code 1.
    #[error("{0}")]
    Job(String),
}

impl Failure {
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::Usage(message.to_string())
    }

    pub(crate) fn job(message: impl fmt::Display) -> Self {
        Self::Job(message.to_string())
    }

    /// The exit code scripts see; clap uses 2 for arguments it refuses, too.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) => ExitCode::from(2),
            Self::Job(_) => ExitCode::from(1),
        }
    }
}

/// Writing to standard output failed. A reader that went away (`| head`) ends the command quietly,
/// as it does everywhere else.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::Job(String::new()),
            _ => Self::Job(format!("cannot write to standard output: {error}")),
        }
    }
}
