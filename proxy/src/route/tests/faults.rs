use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use outrigger_api::resource::policy::{self, GrpcCode};

use super::super::condition::Head;
use super::super::fault::{Abort, FaultAction, Faults};
use super::request;

fn faults(json: &str) -> Faults {
    Faults::compile(&serde_json::from_str::<policy::Faults>(json).unwrap()).unwrap()
}

#[test]
fn delay_and_abort_are_drawn_apart() {
    let faults = faults(
        r#"{"delay": {"percent": 50, "duration": "2s"}, "abort": {"percent": 10, "status": 500, "grpcCode": "INTERNAL"}}"#,
    );
    let parts = request("GET /", &[]);
    let mut rng = Rng::with_seed(3);
    let (mut delayed, mut aborted, mut both) = (0, 0, 0);
    for _ in 0..10_000 {
        let Some(FaultAction { delay, abort }) = faults.decide(&Head::new(&parts, false), &mut rng) else {
            continue;
        };
        assert!(delay.is_none_or(|delay| delay == Duration::from_secs(2)));
        let wanted = Abort { status: StatusCode::INTERNAL_SERVER_ERROR, grpc_code: GrpcCode::Internal };
        assert!(abort.is_none_or(|abort| abort == wanted));
        delayed += u32::from(delay.is_some());
        aborted += u32::from(abort.is_some());
        both += u32::from(delay.is_some() && abort.is_some());
    }
    assert!((4_800..5_200).contains(&delayed), "{delayed}");
    assert!((850..1_150).contains(&aborted), "{aborted}");
    assert!((400..600).contains(&both), "{both}");
}

#[test]
fn only_requests_that_match_are_hit() {
    let faults = faults(
        r#"{"abort": {"percent": 100}, "matches": [{"path": {"value": "/pay"}, "method": "POST"}, {"headers": [{"name": "x-chaos", "value": "yes"}]}]}"#,
    );
    let unavailable = Abort { status: StatusCode::SERVICE_UNAVAILABLE, grpc_code: GrpcCode::Unavailable };
    for (line, headers, hit) in [
        ("POST /pay/1", &[] as &[&str], true),
        ("POST /x/../pay", &[], true),
        ("GET /pay/1", &[], false),
        ("GET /", &["x-chaos: yes"], true),
        ("GET /", &["x-chaos: no"], false),
    ] {
        let parts = request(line, headers);
        let action = faults.decide(&Head::new(&parts, false), &mut Rng::with_seed(5));
        let wanted = hit.then_some(FaultAction { delay: None, abort: Some(unavailable) });
        assert_eq!(action, wanted, "{line} {headers:?}");
    }
}

#[test]
fn none_means_none() {
    let parts = request("GET /", &[]);
    for json in ["{}", r#"{"abort": {"percent": 0}, "delay": {"percent": 0, "duration": "1s"}}"#] {
        let faults = faults(json);
        let mut rng = Rng::with_seed(9);
        for _ in 0..1_000 {
            assert_eq!(faults.decide(&Head::new(&parts, false), &mut rng), None, "{json}");
        }
    }
}
