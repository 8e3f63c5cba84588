//! What is answered without mutual TLS in a strict mesh: declared probes, by the sidecar, with a status
//! and nothing else. Everything else is told why it is refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use outrigger_common::tasks::Tasks;
use tokio::sync::watch;

use super::served::ServedPort;
use crate::control::health::probe::{self, Failure};
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::headers;
use crate::reason::Reason;
use crate::respond;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;
use crate::telemetry::environment::Sampling;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::trace::TraceContext;

/// A declared probe: a path, asked for once at a time. Whoever reaches the port may ask, and each could be a
/// request of the application's; those that come while one is under way share its answer, so that no crowd
/// of strangers costs the application more than one, or the kubelet its turn.
#[derive(Debug)]
pub struct Probe {
    path: PathAndQuery,
    under_way: Mutex<Option<watch::Receiver<Option<Answer>>>>,
}

/// What the application says, and why the sidecar says it where the application did not.
type Answer = (StatusCode, Option<Reason>);

impl Probe {
    /// Of this path, which has no query.
    pub fn new(path: PathAndQuery) -> Self {
        Self { path, under_way: Mutex::default() }
    }

    /// The application's answer, for which `ask` asks where nobody has. The question is nobody's own: it
    /// goes on when those who wait for it have left, or a crowd that comes and goes would ask again and
    /// again.
    ///
    /// Cancel safety: safe.
    async fn answer<F>(&self, tasks: &Tasks, ask: impl FnOnce() -> F) -> Answer
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut answer = self.turn(tasks, ask);
        match answer.wait_for(Option::is_some).await.map(|answer| *answer) {
            Ok(Some(answer)) => answer,
            // The question is gone without one.
            Ok(None) | Err(_) => (StatusCode::BAD_GATEWAY, Some(Reason::AppReset)),
        }
    }

    fn turn<F>(&self, tasks: &Tasks, ask: impl FnOnce() -> F) -> watch::Receiver<Option<Answer>>
    where
        F: Future<Output = Answer> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let open =
            |turn: &&watch::Receiver<Option<Answer>>| turn.borrow().is_none() && turn.has_changed().is_ok();
        if let Some(turn) = under_way.as_ref().filter(open) {
            return turn.clone();
        }
        let (sender, receiver) = watch::channel(None);
        *under_way = Some(receiver.clone());
        let asking = ask();
        tasks.spawn("probe", async move {
            let _nobody_waits = sender.send(Some(asking.await));
        });
        receiver
    }
}

/// Answers a request that came without mutual TLS: the probe it is, or 403.
pub async fn answer(
    shared: &Arc<Shared>,
    port: Option<&Arc<ServedPort>>,
    edge: Arc<Edge>,
    request: Request<Incoming>,
) -> Response<Body> {
    // Nobody vouches for what it says of a trace.
    let trace = TraceContext::from_headers(&http::HeaderMap::new(), Sampling::parent_based(0.0));
    let spoken = headers::spoken(request.headers(), request.version());
    let mut record = RequestRecord::start(edge, Instant::now(), spoken, trace);
    let (head, body) = request.into_parts();
    let asked = port.and_then(|port| Some((port, asked(&head, body.is_end_stream(), &port.probes)?)));
    let Some((port, probe)) = asked else {
        return respond::with_error(&ProxyError::PlaintextRefused, record);
    };
    let asking = || ask(shared.clone(), port.clone(), probe.path.clone());
    let (status, reason) = probe.answer(&shared.tasks, asking).await;
    record.responded(status);
    if let Some(reason) = reason {
        record.explained(reason);
    }
    record.completed();
    drop(record);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(reason) = reason {
        headers.insert(headers::REASON, HeaderValue::from_static(reason.as_str()));
    }
    response
}

/// The declared probe that a request is, byte for byte: GET of HTTP/1, origin-form, this path and no
/// query, no body.
fn asked<'p>(head: &Parts, empty: bool, probes: &'p [Probe]) -> Option<&'p Probe> {
    let http1 = matches!(head.version, Version::HTTP_10 | Version::HTTP_11);
    let origin_form = head.uri.scheme().is_none() && head.uri.authority().is_none();
    let one_host = head.headers.get_all(HOST).iter().count() <= 1;
    if !(http1 && origin_form && one_host && empty && head.method == Method::GET) {
        return None;
    }
    let path = head.uri.path_and_query()?.as_str();
    probes.iter().find(|probe| probe.path.as_str() == path)
}

