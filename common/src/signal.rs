//! SIGTERM, SIGINT and SIGHUP as one future.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Listens from the moment it is made, so that no signal between start-up and `wait` is lost.
#[derive(Debug)]
pub struct Shutdown {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Shutdown {
    /// Takes the three signals over.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns the name of the next signal.
    ///
    /// Cancel safety: safe; a signal that arrives while nobody waits is reported at the next call.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.hangup.recv() => "SIGHUP",
        }
    }
}
