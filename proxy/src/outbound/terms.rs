//! What may be done with a call: its deadline, from the policy, the client and the request under
//! which the application makes it; whether it may be repeated.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;

use super::call::Terms;
use super::policy::CallPolicy;
use crate::http::headers;
use crate::policy::deadline;
use crate::policy::inherited::{Inheritance, Lookup};
use crate::shared::Shared;
use crate::telemetry::record::RequestRecord;

/// The terms of a request whose head was read at `at`. An inherited deadline and attempt are those of
/// the requests the application works on that the call's trace context leads to.
pub fn of(
    shared: &Arc<Shared>,
    head: &Parts,
    policy: &CallPolicy,
    record: &RequestRecord,
    at: Instant,
) -> Terms {
    let grpc = record.is_grpc();
    let by_policy = policy.deadline.and_then(|limit| at.checked_add(limit));
    let by_client = head.headers.get(&headers::GRPC_TIMEOUT).filter(|_| grpc);
    let by_client = by_client.and_then(|value| at.checked_add(deadline::parse_grpc(value.as_bytes())?));
    let inherited = inherited(shared, record);
    let earlier = by_client.into_iter().chain(inherited.deadline).min();
    Terms {
        repeatable: headers::repeatable(&head.method, &head.headers),
        under_retry: inherited.attempt > 1,
        grpc,
        deadline: by_policy.into_iter().chain(earlier).min(),
        deadline_by_policy: match (by_policy, earlier) {
            (Some(policy), Some(earlier)) => policy <= earlier,
            (Some(_), None) => true,
            (None, _) => false,
        },
        hash: None,
    }
}

fn inherited(shared: &Shared, record: &RequestRecord) -> Inheritance {
    let nothing = Inheritance { deadline: None, attempt: 1 };
    // The common case: the application works under no deadline and no retry.
    if !shared.inherited.binding() {
        return nothing;
    }
    // A trace that starts here has no parent: the call carried no context.
    let context = Some((record.trace.trace_id, record.trace.parent_id)).filter(|(_, parent)| *parent != 0);
    let (result, found) = match shared.inherited.lookup(context) {
        Lookup::Exact(found) => ("exact", found),
        Lookup::ByTrace(found) => ("by_trace", found),
        Lookup::Miss => {
            shared.metrics.inherited("no_context");
            return nothing;
        }
    };
    shared.metrics.inherited(result);
    found
}
