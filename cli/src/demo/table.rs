//! The live table: what a person sees while the load runs.

use std::time::Duration;

use tokio::time::Instant;

use super::chaos::{self, Incident, Incidents};
use super::load::{Load, as_float};
use super::observer::{Counts, EdgeTimes, Observer};
use crate::output;

/// Incidents shown at once.
const SHOWN: usize = 3;
/// Columns when the terminal does not say.
const WIDTH: usize = 100;

/// What one picture shows.
#[derive(Debug, Default)]
struct View {
    elapsed: Duration,
    rate: u32,
    succeeded_now: u64,
    p50_ms: f64,
    p99_ms: f64,
    issued: u64,
    failed: u64,
    in_flight: u64,
    edge: EdgeTimes,
    edge_now: EdgeTimes,
    counts: Counts,
    client: Counts,
    replicas: Vec<(String, f64, f64)>,
    incidents: Vec<Incident>,
}

/// Draws over itself once a second, on a terminal.
#[derive(Debug)]
pub(super) struct Table {
    rate: u32,
    start: Instant,
    before: Instant,
    drawn: usize,
    edge: EdgeTimes,
    served: Vec<(String, f64)>,
    base: Counts,
    first_edge: EdgeTimes,
}

impl Table {
    /// A table of what happens from now on.
    pub(super) fn new(rate: u32, observer: &Observer) -> Self {
        let (now, edge) = (Instant::now(), observer.edge());
        Self {
            rate,
            start: now,
            before: now,
            drawn: 0,
            served: observer.served(),
            base: observer.totals(),
            first_edge: edge.clone(),
            edge,
        }
    }

    /// Draws what the load and the sidecars say now.
    pub(super) fn draw(&mut self, load: &Load, observer: &Observer, incidents: &Incidents) {
        let view = self.view(load, observer, incidents);
        let lines = render(&view, output::colours());
        let width = width();
        let mut text = String::new();
        if self.drawn > 0 {
            text.push_str(&format!("\x1b[{}A\x1b[J", self.drawn));
        }
        for line in &lines {
            text.push_str(&fit(line, width));
            text.push('\n');
        }
        self.drawn = lines.len();
        // A terminal that went away sends SIGHUP; nothing to do about it here.
        let _gone = output::print(&text);
    }

    fn view(&mut self, load: &Load, observer: &Observer, incidents: &Incidents) -> View {
        let now = Instant::now();
        let seconds = (now - self.before).as_secs_f64().max(0.001);
        self.before = now;
        let (edge, served) = (observer.edge(), observer.served());
        let replicas = served
            .iter()
            .map(|(id, count)| {
                let before =
                    self.served.iter().find(|(known, _)| known == id).map_or(0.0, |(_, count)| *count);
                (id.clone(), *count, ((count - before) / seconds).max(0.0))
            })
            .collect();
        let mut tally = load.tally();
        let recent = tally.take_recent();
        let view = View {
            elapsed: now - self.start,
            rate: self.rate,
            succeeded_now: recent.succeeded,
            p50_ms: recent.p50_ms,
            p99_ms: recent.p99_ms,
            issued: tally.issued,
            failed: tally.failed(),
            in_flight: tally.in_flight,
            edge_now: edge.since(&self.edge),
            edge: edge.since(&self.first_edge),
            counts: observer.totals().since(self.base),
            client: observer.client(),
            replicas,
            incidents: incidents.all(),
        };
        (self.edge, self.served) = (edge, served);
        view
    }
}

