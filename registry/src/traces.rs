//! Recent traces, as sidecars export them: bounded by spans and bytes, the oldest trace goes first.
//!
//! Pure. What a span says of itself is not verified; who sent it is recorded beside.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use serde::Serialize;
use serde_json::{Map, Value as Json};

/// What a span costs beside its texts: the struct, its place in the maps.
const SPAN_OVERHEAD: usize = 512;
/// Spans one trace may hold, so that a runaway trace cannot push out all others.
const MAX_TRACE_SPANS: usize = 2000;
const MAX_ATTRIBUTES: usize = 128;
/// Nesting of attribute values that is followed.
const MAX_DEPTH: usize = 8;

type TraceId = [u8; 16];
type SpanId = [u8; 8];

/// Traces in memory.
#[derive(Debug)]
pub struct Traces {
    max_spans: usize,
    max_bytes: usize,
    traces: HashMap<TraceId, Trace>,
    /// By arrival of their first span, oldest first.
    order: VecDeque<TraceId>,
    spans: usize,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Trace {
    spans: HashMap<SpanId, StoredSpan>,
    bytes: usize,
}

#[derive(Debug)]
struct StoredSpan {
    parent: Option<SpanId>,
    name: String,
    kind: &'static str,
    start: u64,
    end: u64,
    service: String,
    sender: Arc<str>,
    error: bool,
    attributes: Map<String, Json>,
}

/// How a batch was taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Received {
    /// Spans in it.
    pub received: u64,
    /// Of those, not kept.
    pub dropped: u64,
}

/// A trace in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// Start of its first span, nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// From there to the end of its last span.
    pub duration_ms: f64,
    /// How many spans are kept.
    pub spans: usize,
    /// Services that sent spans, in order of their names.
    pub services: Vec<String>,
    /// Name of the span without a parent, else of the first.
    pub root: String,
    /// Whether a span failed.
    pub error: bool,
}

/// A trace with its spans, in the order of their starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TraceView {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// Its spans.
    pub spans: Vec<SpanView>,
}

/// A span.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpanView {
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// 16 hexadecimal digits, or null.
    pub parent_span_id: Option<String>,
    /// Its name.
    pub name: String,
    /// `server`, `client`, `internal`, `producer` or `consumer`.
    pub kind: &'static str,
    /// Nanoseconds since 1970.
    pub start_unix_nano: u64,
    /// Nanoseconds since 1970.
    pub end_unix_nano: u64,
    /// End minus start.
    pub duration_ms: f64,
    /// `service.name` of its resource.
    pub service: String,
    /// SPIFFE id of the sidecar that sent it.
    pub sender: String,
    /// Whether its status is an error.
    pub error: bool,
    /// Its attributes.
    pub attributes: Map<String, Json>,
}

impl Traces {
    /// Keeps at most so many spans and bytes.
    pub fn new(max_spans: usize, max_bytes: usize) -> Self {
        Self { max_spans, max_bytes, traces: HashMap::new(), order: VecDeque::new(), spans: 0, bytes: 0 }
    }

    /// Spans and traces kept.
    pub fn len(&self) -> (usize, usize) {
        (self.spans, self.traces.len())
    }

