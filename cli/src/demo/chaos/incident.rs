//! What was broken, what the mesh did about it and what the client noticed: data, for table and summary.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::super::load::Noticed;
use super::super::metrics::round;
use super::super::repairs::Repairs;
use super::plan::Kind;

/// One fault and what came of it.
#[derive(Debug, Clone, Serialize)]
pub(in crate::demo) struct Incident {
    /// Which kind of fault.
    #[serde(rename = "fault")]
    pub(in crate::demo) kind: Kind,
    /// A workload, or the registry.
    pub(in crate::demo) target: String,
    /// Both, as a sentence.
    pub(in crate::demo) event: String,
    /// Since the load began.
    #[serde(rename = "at_s", serialize_with = "seconds")]
    pub(in crate::demo) at: Duration,
    /// Until all was whole again; not yet while it is `None`.
    #[serde(rename = "lasted_s", serialize_with = "optional_seconds")]
    pub(in crate::demo) lasted: Option<Duration>,
    /// Until the client's sidecar had set a replica aside: looked at ten times a second. `None` if it
    /// did not while the fault lasted.
    #[serde(rename = "ejected_after_s", serialize_with = "optional_seconds")]
    pub(in crate::demo) ejected_after: Option<Duration>,
    /// Share of the requests served while it lasted that the target served, where it is a replica.
    #[serde(serialize_with = "share")]
    pub(in crate::demo) target_share: Option<f64>,
    /// Attempts that failed, repeated or not, until the next fault.
    pub(in crate::demo) failed_attempts: u64,
    /// All the mesh did until the next fault.
    #[serde(flatten)]
    pub(in crate::demo) repairs: Repairs,
    /// By requests that were due while it lasted.
    pub(in crate::demo) client: Noticed,
}

impl Incident {
    /// A fault that begins.
    pub(super) fn new(kind: Kind, target: String, at: Duration) -> Self {
        Self {
            kind,
            event: kind.words(&target),
            target,
            at,
            lasted: None,
            ejected_after: None,
            target_share: None,
            failed_attempts: 0,
            repairs: Repairs::default(),
            client: Noticed::default(),
        }
    }

    /// Takes in what was done and noticed so far, `since` it began.
    pub(super) fn update(&mut self, repairs: Repairs, client: Noticed, since: Duration) {
        if self.lasted.is_none() && self.ejected_after.is_none() && repairs.ejections > 0.0 {
            self.ejected_after = Some(since);
        }
        self.failed_attempts = repairs.failed_attempts();
        self.repairs = repairs;
        self.client = client;
    }
}

/// Everything that was broken, the newest last.
#[derive(Debug, Default)]
pub(in crate::demo) struct Incidents(Mutex<Vec<Incident>>);

impl Incidents {
    /// What is known now.
    pub(in crate::demo) fn all(&self) -> Vec<Incident> {
        self.lock().clone()
    }

    pub(super) fn add(&self, incident: Incident) {
        self.lock().push(incident);
    }

    /// Changes the newest.
    pub(super) fn change(&self, change: impl FnOnce(&mut Incident)) {
        if let Some(newest) = self.lock().last_mut() {
            change(newest);
        }
    }

    /// Changes each, with its number from 0.
    pub(super) fn change_all(&self, change: impl Fn(usize, &mut Incident)) {
        self.lock().iter_mut().enumerate().for_each(|(number, incident)| change(number, incident));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Incident>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn seconds<S: Serializer>(span: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(round(span.as_secs_f64()))
}

fn optional_seconds<S: Serializer>(span: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    span.map(|span| round(span.as_secs_f64())).serialize(serializer)
}

fn share<S: Serializer>(share: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    share.map(round).serialize(serializer)
}
