//! The control thread's work: certificates, registration and the watch stream. What it learns
//! reaches the request path through [`directory::Directory`] alone.

pub mod certs;
pub mod clock;
pub mod compile;
pub mod destination;
pub mod directory;
pub mod disk;
pub mod first;
pub mod health;
pub mod link;
pub mod owners;
pub mod register;
pub mod snapshot;
pub mod state;
pub mod status;
pub mod watch;