fn render(view: &View, colours: bool) -> Vec<String> {
    let bold = |text: &str| if colours { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let red = |text: String| if colours { format!("\x1b[31m{text}\x1b[0m") } else { text };
    let seconds = view.elapsed.as_secs();
    let done = view.issued - view.in_flight;
    let success = if done == 0 { 100.0 } else { 100.0 * as_float(done - view.failed) / as_float(done) };
    let success = format!("success {success:.2} %");
    let mut lines = vec![
        bold(&format!(
            "Outrigger demo  {}:{:02}   {} requests/s offered",
            seconds / 60,
            seconds % 60,
            view.rate
        )),
        String::new(),
        format!(
            "load      {:>6}/s   {}   delay p50 {}  p99 {}   in flight {}",
            view.succeeded_now,
            if view.failed > 0 { red(success) } else { success },
            ms(view.p50_ms),
            ms(view.p99_ms),
            view.in_flight
        ),
    ];
    lines.extend(edge_lines(view));
    let Counts { requests, mutual, retries, ejections, .. } = view.counts;
    let share = if requests > 0.0 { 100.0 * mutual / requests } else { 100.0 };
    lines.push(format!(
        "mesh      mutual TLS {share:.2} %   retries {retries}   ejections {ejections}   ejected now {}",
        view.client.ejected_now
    ));
    lines.push(String::new());
    for (id, total, now) in &view.replicas {
        lines.push(format!("{id:<10}{now:>6.0}/s   {total} served"));
    }
    if !view.incidents.is_empty() {
        lines.push(String::new());
        let shown = view.incidents.len().saturating_sub(SHOWN);
        lines.extend(view.incidents[shown..].iter().flat_map(chaos::live));
    }
    lines.push(String::new());
    lines.push("Ctrl-C ends it.".to_owned());
    lines
}

/// Where the time goes between the storefront and the orders.
fn edge_lines(view: &View) -> Vec<String> {
    let source = if view.edge.source.is_empty() { "storefront.shop" } else { &view.edge.source };
    let line = |name: &str, histogram: &super::metrics::Histogram| {
        let delay = histogram.delay();
        format!("  {name:<12}mean {}  p50 {}  p99 {}", ms(delay.mean), ms(delay.p50), ms(delay.p99))
    };
    vec![
        format!("edge      {source} -> orders.shop"),
        line("transmit", &view.edge_now.transmit),
        line("processing", &view.edge_now.processing),
    ]
}

/// Milliseconds with as many places as matter.
pub(super) fn ms(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2} ms"),
        value if value < 1000.0 => format!("{value:.0} ms"),
        value => format!("{:.1} s", value / 1000.0),
    }
}

fn width() -> usize {
    rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns > 0)
        .unwrap_or(WIDTH)
}

/// Cuts a line to the terminal's width, so that it never wraps and the next picture starts where this
/// one did. Colours take no room.
fn fit(line: &str, width: usize) -> String {
    let (mut text, mut used, mut escape, mut coloured) = (String::new(), 0, false, false);
    for character in line.chars() {
        match character {
            '\x1b' => (escape, coloured) = (true, true),
            'm' if escape => escape = false,
            _ if escape => {}
            _ if used == width => {
                if coloured {
                    text.push_str("\x1b[0m");
                }
                return text;
            }
            _ => used += 1,
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_without_colours_has_no_escapes() {
        let view =
            View { replicas: vec![("orders-1".into(), 3.0, 1.0)], failed: 1, issued: 2, ..View::default() };
        let lines = render(&view, false);
        assert!(lines.iter().all(|line| !line.contains('\x1b')));
        assert!(lines.iter().any(|line| line.contains("orders-1")));
        assert!(lines.iter().any(|line| line.contains("success 50.00 %")), "{lines:?}");
        assert!(render(&view, true).iter().any(|line| line.contains("\x1b[31m")));
    }

    #[test]
    fn lines_are_cut_to_the_terminal_and_colours_are_free() {
        assert_eq!(fit("abcdef", 3), "abc");
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("\x1b[1mabc\x1b[0m", 3), "\x1b[1mabc\x1b[0m");
        assert_eq!(fit("\x1b[1mabcdef\x1b[0m", 3), "\x1b[1mabc\x1b[0m");
    }

    #[test]
    fn milliseconds_have_the_places_that_matter() {
        assert_eq!([0.1234, 12.34, 2345.0].map(ms), ["0.12 ms", "12 ms", "2.3 s"]);
    }
}
