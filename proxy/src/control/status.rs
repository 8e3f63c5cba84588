//! How the sidecar stands towards the registry: what `/ready` and the gauges say.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Facts the control tasks report and the admin port reads.
#[derive(Debug, Default)]
pub struct Status(Mutex<Facts>);

#[derive(Debug, Default, Clone)]
struct Facts {
    certificate: bool,
    first_snapshot: bool,
    registered: bool,
    connected: bool,
    /// When the registry last confirmed the snapshot, while the stream is down.
    confirmed: Option<Instant>,
    draining: bool,
    /// Why this sidecar can prove no identity any more.
    expired: Option<String>,
    /// Why the registry cannot be used, if it cannot.
    trouble: Option<String>,
}

impl Status {
    fn with<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.0.lock().expect("no holder of this lock panics"))
    }

    /// The first certificate is there.
    pub fn certified(&self) {
        self.with(|facts| facts.certificate = true);
    }

    /// The watch stream is up.
    pub fn connected(&self) {
        self.with(|facts| {
            facts.connected = true;
            facts.trouble = None;
        });
    }

    /// The watch stream is down, at `now`.
    pub fn disconnected(&self, now: Instant, why: String) {
        self.with(|facts| {
            if std::mem::take(&mut facts.connected) {
                facts.confirmed = Some(now);
            }
            facts.trouble = Some(why);
        });
    }

    /// What the registry cannot be used for now.
    pub fn trouble(&self, why: String) {
        self.with(|facts| facts.trouble = Some(why));
    }

    /// Everything subscribed to at start has been answered.
    pub fn first_snapshot(&self) {
        self.with(|facts| facts.first_snapshot = true);
    }

    /// The workload is registered.
    pub fn registered(&self) {
        self.with(|facts| facts.registered = true);
    }

    /// The certificate has expired, and why it stays so; `None`: it is valid again.
    pub fn expired(&self, why: Option<String>) {
        self.with(|facts| facts.expired = why);
    }

    /// The end has begun.
    pub fn draining(&self) {
        self.with(|facts| facts.draining = true);
    }

    /// Whether the watch stream is up.
    pub fn is_connected(&self) -> bool {
        self.with(|facts| facts.connected)
    }

    /// Time since the registry last confirmed the snapshot: zero while the stream is up.
    pub fn snapshot_age(&self, now: Instant) -> Duration {
        self.with(|facts| match facts.confirmed {
            Some(confirmed) if !facts.connected => now.saturating_duration_since(confirmed),
            Some(_) | None => Duration::ZERO,
        })
    }

    /// What is missing before requests may come; empty when ready. Losing the registry later does not
    /// make a sidecar unready.
    pub fn missing(&self) -> Vec<String> {
        self.with(|facts| {
            let mut missing = Vec::new();
            for (there, what) in [
                (facts.certificate, "no certificate yet"),
                (facts.first_snapshot, "no snapshot yet"),
                (facts.registered, "not registered yet"),
                (!facts.draining, "draining"),
            ] {
                if !there {
                    missing.push(what.to_owned());
                }
            }
            missing.extend(facts.expired.clone());
            if !missing.is_empty()
                && let Some(trouble) = &facts.trouble
            {
                missing.push(trouble.clone());
            }
            missing
        })
    }
}
