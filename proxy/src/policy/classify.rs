//! What a response says about the endpoint that gave it, and the codes of HTTP and gRPC in each other's
//! terms.
//!
//! Sources: Envoy's outlier detection, which counts 5xx, and gRPC codes by the HTTP status they stand
//! for; gRPC, "HTTP to gRPC Status Code Mapping" (`http-grpc-status-mapping`); google.rpc.Code, whose
//! comments name the HTTP status of each code.

use http::StatusCode;
use outrigger_api::resource::policy::GrpcCode;

use crate::reason::Reason;

/// What a response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The endpoint works.
    Success,
    /// The endpoint does not: counts for the breaker.
    Failure,
    /// The endpoint works and has too much to do: counts as slow for the balancer, never for the
    /// breaker, which would send its load to the others.
    Throttled,
    /// The request is at fault, or the client ended it: says that the endpoint answers, and no more.
    ClientError,
}

/// The class of a response with `status`, the gRPC code of its trailers or its head where it has one,
/// and the reason where the endpoint's sidecar answered in the application's place.
///
/// 501 is no failure: the application does not know the method, as any of its replicas would not. The
/// gRPC codes of failure are `UNKNOWN` (what libraries answer when a handler throws),
/// `DEADLINE_EXCEEDED`, `INTERNAL`, `UNAVAILABLE` and `DATA_LOSS`; a number that is no code counts as
/// `UNKNOWN`, as gRPC asks.
pub fn classify(status: StatusCode, grpc: Option<u8>, reason: Option<Reason>) -> Class {
    match (reason.and_then(of_reason), grpc) {
        (Some(class), _) => class,
        // A gRPC code comes with status 200; where it does not, a proxy spoke, and its status counts.
        (None, Some(code)) if status == StatusCode::OK => of_grpc(code),
        (None, _) => of_status(status),
    }
}

/// Where a sidecar's reason says more than the status.
fn of_reason(reason: Reason) -> Option<Class> {
    match reason {
        Reason::Overloaded | Reason::RateLimited | Reason::RetryRefused => Some(Class::Throttled),
        // The time was used up before the endpoint had the request; the attempts that used it have
        // been counted. The rest is refused for what the request is.
        Reason::DeadlineExceeded
        | Reason::Denied
        | Reason::BadRequest
        | Reason::Loop
        | Reason::MethodNotSupported
        | Reason::ClientClosed => Some(Class::ClientError),
        _ => None,
    }
}

fn of_status(status: StatusCode) -> Class {
    match status {
        StatusCode::TOO_MANY_REQUESTS => Class::Throttled,
        StatusCode::NOT_IMPLEMENTED => Class::ClientError,
        _ if status.is_client_error() => Class::ClientError,
        _ if status.as_u16() >= 500 => Class::Failure,
        _ => Class::Success,
    }
}

fn of_grpc(code: u8) -> Class {
    match code {
        0 => Class::Success,
        2 | 4 | 13 | 14 | 15 => Class::Failure,
        8 => Class::Throttled,
        1 | 3 | 5..=7 | 9..=12 | 16 => Class::ClientError,
        17.. => Class::Failure,
    }
}

/// The gRPC code for an HTTP status: gRPC's own mapping for clients that meet a response without a
/// code, and more exactly where the mesh means more by it: 429 and 504 come from limits and timeouts.
pub fn grpc_from_http(status: StatusCode) -> GrpcCode {
    match status.as_u16() {
        400 => GrpcCode::Internal,
        401 => GrpcCode::Unauthenticated,
        403 => GrpcCode::PermissionDenied,
        404 => GrpcCode::Unimplemented,
        429 => GrpcCode::ResourceExhausted,
        502 | 503 => GrpcCode::Unavailable,
        504 => GrpcCode::DeadlineExceeded,
        _ => GrpcCode::Unknown,
    }
}

/// The HTTP status that says what a gRPC code says, for where statuses are compared. 0 is 200.
pub fn http_from_grpc(code: u8) -> StatusCode {
    match code {
        0 => StatusCode::OK,
        // Not registered, but what everybody writes for a client that went away.
        1 => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        3 | 9 | 11 => StatusCode::BAD_REQUEST,
        4 => StatusCode::GATEWAY_TIMEOUT,
        5 => StatusCode::NOT_FOUND,
        6 | 10 => StatusCode::CONFLICT,
        7 => StatusCode::FORBIDDEN,
        8 => StatusCode::TOO_MANY_REQUESTS,
        12 => StatusCode::NOT_IMPLEMENTED,
        14 => StatusCode::SERVICE_UNAVAILABLE,
        16 => StatusCode::UNAUTHORIZED,
        2 | 13 | 15 | 17.. => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).unwrap()
    }

    #[test]
    fn statuses_have_a_class() {
        for (codes, class) in [
            ([100, 200, 204, 304], Class::Success),
            ([400, 404, 499, 501], Class::ClientError),
            ([500, 502, 503, 504], Class::Failure),
            ([505, 507, 599, 999], Class::Failure),
            ([429, 429, 429, 429], Class::Throttled),
        ] {
            for code in codes {
                assert_eq!(classify(status(code), None, None), class, "{code}");
            }
        }
    }

    #[test]
    fn grpc_codes_have_the_class_of_the_status_they_stand_for() {
        for code in 0..=u8::MAX {
            let class = classify(StatusCode::OK, Some(code), None);
            assert_eq!(class, of_status(http_from_grpc(code)), "{code}");
        }
        let failures: Vec<_> =
            (0..20).filter(|code| classify(StatusCode::OK, Some(*code), None) == Class::Failure).collect();
        assert_eq!(failures, [2, 4, 13, 14, 15, 17, 18, 19]);
    }

    #[test]
    fn a_status_other_than_200_counts_before_the_code() {
        assert_eq!(classify(status(503), Some(0), None), Class::Failure);
        assert_eq!(classify(status(429), Some(14), None), Class::Throttled);
    }

    #[test]
    fn what_a_sidecar_refuses_is_no_failure_of_the_endpoint() {
        let of = |code, reason| classify(status(code), None, Some(reason));
        assert_eq!(of(503, Reason::Overloaded), Class::Throttled);
        assert_eq!(of(503, Reason::RetryRefused), Class::Throttled);
        assert_eq!(classify(StatusCode::OK, Some(14), Some(Reason::Overloaded)), Class::Throttled);
        assert_eq!(of(504, Reason::DeadlineExceeded), Class::ClientError);
        assert_eq!(of(403, Reason::Denied), Class::ClientError);
        for reason in [Reason::AppUnreachable, Reason::AppReset, Reason::NotServed] {
            assert_eq!(of(503, reason), Class::Failure, "{reason:?}");
        }
        assert_eq!(of(504, Reason::AppTimeout), Class::Failure);
    }

    #[test]
    fn the_meshs_statuses_are_codes_of_grpc() {
        for (code, expected) in
            [(504, 4), (429, 8), (403, 7), (404, 12), (503, 14), (502, 14), (401, 16), (400, 13), (418, 2)]
        {
            assert_eq!(grpc_from_http(status(code)).number(), expected, "{code}");
        }
        for reason in [
            GrpcCode::DeadlineExceeded,
            GrpcCode::ResourceExhausted,
            GrpcCode::PermissionDenied,
            GrpcCode::Unavailable,
        ] {
            assert_eq!(grpc_from_http(http_from_grpc(reason.number())), reason);
        }
    }
}
