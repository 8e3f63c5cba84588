//! A page of plots: one panel for each case and metric, a bar for each subject with its spread.

use std::fmt::Write as _;

use crate::report::{PLOTTED, Setting, number, title};
use crate::results::{Case, Metric, Summary};
use crate::subject::Subject;

const COLUMNS: usize = 2;
const WIDTH: usize = 530;
const LABEL: usize = 190;
const BAR: usize = 16;
const ROW: usize = 22;
const HEAD: usize = 44;
const GAP: usize = 24;
/// Room for the number behind the longest bar.
const VALUE: usize = 62;

/// The page as SVG.
pub(crate) fn page(setting: &Setting, cases: &[Case]) -> String {
    let panels: Vec<(&Case, Metric)> = cases
        .iter()
        .flat_map(|case| case.metrics().into_iter().map(move |metric| (case, metric)))
        .filter(|(_, metric)| PLOTTED.contains(metric))
        // At a fixed rate all reach the same.
        .filter(|(case, metric)| *metric != Metric::Throughput || case.of(Metric::P50).next().is_none())
        .collect();
    let (mut body, mut top) = (String::new(), 64);
    for line in panels.chunks(COLUMNS) {
        let mut height = 0;
        for (column, (case, metric)) in line.iter().enumerate() {
            let rows: Vec<&Summary> = case.of(*metric).collect();
            panel(&mut body, (GAP + column * (WIDTH + GAP), top), case, *metric, &rows);
            height = height.max(HEAD + rows.len() * ROW);
        }
        top += height + GAP;
    }
    let width = GAP + COLUMNS * (WIDTH + GAP);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{top}\" viewBox=\"0 0 {width} {top}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{GAP}\" y=\"30\" font-size=\"18\" font-weight=\"bold\">Outrigger beside other proxies</text>\n\
         <text x=\"{GAP}\" y=\"50\" fill=\"#555555\">{}</text>\n{body}</svg>\n",
        escape(&format!(
            "{}, commit {}, profile {}; medians of {}, whiskers from least to most",
            setting.date, setting.commit, setting.profile, setting.repeats
        ))
    )
}

fn panel(body: &mut String, (left, top): (usize, usize), case: &Case, metric: Metric, rows: &[&Summary]) {
    let heading = title(case.scenario).split(':').next().unwrap_or_default();
    let most = rows.iter().map(|row| row.most).fold(0.0, f64::max);
    let room = (WIDTH - LABEL - VALUE) as f64;
    let length = |value: f64| if most > 0.0 { value.max(0.0) / most * room } else { 0.0 };
    let _ = writeln!(
        body,
        "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>\n<text x=\"{left}\" y=\"{}\" fill=\"#555555\">{}</text>",
        top + 12,
        escape(&format!("{heading}, {}", case.case)),
        top + 28,
        metric.title()
    );
    for (at, row) in rows.iter().enumerate() {
        let y = top + HEAD + at * ROW - 6;
        let start = (left + LABEL) as f64;
        let middle = y + BAR / 2;
        let end = start + length(row.median);
        let (low, high) = (start + length(row.least), start + length(row.most));
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\n\
             <rect x=\"{start}\" y=\"{y}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>\n\
             <path d=\"M{low:.1} {middle}H{high:.1}M{low:.1} {}v6M{high:.1} {}v6\" stroke=\"#222222\" fill=\"none\"/>\n\
             <text x=\"{:.1}\" y=\"{}\">{}</text>",
            left + LABEL - 6,
            y + 12,
            escape(&row.label),
            length(row.median),
            colour(row.subject),
            middle - 3,
            middle - 3,
            end.max(high) + 5.0,
            y + 12,
            number(row.median),
        );
    }
}

fn colour(subject: Subject) -> &'static str {
    match subject {
        Subject::Direct | Subject::Relay => "#bdbdbd",
        Subject::Nginx => "#74a892",
        Subject::Haproxy | Subject::HaproxyTcp => "#7c97c4",
        Subject::EnvoyH1 | Subject::EnvoyH2 => "#b596c2",
        Subject::Outrigger | Subject::OutriggerTcp => "#e2725b",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{cases, tests::some};

    #[test]
    fn there_is_a_bar_for_every_subject_of_every_plotted_metric() {
        let page = page(&Setting { commit: "a<b".into(), ..Setting::default() }, &cases(&some()));
        // The page itself, three with CPU and four with throughput.
        assert_eq!(page.matches("<rect ").count(), 1 + 3 + 4);
        assert!(page.starts_with("<svg ") && page.ends_with("</svg>\n"));
        assert!(page.contains("commit a&lt;b") && !page.contains("NaN"));
    }

    #[test]
    fn the_longest_bar_ends_within_its_panel() {
        let page = page(&Setting::default(), &cases(&some()));
        let ends = page.split("<rect x=\"").skip(1).filter_map(|rest| {
            let (x, rest) = rest.split_once('"')?;
            let (_, rest) = rest.split_once("width=\"")?;
            let width: f64 = rest.split_once('"')?.0.parse().ok()?;
            Some(x.parse::<f64>().ok()? + width)
        });
        let width = (GAP + COLUMNS * (WIDTH + GAP)) as f64;
        assert!(ends.fold(0.0, f64::max) < width);
    }
}
