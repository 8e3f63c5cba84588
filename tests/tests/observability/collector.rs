//! Rotel, an OpenTelemetry collector, and the spans it says it received.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use outrigger_tests::wait::soon;
use tokio::net::TcpStream;

use outrigger_tests::component::Running;

/// Names the collector's program.
const PROGRAM: &str = "OUTRIGGER_TEST_ROTEL";
/// It takes no port 0, so a free port may be gone when it wants it.
const STARTS: usize = 5;

/// A running collector.
pub(crate) struct Collector {
    /// OTLP over gRPC.
    pub(crate) grpc: SocketAddr,
    running: Running,
}

/// A span as the collector prints it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Span {
    pub(crate) trace: String,
    pub(crate) parent: String,
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) status: String,
    /// `Str(x)` is x, `Int(1)` is 1.
    pub(crate) attributes: BTreeMap<String, String>,
    /// Of whoever sent it.
    pub(crate) resource: BTreeMap<String, String>,
}

impl Collector {
    /// Starts one and waits until it accepts connections.
    pub(crate) async fn start(directory: &Path) -> Self {
        for attempt in 0..STARTS {
            let [grpc, http] = free_ports();
            let args = [
                "start",
                "--otlp-grpc-endpoint",
                &grpc.to_string(),
                "--otlp-http-endpoint",
                &http.to_string(),
                "--exporter",
                "blackhole",
                "--debug-log",
                "traces",
                "--debug-log-verbosity",
                "detailed",
            ];
            let output = directory.join(format!("collector-{attempt}.out"));
            let mut running = Running::start(PROGRAM, &args.map(str::to_owned), output);
            let up = soon("the collector accepts connections or ends", async {
                loop {
                    if running.ended().is_some() {
                        return false;
                    }
                    if TcpStream::connect(grpc).await.is_ok() {
                        return true;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            });
            if up.await {
                return Self { grpc, running };
            }
            println!("the collector did not start:\n{}", running.output());
        }
        panic!("the collector did not start {STARTS} times");
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` is set to.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// Every span it received.
    pub(crate) fn spans(&self) -> Vec<Span> {
        read(&self.running.output())
    }

    /// Those of one trace.
    pub(crate) fn trace(&self, id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace == id).collect()
    }

    /// The spans of a trace, once there are so many.
    pub(crate) async fn wait(&self, trace: &str, count: usize) -> Vec<Span> {
        let mut spans = Vec::new();
        let waiting = async {
            while spans.len() < count {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                spans = self.trace(trace);
            }
        };
        if tokio::time::timeout(outrigger_tests::wait::DEADLINE, waiting).await.is_err() {
            panic!(
                "{count} spans of {trace} were to come, and these did: {spans:#?}\n{}",
                self.running.output()
            );
        }
        spans
    }
}

fn free_ports() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|listener| listener.local_addr().expect("a bound socket has an address"))
}

/// Reads its debug log.
fn read(text: &str) -> Vec<Span> {
    let (mut spans, mut resource): (Vec<Span>, _) = (Vec::new(), BTreeMap::new());
    let mut in_resource = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("ResourceSpans #") {
            resource = BTreeMap::new();
        } else if line.starts_with("Resource attributes") {
            in_resource = true;
        } else if line.starts_with("ScopeSpans #") {
            in_resource = false;
        } else if line.starts_with("Span #") {
            in_resource = false;
            spans.push(Span { resource: resource.clone(), ..Span::default() });
        } else if let Some((key, value)) = line.strip_prefix("-> ").and_then(|line| line.split_once(": ")) {
            let value = value.split_once('(').and_then(|(_, value)| value.strip_suffix(')')).unwrap_or(value);
            let attributes = match spans.last_mut() {
                Some(span) if !in_resource => &mut span.attributes,
                Some(_) | None => &mut resource,
            };
            attributes.insert(key.to_owned(), value.to_owned());
        } else if let (Some((key, value)), Some(span)) = (line.split_once(':'), spans.last_mut()) {
            let field = match key.trim() {
                "Trace ID" => &mut span.trace,
                "Parent ID" => &mut span.parent,
                "ID" => &mut span.id,
                "Name" => &mut span.name,
                "Kind" => &mut span.kind,
                "Status code" => &mut span.status,
                _ => continue,
            };
            // A scope has a name as well, and comes before its spans.
            if field.is_empty() {
                value.trim().clone_into(field);
            }
        }
    }
    spans
}