    /// Takes a batch; makes room by dropping the oldest traces.
    pub fn receive(&mut self, batch: Vec<ResourceSpans>, sender: &Arc<str>) -> Received {
        let mut result = Received::default();
        for resource in batch {
            let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = service_name(&attributes);
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                result.received += 1;
                if !self.add(span, &service, sender) {
                    result.dropped += 1;
                }
            }
        }
        self.evict();
        result
    }

    fn add(&mut self, span: Span, service: &str, sender: &Arc<str>) -> bool {
        let (Ok(trace_id), Ok(span_id)) =
            (TraceId::try_from(&*span.trace_id), SpanId::try_from(&*span.span_id))
        else {
            return false;
        };
        if trace_id == [0; 16] || span_id == [0; 8] || self.max_spans == 0 {
            return false;
        }
        let known = self.traces.contains_key(&trace_id);
        let trace = self.traces.entry(trace_id).or_default();
        // An export repeated after a lost answer.
        if trace.spans.contains_key(&span_id) {
            return true;
        }
        if trace.spans.len() >= MAX_TRACE_SPANS.min(self.max_spans) {
            return false;
        }
        let stored = store(span, service, sender);
        let bytes = stored.bytes();
        trace.bytes += bytes;
        trace.spans.insert(span_id, stored);
        self.spans += 1;
        self.bytes += bytes;
        if !known {
            self.order.push_back(trace_id);
        }
        true
    }

    fn evict(&mut self) {
        while self.spans > self.max_spans || self.bytes > self.max_bytes {
            let Some(oldest) = self.order.pop_front() else { return };
            if let Some(trace) = self.traces.remove(&oldest) {
                self.spans -= trace.spans.len();
                self.bytes -= trace.bytes;
            }
        }
    }

    /// The newest traces, newest first; of one service if it is named.
    pub fn list(&self, service: Option<&str>, limit: usize) -> Vec<Summary> {
        let traces = self.order.iter().rev().filter_map(|id| Some((id, self.traces.get(id)?)));
        let serves =
            |trace: &Trace| service.is_none_or(|name| trace.spans.values().any(|span| span.service == name));
        traces.filter(|(_, trace)| serves(trace)).take(limit).map(|(id, trace)| trace.summary(id)).collect()
    }

    /// One trace, by its id in hexadecimal digits.
    pub fn get(&self, id: &str) -> Option<TraceView> {
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let trace = self.traces.get(&u128::from_str_radix(id, 16).ok()?.to_be_bytes())?;
        let mut spans: Vec<_> = trace.spans.iter().map(|(id, span)| span.view(id)).collect();
        spans.sort_by(|a, b| (a.start_unix_nano, &a.span_id).cmp(&(b.start_unix_nano, &b.span_id)));
        Some(TraceView { trace_id: id.to_ascii_lowercase(), spans })
    }
}

impl Trace {
    fn summary(&self, id: &TraceId) -> Summary {
        let start = self.spans.values().map(|span| span.start).min().unwrap_or_default();
        let end = self.spans.values().map(|span| span.end).max().unwrap_or_default();
        let services: BTreeSet<&str> = self.spans.values().map(|span| span.service.as_str()).collect();
        let root = self.spans.values().min_by_key(|span| (span.parent.is_some(), span.start));
        Summary {
            trace_id: hex(id),
            start_unix_nano: start,
            duration_ms: millis(start, end),
            spans: self.spans.len(),
            services: services.into_iter().map(ToOwned::to_owned).collect(),
            root: root.map(|span| span.name.clone()).unwrap_or_default(),
            error: self.spans.values().any(|span| span.error),
        }
    }
}

impl StoredSpan {
    fn bytes(&self) -> usize {
        let attributes: usize =
            self.attributes.iter().map(|(key, value)| 64 + key.len() + json_bytes(value)).sum();
        SPAN_OVERHEAD + self.name.len() + self.service.len() + attributes
    }

    fn view(&self, id: &SpanId) -> SpanView {
        SpanView {
            span_id: hex(id),
            parent_span_id: self.parent.as_ref().map(|parent| hex(parent)),
            name: self.name.clone(),
            kind: self.kind,
            start_unix_nano: self.start,
            end_unix_nano: self.end,
            duration_ms: millis(self.start, self.end),
            service: self.service.clone(),
            sender: self.sender.to_string(),
            error: self.error,
            attributes: self.attributes.clone(),
        }
    }
}

fn store(span: Span, service: &str, sender: &Arc<str>) -> StoredSpan {
    /// `STATUS_CODE_ERROR` of the trace protocol.
    const ERROR: i32 = 2;
    let kind = match span.kind() {
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
        SpanKind::Internal | SpanKind::Unspecified => "internal",
    };
    StoredSpan {
        parent: SpanId::try_from(&*span.parent_span_id).ok().filter(|id| *id != [0; 8]),
        kind,
        start: span.start_time_unix_nano,
        end: span.end_time_unix_nano,
        service: service.to_owned(),
        sender: sender.clone(),
        error: span.status.is_some_and(|status| status.code == ERROR),
        attributes: span
            .attributes
            .into_iter()
            .take(MAX_ATTRIBUTES)
            .map(|kv| (kv.key, json(kv.value, 0)))
            .collect(),
        name: span.name,
    }
}

fn service_name(attributes: &[KeyValue]) -> String {
    let name = attributes
        .iter()
        .find(|kv| kv.key == "service.name")
        .and_then(|kv| kv.value.as_ref()?.value.as_ref());
    match name {
        Some(Value::StringValue(name)) => name.clone(),
        Some(_) | None => String::new(),
    }
}

