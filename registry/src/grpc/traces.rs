//! OTLP from the sidecars.

use std::sync::PoisonError;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceService;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status};

use super::{Services, caller};

pub(super) struct Receiver(pub(super) Services);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let sender = caller(&request)?.id.to_string().into();
        let (received, (spans, traces)) = {
            let mut store = self.0.traces.lock().unwrap_or_else(PoisonError::into_inner);
            (store.receive(request.into_inner().resource_spans, &sender), store.len())
        };
        let metrics = &self.0.metrics;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.spans_received.inc_by(received.received);
        metrics.spans_dropped.inc_by(received.dropped);
        metrics.spans_stored.set(gauge(spans));
        metrics.traces_stored.set(gauge(traces));
        let partial_success = (received.dropped > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: i64::try_from(received.dropped).unwrap_or(i64::MAX),
            error_message: "spans without ids, or more than one trace may hold, are not kept".to_owned(),
        });
        Ok(Response::new(ExportTraceServiceResponse { partial_success }))
    }
}
