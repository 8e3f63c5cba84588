//! What a `/metrics` page says.

use std::collections::BTreeMap;

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Name of the series; histograms have `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

/// A page.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// In the order of the page.
    pub samples: Vec<Sample>,
    text: String,
}

impl Metrics {
    /// Reads the Prometheus text form.
    ///
    /// # Panics
    /// At a line that is not of it.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let samples =
            lines.map(|line| sample(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect();
        Self { samples, text: text.to_owned() }
    }

    /// The page itself.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Series of that name that have all these labels.
    pub fn matching<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(*key).is_some_and(|found| found == value))
        })
    }

    /// Their sum; 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.matching(name, labels).map(|sample| sample.value).sum()
    }

    /// The one series of that name.
    ///
    /// # Panics
    /// When there is none or more than one.
    pub fn value(&self, name: &str) -> f64 {
        let found: Vec<_> = self.matching(name, &[]).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        found[0].value
    }
}

fn sample(line: &str) -> Option<Sample> {
    let (name, rest) = line.split_at(line.find(['{', ' '])?);
    let mut labels = BTreeMap::new();
    let value = match rest.strip_prefix('{') {
        None => rest,
        Some(mut rest) => loop {
            rest = rest.trim_start_matches(',');
            if let Some(value) = rest.strip_prefix('}') {
                break value;
            }
            let (key, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        },
    };
    let value = value.split_whitespace().next()?.parse().ok()?;
    Some(Sample { name: name.to_owned(), labels, value })
}

/// A label's value up to its closing quote, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_values_are_read() {
        let page = Metrics::parse("# HELP a b\na{x=\"1\",y=\"q\\\"}\"} 2\na{x=\"2\"} 3.5\nb 1e3\n");
        assert_eq!(page.sum("a", &[]), 5.5);
        assert_eq!(page.sum("a", &[("y", "q\"}")]), 2.0);
        assert_eq!(page.value("b"), 1000.0);
        assert_eq!(page.sum("none", &[]), 0.0);
    }
}
