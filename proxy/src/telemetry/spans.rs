//! Spans of sampled requests, from the request path to a collector.
//!
//! The request path hands finished spans to a bounded queue and never waits; the control thread
//! batches them out over OTLP. A dead collector costs counted spans and nothing else. The SDK's own
//! batch processor is not used: it keeps a thread of its own and does not say what it dropped.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use outrigger_common::drain::Drain;
use outrigger_common::telemetry::chain;

use super::environment::{Batching, Environment};
use super::metrics::Metrics;
use super::trace::TraceContext;
use crate::control::link::Link;

/// What a finished span is made of.
#[derive(Debug)]
pub struct FinishedSpan {
    /// The trace.
    pub context: TraceContext,
    /// Its own id.
    pub span_id: u64,
    /// Server or client.
    pub kind: SpanKind,
    /// Method and destination.
    pub name: String,
    /// Start and end.
    pub times: (SystemTime, SystemTime),
    /// HTTP attributes.
    pub attributes: Vec<KeyValue>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// The request path's end of the queue. Cheap to clone.
#[derive(Debug, Clone)]
pub struct SpanSink {
    queue: mpsc::Sender<FinishedSpan>,
    metrics: Arc<Metrics>,
    disabled: bool,
}

impl SpanSink {
    /// Whether no spans are wanted at all.
    pub fn disabled(&self) -> bool {
        self.disabled
    }

    /// Queues a span, or counts it as dropped when the queue is full.
    pub fn send(&self, span: FinishedSpan) {
        if self.queue.try_send(span).is_err() {
            self.metrics.spans_lost("queue_full", 1);
        }
    }
}

/// Makes the queue; the receiver goes to an [`Exporter`].
pub fn queue(environment: &Environment, metrics: Arc<Metrics>) -> (SpanSink, mpsc::Receiver<FinishedSpan>) {
    let (queue, spans) = mpsc::channel(environment.batching.queue);
    (SpanSink { queue, metrics, disabled: environment.disabled }, spans)
}

/// Where spans go.
#[derive(Debug)]
pub enum Target {
    /// The registry, over the channel of the newest certificate.
    Registry(Arc<Link>),
    /// A collector of the operator's.
    Collector(Channel),
}

/// Who says so.
#[derive(Debug)]
pub struct Identity {
    /// `service.name`.
    pub service: String,
    /// Further attributes of the resource.
    pub attributes: Vec<KeyValue>,
}

/// Takes spans from the queue to a collector.
#[derive(Debug)]
pub struct Exporter {
    /// Where they go.
    pub target: Target,
    /// Sizes and times.
    pub batching: Batching,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
    /// Heard at the end: what is queued then is sent, and that is all.
    pub finish: Drain,
}

impl Exporter {
    /// Exports until the end.
    pub async fn run(self, identity: Identity, mut spans: mpsc::Receiver<FinishedSpan>) {
        let Self { target, batching, metrics, finish } = self;
        // OTEL_RESOURCE_ATTRIBUTES is read by the SDK.
        let resource = Resource::builder()
            .with_attributes(identity.attributes)
            .with_service_name(identity.service)
            .build();
        let scope = InstrumentationScope::builder("outrigger")
            .with_version(outrigger_common::build_info::VERSION)
            .build();
        let mut failing = false;
        while let Some(batch) = next_batch(&mut spans, batching, &finish).await {
            let count = batch.len();
            let batch = batch.into_iter().map(|span| span.into_data(&scope)).collect();
            let error = match tokio::time::timeout(batching.timeout, send(&target, &resource, batch)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(format!("no answer within {:?}", batching.timeout)),
            };
            match error {
                None => {
                    metrics.spans_exported.inc_by(u64::try_from(count).unwrap_or(u64::MAX));
                    failing = false;
                }
                Some(error) => {
                    metrics.spans_lost("export_failed", count);
                    // Once a spell: a dead collector must not fill the log.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(error, "traces cannot be exported; counting until it works again");
                    }
                }
            }
        }
    }
}

/// One exporter a batch: it is cheap beside the batch, and the registry's channel changes with the
/// certificate.
async fn send(target: &Target, resource: &Resource, batch: Vec<SpanData>) -> Result<(), String> {
    let channel = match target {
        Target::Registry(link) => link.channel(),
        Target::Collector(channel) => channel.clone(),
    };
    let exporter = SpanExporter::builder().with_tonic().with_channel(channel).build();
    let mut exporter = exporter.map_err(|error| chain(&error))?;
    exporter.set_resource(resource);
    exporter.export(batch).await.map_err(|error| error.to_string())
}

/// A full batch, or what came within the delay of its first span; none at the end.
async fn next_batch(
    spans: &mut mpsc::Receiver<FinishedSpan>,
    batching: Batching,
    finish: &Drain,
) -> Option<Vec<FinishedSpan>> {
    let first = tokio::select! {
        biased;
        first = spans.recv() => first?,
        () = finish.signalled() => return None,
    };
    let mut batch = vec![first];
    let deadline = tokio::time::Instant::now() + batching.delay;
    while batch.len() < batching.batch {
        tokio::select! {
            biased;
            span = spans.recv() => match span {
                Some(span) => batch.push(span),
                None => break,
            },
            () = tokio::time::sleep_until(deadline) => break,
            () = finish.signalled() => break,
        }
    }
    Some(batch)
}

impl FinishedSpan {
    fn into_data(self, scope: &InstrumentationScope) -> SpanData {
        let flags = if self.context.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
        let trace_id = TraceId::from_bytes(self.context.trace_id.to_be_bytes());
        let span_id = SpanId::from_bytes(self.span_id.to_be_bytes());
        SpanData {
            span_context: SpanContext::new(trace_id, span_id, flags, false, TraceState::default()),
            parent_span_id: SpanId::from_bytes(self.context.parent_id.to_be_bytes()),
            parent_span_is_remote: true,
            span_kind: self.kind,
            name: self.name.into(),
            start_time: self.times.0,
            end_time: self.times.1,
            attributes: self.attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: scope.clone(),
        }
    }
}

/// A text attribute.
pub fn text(key: &'static str, value: impl Into<Value>) -> KeyValue {
    KeyValue::new(key, value)
}
