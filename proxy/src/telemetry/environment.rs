//! What the `OTEL_*` variables of the OpenTelemetry specification ask of a sidecar. Headers, timeout,
//! compression and resource attributes are read by the OTLP library itself.

use std::time::Duration;

/// Whether new traces are sampled, and whether the caller's decision counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Follow the caller's decision where there is one.
    pub parent_based: bool,
    /// Share of the traces that start here (or of all, if not parent-based): 0 to 1.
    pub ratio: f64,
}

impl Sampling {
    /// The mesh's own way: the caller decides, else `ratio`.
    pub fn parent_based(ratio: f64) -> Self {
        Self { parent_based: true, ratio }
    }
}

/// Sizes and times of the exporter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Spans waiting; more are dropped and counted.
    pub queue: usize,
    /// Spans in one export.
    pub batch: usize,
    /// Longest wait for a batch to fill.
    pub delay: Duration,
    /// Longest export.
    pub timeout: Duration,
}

/// Everything asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// `OTEL_SDK_DISABLED`: no spans at all; trace context still goes on.
    pub disabled: bool,
    /// `host:port` of a collector, instead of the registry.
    pub collector: Option<String>,
    /// `OTEL_TRACES_SAMPLER`, instead of the mesh's setting.
    pub sampling: Option<Sampling>,
    /// `OTEL_SERVICE_NAME`, instead of the service's own.
    pub service: Option<String>,
    /// `OTEL_BSP_*`.
    pub batching: Batching,
    /// What was not understood and is ignored, as the specification demands, for the log.
    pub ignored: Vec<String>,
}

impl Environment {
    /// Reads the variables through `get`.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Self {
        let mut ignored = Vec::new();
        let get = |name: &str| get(name).filter(|value| !value.is_empty());
        let mut number = |name: &str, default: u64| match get(name).map(|text| text.parse::<u64>()) {
            None => default,
            Some(Ok(number)) if number > 0 => number,
            Some(_) => {
                ignored.push(format!("{name} is not a positive number"));
                default
            }
        };
        let batching = Batching {
            queue: size(number("OTEL_BSP_MAX_QUEUE_SIZE", 2048)),
            batch: size(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)),
            // The specification's default is 5 s; a person who looks for a trace should find it.
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", 1000)),
            timeout: Duration::from_millis(number("OTEL_BSP_EXPORT_TIMEOUT", 10_000)),
        };
        let endpoint =
            get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or_else(|| get("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let collector = endpoint.and_then(|endpoint| {
            let address = endpoint.strip_prefix("http://").map(|rest| rest.trim_end_matches('/').to_owned());
            if address.is_none() {
                ignored.push(format!("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} is not http://host:port; this version speaks OTLP over gRPC without TLS"));
            }
            address
        });
        let sampling = get("OTEL_TRACES_SAMPLER").and_then(|sampler| {
            let ratio = get("OTEL_TRACES_SAMPLER_ARG")
                .and_then(|text| text.parse().ok())
                .filter(|ratio| (0.0..=1.0).contains(ratio));
            let sampling = sampling(&sampler, ratio.unwrap_or(1.0));
            if sampling.is_none() {
                ignored.push(format!("OTEL_TRACES_SAMPLER={sampler} is not a known sampler"));
            }
            sampling
        });
        let disabled = get("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
            || get("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
        Self { disabled, collector, sampling, service: get("OTEL_SERVICE_NAME"), batching, ignored }
    }
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(1 << 16)
}

fn sampling(name: &str, ratio: f64) -> Option<Sampling> {
    let (parent_based, name) = name.strip_prefix("parentbased_").map_or((false, name), |name| (true, name));
    let ratio = match name {
        "always_on" => 1.0,
        "always_off" => 0.0,
        "traceidratio" => ratio,
        _ => return None,
    };
    Some(Sampling { parent_based, ratio })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Environment {
        Environment::read(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_means_the_registry_and_the_mesh_decide() {
        let environment = read(&[("OTEL_SERVICE_NAME", "")]);
        assert_eq!((environment.disabled, environment.collector, environment.sampling), (false, None, None));
        assert_eq!(environment.ignored, Vec::<String>::new());
    }

    #[test]
    fn the_variables_mean_what_the_specification_says() {
        let environment = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4317/"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
        ]);
        assert_eq!(environment.collector.as_deref(), Some("collector:4317"));
        assert_eq!(environment.sampling, Some(Sampling { parent_based: true, ratio: 0.25 }));
        assert_eq!(environment.batching.queue, 10);
        assert_eq!(
            read(&[("OTEL_TRACES_SAMPLER", "always_on")]).sampling,
            Some(Sampling { parent_based: false, ratio: 1.0 })
        );
        assert!(read(&[("OTEL_SDK_DISABLED", "TRUE")]).disabled);
    }

    #[test]
    fn what_is_not_understood_is_ignored_and_said() {
        let environment = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4317"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ]);
        assert_eq!((environment.collector, environment.sampling), (None, None));
        assert_eq!(environment.ignored.len(), 3, "{:?}", environment.ignored);
    }
}