fn json(value: Option<AnyValue>, depth: usize) -> Json {
    match value.and_then(|value| value.value) {
        _ if depth > MAX_DEPTH => Json::Null,
        None => Json::Null,
        Some(Value::StringValue(text)) => text.into(),
        Some(Value::BoolValue(value)) => value.into(),
        Some(Value::IntValue(value)) => value.into(),
        Some(Value::DoubleValue(value)) => value.into(),
        Some(Value::BytesValue(bytes)) => hex(&bytes).into(),
        Some(Value::ArrayValue(array)) => {
            array.values.into_iter().map(|v| json(Some(v), depth + 1)).collect()
        }
        Some(Value::KvlistValue(list)) => {
            Json::Object(list.values.into_iter().map(|kv| (kv.key, json(kv.value, depth + 1))).collect())
        }
        // A reference into a dictionary that only profiles have.
        Some(Value::StringValueStrindex(_)) => Json::Null,
    }
}

fn json_bytes(value: &Json) -> usize {
    match value {
        Json::Null | Json::Bool(_) | Json::Number(_) => 32,
        Json::String(text) => 32 + text.len(),
        Json::Array(values) => 32 + values.iter().map(json_bytes).sum::<usize>(),
        Json::Object(map) => {
            32 + map.iter().map(|(key, value)| 64 + key.len() + json_bytes(value)).sum::<usize>()
        }
    }
}

fn millis(start: u64, end: u64) -> f64 {
    end.saturating_sub(start) as f64 / 1e6
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::ScopeSpans;

    fn text(key: &str, value: &str) -> KeyValue {
        let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
        KeyValue { key: key.to_owned(), value: Some(value), ..Default::default() }
    }

    fn batch(trace: u8, span: u8, parent: u8, service: &str) -> Vec<ResourceSpans> {
        let span = Span {
            trace_id: vec![trace; 16],
            span_id: vec![span; 8],
            parent_span_id: if parent == 0 { vec![] } else { vec![parent; 8] },
            name: format!("span {span}"),
            start_time_unix_nano: u64::from(span) * 1_000_000,
            end_time_unix_nano: u64::from(span) * 1_000_000 + 2_000_000,
            attributes: vec![text("k", "v")],
            ..Default::default()
        };
        let resource = Resource { attributes: vec![text("service.name", service)], ..Default::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
        vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }]
    }

    #[test]
    fn a_trace_is_put_together_from_its_senders() {
        let mut traces = Traces::new(100, 1 << 20);
        let (a, b): (Arc<str>, Arc<str>) = ("spiffe://m/ns/x/sa/a".into(), "spiffe://m/ns/x/sa/b".into());
        traces.receive(batch(1, 3, 2, "orders.shop"), &b);
        traces.receive(batch(1, 2, 0, "front.shop"), &a);
        traces.receive(batch(1, 2, 0, "front.shop"), &a);
        let list = traces.list(Some("orders.shop"), 10);
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].root.as_str(), list[0].spans, list[0].duration_ms), ("span 2", 2, 3.0));
        assert_eq!(list[0].services, ["front.shop", "orders.shop"]);
        assert_eq!(traces.list(Some("else.shop"), 10), []);
        let view = traces.get(&list[0].trace_id).unwrap();
        assert_eq!(view.spans[1].parent_span_id.as_deref(), Some("0202020202020202"));
        assert_eq!((view.spans[1].sender.as_str(), view.spans[1].attributes["k"].as_str()), (&*b, Some("v")));
        assert!(traces.get("xyz").is_none());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_trace_goes_first() {
        let sender: Arc<str> = "s".into();
        let mut traces = Traces::new(3, 1 << 20);
        for trace in 1..=5 {
            traces.receive(batch(trace, 1, 0, "a.b"), &sender);
        }
        assert_eq!(traces.len(), (3, 3));
        let ids: Vec<_> = traces.list(None, 10).into_iter().map(|t| t.trace_id[..2].to_owned()).collect();
        assert_eq!(ids, ["05", "04", "03"]);
        let mut small = Traces::new(1000, 3 * SPAN_OVERHEAD);
        for trace in 1..=50 {
            small.receive(batch(trace, 1, 0, "a.b"), &sender);
            assert!(small.bytes <= 3 * SPAN_OVERHEAD);
        }
        assert_eq!(small.len().0, 2);
    }

    #[test]
    fn malformed_spans_are_counted_and_left_out() {
        let mut traces = Traces::new(10, 1 << 20);
        let mut bad = batch(1, 1, 0, "a.b");
        bad[0].scope_spans[0].spans[0].trace_id.pop();
        assert_eq!(traces.receive(bad, &"s".into()), Received { received: 1, dropped: 1 });
        assert_eq!(Traces::new(0, 0).receive(batch(1, 1, 0, "a"), &"s".into()).dropped, 1);
        assert_eq!(traces.len(), (0, 0));
    }
}
