//! HTTP as a proxy sees it: bodies that count, keep and time what passes, and headers that end here.

pub mod body;
pub mod exec;
pub mod finale;
pub mod headers;
pub mod incoming;
pub mod refusal;
pub mod replay;
pub mod stalled;
pub mod stream_io;
pub mod tunnel;
pub mod upgrade;
pub mod window;