/// What the application says. Of the request that came not a byte goes to it.
async fn ask(shared: Arc<Shared>, port: Arc<ServedPort>, path: PathAndQuery) -> Answer {
    let how = (shared.config.health.timeout, &shared.tasks);
    match probe::status(port.app.address(), &path, port.protocol, how).await {
        Ok(status) => (status, None),
        Err(Failure::Timeout(_)) => (StatusCode::GATEWAY_TIMEOUT, Some(Reason::AppTimeout)),
        Err(Failure::Refused | Failure::Connect(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(Reason::AppUnreachable))
        }
        Err(_) => (StatusCode::BAD_GATEWAY, Some(Reason::AppReset)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::Semaphore;

    use super::*;

    fn head(method: &str, target: &str, version: Version) -> Parts {
        let request = Request::builder().method(method).uri(target).version(version);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_the_declared_get_is_a_probe() {
        let probes = ["/healthz", "/a%20b"].map(|path| Probe::new(PathAndQuery::from_static(path)));
        let is = |method: &str, target: &str, version: Version, empty: bool| {
            asked(&head(method, target, version), empty, &probes).map(|probe| probe.path.as_str())
        };
        let v11 = Version::HTTP_11;
        assert_eq!(is("GET", "/healthz", v11, true), Some("/healthz"));
        assert_eq!(is("GET", "/healthz", Version::HTTP_10, true), Some("/healthz"));
        assert_eq!(is("GET", "/a%20b", v11, true), Some("/a%20b"));
        for target in [
            "/",
            "/healthz/",
            "//healthz",
            "/healthz?",
            "/healthz?x",
            "/healthz/../x",
            "/./healthz",
            "/x/../healthz",
            "/%68ealthz",
            "/Healthz",
            "/healthz;x",
            "/healthz%00",
            "http://orders.shop/healthz",
            "/a%2520b",
        ] {
            assert_eq!(is("GET", target, v11, true), None, "{target}");
        }
        for method in ["HEAD", "POST", "OPTIONS", "get", "PUT", "TRACE"] {
            assert_eq!(is(method, "/healthz", v11, true), None, "{method}");
        }
        assert_eq!(is("GET", "/healthz", v11, false), None, "with a body");
        assert_eq!(is("GET", "/healthz", Version::HTTP_2, true), None);
        let mut two = head("GET", "/healthz", v11);
        for host in ["a", "b"] {
            two.headers.append(HOST, HeaderValue::from_static(host));
        }
        assert!(asked(&two, true, &probes).is_none(), "two hosts");
    }

    #[tokio::test]
    async fn those_that_come_meanwhile_share_one_answer_and_those_that_leave_cost_none() {
        let probe = Probe::new(PathAndQuery::from_static("/healthz"));
        let (tasks, asked, gate) =
            (Tasks::current(), Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (asked, gate) = (asked.clone(), gate.clone());
            async move {
                asked.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
                (StatusCode::OK, None)
            }
        };
        for _ in 0..100 {
            let leaves = tokio::time::timeout(Duration::ZERO, probe.answer(&tasks, ask)).await;
            assert!(leaves.is_err());
        }
        let (first, second) = (probe.answer(&tasks, ask), probe.answer(&tasks, ask));
        let answered = async {
            gate.add_permits(1);
        };
        let (first, second, ()) = tokio::join!(first, second, answered);
        assert_eq!([first, second], [(StatusCode::OK, None); 2]);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        // What is over is no answer to those that come later.
        gate.add_permits(1);
        let _answer = probe.answer(&tasks, ask).await;
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        // Nor is a question that was lost.
        let lost = probe.answer(&tasks, || async { panic!("on purpose") }).await;
        assert_eq!(lost, (StatusCode::BAD_GATEWAY, Some(Reason::AppReset)));
        gate.add_permits(1);
        assert_eq!(probe.answer(&tasks, ask).await, (StatusCode::OK, None));
    }
}
