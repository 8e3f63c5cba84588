//! How much goes on at once: a plain bound, and a bound with a fair queue whose size may follow the
//! latency.

pub mod adaptive;
mod bound;
mod by_identity;
mod concurrency;
pub mod fair;

pub use bound::{Bound, BoundPermit};
pub use by_identity::{BoundByIdentity, IdentityPermit};
pub use concurrency::{Admission, Concurrency, Permit, Settings, State, Waiting};
pub use fair::Shed;
