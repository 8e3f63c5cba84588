//! Reading the sidecars' `/metrics`: the Prometheus text format, and quantiles from its buckets.
//!
//! Source: "Exposition formats" and "Histograms and summaries" of the Prometheus documentation.

use std::collections::BTreeMap;

use serde::Serialize;

/// One scrape.
#[derive(Debug, Clone, Default)]
pub(super) struct Scrape {
    series: Vec<Series>,
}

#[derive(Debug, Clone, PartialEq)]
struct Series {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Scrape {
    /// Reads what can be read; lines of another form are passed over.
    pub(super) fn parse(text: &str) -> Self {
        Self { series: text.lines().filter_map(parse_line).collect() }
    }

    /// Sum of all series of a name whose labels have these values.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|series| series.value).sum()
    }

    /// Sums of the series of a name by the values of these labels.
    pub(super) fn grouped(&self, name: &str, labels: &[&str]) -> BTreeMap<Vec<String>, f64> {
        let mut groups = BTreeMap::new();
        for series in self.matching(name, &[]) {
            let values = labels.iter().map(|label| series.label(label).unwrap_or_default().to_owned());
            *groups.entry(values.collect()).or_default() += series.value;
        }
        groups
    }

    /// Values of one label among the series of a name.
    pub(super) fn values_of(&self, name: &str, label: &str, labels: &[(&str, &str)]) -> Vec<String> {
        let mut values: Vec<_> =
            self.matching(name, labels).filter_map(|s| s.label(label)).map(str::to_owned).collect();
        values.sort();
        values.dedup();
        values
    }

    /// The histogram of a name, all matching series added up.
    pub(super) fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Histogram {
        let mut buckets: BTreeMap<u64, f64> = BTreeMap::new();
        for series in self.matching(&format!("{name}_bucket"), labels) {
            let bound = series.label("le").and_then(|text| text.parse::<f64>().ok());
            // Non-negative floats sort like their bits, so the bits serve as a key.
            if let Some(bound) = bound.filter(|bound| *bound >= 0.0) {
                *buckets.entry(bound.to_bits()).or_default() += series.value;
            }
        }
        Histogram {
            buckets: buckets.into_iter().map(|(bits, count)| (f64::from_bits(bits), count)).collect(),
            sum: self.sum(&format!("{name}_sum"), labels),
            count: self.sum(&format!("{name}_count"), labels),
        }
    }

    fn matching<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Series> {
        self.series.iter().filter(move |series| {
            series.name == name && labels.iter().all(|(label, value)| series.label(label) == Some(*value))
        })
    }
}

impl Series {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

fn parse_line(line: &str) -> Option<Series> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.find('{') {
        Some(brace) => {
            let (labels, rest) = parse_labels(&line[brace + 1..])?;
            (&line[..brace], labels, rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            (name, Vec::new(), rest)
        }
    };
    let value = rest.split_whitespace().next()?.parse().ok()?;
    Some(Series { name: name.to_owned(), labels, value })
}

/// Reads `a="b",c="d"}` and returns what follows. Values escape `\`, `"` and line feeds.
fn parse_labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        text = loop {
            match characters.next()? {
                (end, '"') => break &rest[end + 1..],
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.trim().to_owned(), value));
    }
}

/// A histogram: cumulative counts by upper bound in seconds, the last of them infinite.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram {
    buckets: Vec<(f64, f64)>,
    pub(super) sum: f64,
    pub(super) count: f64,
}

