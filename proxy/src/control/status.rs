//! How the sidecar stands towards the registry: what `/ready` and the gauges say.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Facts the control tasks report and the admin port reads.
#[derive(Debug, Default)]
pub struct Status {
    facts: Mutex<Facts>,
    /// The same as [`Facts::connected`], for those who wait for it.
    connected: watch::Sender<bool>,
}

#[derive(Debug, Default, Clone)]
struct Facts {
    certificate: bool,
    first_snapshot: bool,
    registered: bool,
    /// Why the registry does not register this workload.
    unregistered: Option<String>,
    connected: bool,
    /// While the stream is down: a moment, and how old the snapshot was then.
    confirmed: Option<(Instant, Duration)>,
    /// This process began with the snapshot of an earlier one.
    restored: bool,
    /// No registry has confirmed that snapshot since.
    from_disk: bool,
    draining: bool,
    /// Why this sidecar can prove no identity any more.
    expired: Option<String>,
    /// Why the registry cannot be used, if it cannot.
    trouble: Option<String>,
    /// Why state cannot be written, if it cannot.
    disk: Option<String>,
    /// How far the clock is off, if it is.
    clock: Option<String>,
}

impl Status {
    fn with<T>(&self, change: impl FnOnce(&mut Facts) -> T) -> T {
        change(&mut self.facts.lock().expect("no holder of this lock panics"))
    }

    /// The first certificate is there.
    pub fn certified(&self) {
        self.with(|facts| facts.certificate = true);
    }

    /// The watch stream to the right registry is up.
    pub fn connected(&self) {
        self.with(|facts| {
            facts.connected = true;
            facts.from_disk = false;
            facts.trouble = None;
        });
        self.connected.send_replace(true);
    }

    /// The watch stream is down, at `now`.
    pub fn disconnected(&self, now: Instant, why: String) {
        self.with(|facts| {
            if std::mem::take(&mut facts.connected) {
                facts.confirmed = Some((now, Duration::ZERO));
            }
            facts.trouble = Some(why);
        });
        self.connected.send_replace(false);
    }

    /// Hears when the watch stream goes up and down.
    pub fn connections(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    /// A snapshot of an earlier process is in force, `age` old at `now`.
    pub fn restored(&self, now: Instant, age: Duration) {
        self.with(|facts| {
            facts.restored = true;
            facts.from_disk = true;
            facts.confirmed = Some((now, age));
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
        self.with(|facts| {
            facts.registered = true;
            facts.unregistered = None;
        });
    }

    /// The registry answered, and did not register the workload.
    pub fn unregistered(&self, why: String) {
        self.with(|facts| facts.unregistered = Some(why));
    }

    /// The certificate has expired, and why it stays so; `None`: it is valid again.
    pub fn expired(&self, why: Option<String>) {
        self.with(|facts| facts.expired = why);
    }

    /// Why state cannot be written; `None`: it can.
    pub fn disk(&self, why: Option<String>) {
        self.with(|facts| facts.disk = why);
    }

    /// How far this machine's clock is off; `None`: it is right. Returns whether that is news.
    pub fn clock(&self, how: Option<String>) -> bool {
        self.with(|facts| {
            let news = facts.clock.is_some() != how.is_some();
            facts.clock = how;
            news
        })
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
        self.with(|facts| facts.age(now))
    }

    /// What is missing before requests may come; empty when ready. Losing the registry later does not
    /// make a sidecar unready, nor does a registry that is away when there is state on disk.
    pub fn missing(&self) -> Vec<String> {
        self.with(|facts| {
            let mut missing = Vec::new();
            // A sidecar that can serve from disk waits for its registration as one that lost it does.
            let registered = facts.registered || (facts.restored && facts.unregistered.is_none());
            for (there, what) in [
                (facts.certificate, "no certificate yet"),
                (facts.first_snapshot, "no snapshot yet"),
                (registered, "not registered yet"),
                (!facts.draining, "draining"),
            ] {
                if !there {
                    missing.push(what.to_owned());
                }
            }
            missing.extend(facts.expired.clone());
            if !missing.is_empty() {
                missing.extend(facts.unregistered.clone().filter(|_| !registered));
                missing.extend(facts.trouble.clone());
            }
            missing
        })
    }

    /// What an operator should know although requests are served.
    pub fn notes(&self, now: Instant) -> Vec<String> {
        self.with(|facts| {
            let mut notes = Vec::new();
            if facts.from_disk {
                let age = facts.age(now).as_secs();
                notes.push(format!("serving from state on disk, {age} seconds old"));
            }
            if !facts.connected {
                notes.extend(facts.trouble.clone());
            }
            notes.extend(facts.unregistered.clone());
            notes.extend(facts.disk.clone());
            notes.extend(facts.clock.clone());
            notes
        })
    }
}

impl Facts {
    fn age(&self, now: Instant) -> Duration {
        match self.confirmed {
            Some((at, age)) if !self.connected => age + now.saturating_duration_since(at),
            Some(_) | None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_on_disk_is_enough_to_be_ready_until_the_registry_refuses() {
        let (status, now) = (Status::default(), Instant::now());
        status.certified();
        status.restored(now, Duration::from_secs(40));
        status.first_snapshot();
        status.disconnected(now, "the registry is away".into());
        assert_eq!(status.missing(), Vec::<String>::new());
        let later = now + Duration::from_secs(2);
        assert_eq!(status.snapshot_age(later), Duration::from_secs(42));
        let notes = status.notes(later);
        assert_eq!(notes, ["serving from state on disk, 42 seconds old", "the registry is away"]);

        status.connected();
        assert_eq!((status.missing(), status.notes(later)), (Vec::new(), Vec::new()));
        assert_eq!(status.snapshot_age(later), Duration::ZERO);
        status.unregistered("not registered: no".into());
        assert_eq!(status.missing(), ["not registered yet", "not registered: no"]);
        status.registered();
        assert_eq!(status.missing(), Vec::<String>::new());
        status.disconnected(later, "away".into());
        assert_eq!(status.snapshot_age(later), Duration::ZERO);
        assert_eq!(status.notes(later), ["away"]);
    }

    #[test]
    fn without_state_a_sidecar_waits_for_everything() {
        let status = Status::default();
        status.disconnected(Instant::now(), "refused".into());
        assert_eq!(
            status.missing(),
            ["no certificate yet", "no snapshot yet", "not registered yet", "refused"]
        );
    }
}
