//! Chaos for people: a few lines an incident while it happens, one table at the end.

use super::super::repairs::count_of;
use super::super::table::ms;
use super::incident::Incident;
use crate::output;

/// What was broken, what the mesh did, what the client noticed: three lines.
pub(in crate::demo) fn live(incident: &Incident) -> [String; 3] {
    let share = incident.target_share.map(|share| format!(", serving {:.0} % of requests", share * 100.0));
    let state = match incident.lasted {
        Some(lasted) => format!("for {:.1} s{}", lasted.as_secs_f64(), share.unwrap_or_default()),
        None => "now".to_owned(),
    };
    [
        format!("{:>6.1} s  {} ({state})", incident.at.as_secs_f64(), incident.event),
        format!("          mesh    {}", mesh(incident)),
        format!("          client  {}", client(incident)),
    ]
}

fn mesh(incident: &Incident) -> String {
    let ejected = match (count_of(incident.repairs.ejections), incident.ejected_after) {
        (0, _) => None,
        (1, Some(after)) => Some(format!("ejected after {:.1} s", after.as_secs_f64())),
        (1, None) => Some("1 ejection".to_owned()),
        (count, Some(after)) => Some(format!("{count} ejections, first after {:.1} s", after.as_secs_f64())),
        (count, None) => Some(format!("{count} ejections")),
    };
    let did: Vec<_> = ejected.into_iter().chain(incident.repairs.words()).collect();
    if did.is_empty() { "nothing to repair".to_owned() } else { did.join("; ") }
}

fn client(incident: &Incident) -> String {
    let client = incident.client;
    if client.slowest_ms <= 0.0 && client.failures == 0 {
        return "nothing yet".to_owned();
    }
    let failures = match client.failures {
        0 => "no failure".to_owned(),
        1 => "1 failure".to_owned(),
        count => format!("{count} failures"),
    };
    format!("{failures} of {}, p99 {}, slowest {}", client.requests, ms(client.p99_ms), ms(client.slowest_ms))
}

/// One row an incident.
pub(in crate::demo) fn table(incidents: &[Incident]) -> String {
    let heading = [
        "  AT",
        "FAULT",
        "LASTED",
        "FAILED ATTEMPTS",
        "RETRIES",
        "HEDGES",
        "EJECTIONS",
        "CLIENT FAILURES",
        "P99 DURING",
    ];
    let row = |incident: &Incident| {
        vec![
            format!("  {:.1} s", incident.at.as_secs_f64()),
            incident.kind.short(&incident.target),
            incident.lasted.map_or("-".to_owned(), |lasted| format!("{:.1} s", lasted.as_secs_f64())),
            incident.failed_attempts.to_string(),
            incident.repairs.retried().to_string(),
            incident.repairs.hedged().to_string(),
            count_of(incident.repairs.ejections).to_string(),
            incident.client.failures.to_string(),
            ms(incident.client.p99_ms),
        ]
    };
    let heading = heading.map(str::to_owned).to_vec();
    output::columns(&std::iter::once(heading).chain(incidents.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::load::Noticed;
    use super::super::super::metrics::Scrape;
    use super::super::super::repairs::Repairs;
    use super::super::plan::Kind;
    use super::*;

    fn incident() -> Incident {
        let text = r#"
mesh_retries_total{reason="status",outcome="sent"} 12
mesh_retries_total{reason="status",outcome="budget_exhausted"} 1
mesh_circuit_breaker_transitions_total{to="open"} 1
"#;
        let mut incident = Incident::new(Kind::Errors, "orders-2".into(), Duration::from_secs(3));
        let client = Noticed { requests: 510, failures: 1, p99_ms: 9.0, slowest_ms: 31.0 };
        incident.update(Repairs::read(&Scrape::parse(text)), client, Duration::from_millis(120));
        incident.lasted = Some(Duration::from_millis(1710));
        incident.target_share = Some(0.05);
        incident
    }

    #[test]
    fn an_incident_says_what_was_broken_what_was_done_and_what_was_noticed() {
        assert_eq!(
            live(&incident()),
            [
                "   3.0 s  orders-2 answers 80 % of its requests with 503 (for 1.7 s, serving 5 % of requests)",
                "          mesh    ejected after 0.1 s; retried 12 after status; not retried 1 after status (budget exhausted)",
                "          client  1 failure of 510, p99 9.00 ms, slowest 31 ms",
            ]
        );
        let calm = Incident::new(Kind::Registry, "registry".into(), Duration::ZERO);
        assert!(live(&calm)[0].ends_with("(now)"));
        assert!(live(&calm)[1].ends_with("nothing to repair") && live(&calm)[2].ends_with("nothing yet"));
    }

    #[test]
    fn an_ejection_after_the_end_of_the_fault_has_no_time() {
        let mut incident = incident();
        incident.ejected_after = None;
        let (repairs, client) = (incident.repairs.clone(), incident.client);
        incident.update(repairs, client, Duration::from_secs(2));
        assert_eq!(incident.ejected_after, None);
        assert!(live(&incident)[1].contains("mesh    1 ejection;"));
    }

    #[test]
    fn the_table_has_a_row_an_incident() {
        let table = table(&[incident()]);
        let rows: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect())
            .collect();
        assert_eq!(rows[0].len(), rows[1].len());
        assert_eq!(rows[1], ["3.0 s", "orders-2 80 % 503", "1.7 s", "13", "12", "0", "1", "1", "9.00 ms"]);
    }
}