impl Histogram {
    /// What was observed between `earlier` and now. A process that started anew counts from zero.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        if self.count < earlier.count {
            return self.clone();
        }
        let before =
            |bound: f64| earlier.buckets.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, count)| *count);
        Self {
            buckets: self.buckets.iter().map(|(bound, count)| (*bound, count - before(*bound))).collect(),
            sum: self.sum - earlier.sum,
            count: self.count - earlier.count,
        }
    }

    /// The quantile, in seconds: linear within the bucket that holds it; a quantile beyond the last
    /// finite bound is that bound.
    pub(super) fn quantile(&self, quantile: f64) -> f64 {
        let total = self.buckets.last().map_or(0.0, |(_, count)| *count);
        if total <= 0.0 {
            return 0.0;
        }
        let rank = quantile * total;
        let (mut lower_bound, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank && *count > below {
                return match bound.is_finite() {
                    true => lower_bound + (bound - lower_bound) * ((rank - below) / (count - below)),
                    false => lower_bound,
                };
            }
            (lower_bound, below) = (*bound, *count);
        }
        lower_bound
    }

    /// The mean, in seconds: exact, from sum and count.
    pub(super) fn mean(&self) -> f64 {
        if self.count > 0.0 { self.sum / self.count } else { 0.0 }
    }

    /// The keys every delay is reported with, in milliseconds.
    pub(super) fn delay(&self) -> DelayMs {
        let ms = |seconds: f64| round(seconds * 1000.0);
        DelayMs {
            mean: ms(self.mean()),
            p50: ms(self.quantile(0.5)),
            p90: ms(self.quantile(0.9)),
            p99: ms(self.quantile(0.99)),
            p999: ms(self.quantile(0.999)),
        }
    }
}

/// A delay in milliseconds. Means of parts add up to the mean of the whole; quantiles do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct DelayMs {
    pub(super) mean: f64,
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
}

/// To three places: microseconds of a value in milliseconds.
pub(super) fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP mesh_requests_total Requests.
# TYPE mesh_requests_total counter
mesh_requests_total{direction="outbound",destination="orders.shop",tls="mutual"} 8
mesh_requests_total{direction="outbound",destination="a\"b\\c\nd}",tls="none"} 2 1700000000000
up 1
d_bucket{route="a",le="0.001"} 50
d_bucket{route="a",le="0.01"} 90
d_bucket{route="a",le="+Inf"} 100
d_bucket{route="b",le="0.001"} 0
d_bucket{route="b",le="0.01"} 100
d_bucket{route="b",le="+Inf"} 100
d_sum{route="a"} 1
d_sum{route="b"} 0.5
d_count{route="a"} 100
d_count{route="b"} 100
broken{x="1
"#;

    #[test]
    fn series_are_chosen_by_labels_and_escapes_are_undone() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!(scrape.sum("mesh_requests_total", &[]), 10.0);
        assert_eq!(scrape.sum("mesh_requests_total", &[("tls", "mutual")]), 8.0);
        assert_eq!(scrape.sum("up", &[]), 1.0);
        assert_eq!(scrape.sum("broken", &[]), 0.0);
        let groups = scrape.grouped("mesh_requests_total", &["direction", "tls"]);
        assert_eq!(groups[&vec!["outbound".to_owned(), "none".to_owned()]], 2.0);
        assert_eq!(groups.len(), 2);
        let values = scrape.values_of("mesh_requests_total", "destination", &[]);
        assert_eq!(values, ["a\"b\\c\nd}", "orders.shop"]);
    }

    #[test]
    fn quantiles_are_linear_within_their_bucket() {
        let a = Scrape::parse(TEXT).histogram("d", &[("route", "a")]);
        assert!((a.quantile(0.25) - 0.0005).abs() < 1e-9);
        assert!((a.quantile(0.7) - 0.0055).abs() < 1e-9);
        // Beyond the last finite bound all that is known is that bound.
        assert!((a.quantile(0.99) - 0.01).abs() < 1e-9);
        assert!((a.mean() - 0.01).abs() < 1e-9);
        assert_eq!(Histogram::default().quantile(0.5), 0.0);
    }

    #[test]
    fn histograms_add_up_and_subtract() {
        let scrape = Scrape::parse(TEXT);
        let both = scrape.histogram("d", &[]);
        assert_eq!((both.count, both.sum), (200.0, 1.5));
        let a = scrape.histogram("d", &[("route", "a")]);
        assert_eq!(both.since(&a), scrape.histogram("d", &[("route", "b")]));
        // A counter that went back belongs to a process that started anew.
        assert_eq!(a.since(&both), a);
    }

    #[test]
    fn an_empty_first_bucket_is_not_mistaken_for_the_answer() {
        let b = Scrape::parse(TEXT).histogram("d", &[("route", "b")]);
        assert!(b.quantile(0.0) >= 0.001, "{}", b.quantile(0.0));
    }
}
