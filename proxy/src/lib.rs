//! The sidecar: carries an application's calls to other sidecars, and theirs to the application.
//!
//! A request's way, each step a module, in the order it runs:
//!
//! ```text
//! OUTBOUND  listener -> outbound::entry, which detects what is spoken
//!             server        HTTP/1.1 or HTTP/2 -> outbound::handle
//!             tcp           anything else, connection by connection -> tcp::relay
//!             find            where it goes
//!               destination   what the authority names
//!               directory     the service, from the snapshot or the registry
//!               route         which rule applies, and its backend
//!             terms           deadline, inherited or not; whether it may be repeated
//!             retry           attempts on endpoints not yet tried, within policy::budget
//!               balance       an endpoint of the Group: algorithm, breaker, slow start, zones
//!               hedge         perhaps a second attempt beside the first
//!               attempt       one exchange, judged; watch tells the balancer
//!                 pool        a stream to the endpoint's sidecar, identity checked
//!             mirror          copies nobody waits for
//!           <- http::body     counts, times and finishes the request's record
//! INBOUND   listener -> inbound (mutual TLS, SNI) -> inbound::handle
//!             served          the port SNI names, or nothing
//!             policy          who may call, how often; retries; a fair turn
//!             exchange        the application, over pool::app
//!           <- the response with its processing time
//! CAPTURED  outbound: capture (original destination, whose it is) -> a target
//!           inbound::plain (mTLS mode) -> refused, a probe answered, or inbound::handle as nobody
//! CONTROL   control::{certs, register, watch} on a thread of their own
//!             state -> compile -> directory, which requests read
//!             disk            the same for the next start
//! ```

pub mod admin;
pub mod app;
pub mod balance;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod error;
pub mod http;
pub mod inbound;
pub mod io;
pub mod listener;
pub mod outbound;
pub mod policy;
pub mod pool;
pub mod reason;
pub mod respond;
pub mod route;
pub mod runtime;
pub mod shared;
pub mod tcp;
pub mod telemetry;
pub mod tls;
