//! How deadlines travel: the time that is left, as headers.
//!
//! A time left is rounded down where it must be rounded, so that no hop has more than the one before it.
//!
//! Source: gRPC over HTTP/2, "Requests": `Timeout` is at most eight digits and a unit.

use std::time::{Duration, Instant};

use http::HeaderValue;

/// A longer time left is as good as none, and counts as this: one year.
pub const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The largest number `grpc-timeout` can hold.
const MOST: u128 = 99_999_999;

/// The time left that a `grpc-timeout` says, at most [`LONGEST`]; nothing if it is malformed.
pub fn parse_grpc(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.len() > 8 {
        return None;
    }
    let number = number(digits)?;
    let left = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    };
    Some(left.min(LONGEST))
}

/// `left` as `grpc-timeout`, in the finest unit that holds it. Nothing left is the shortest time there
/// is, for the value must be positive; better not to send such a request at all.
pub fn format_grpc(left: Duration) -> HeaderValue {
    let left = left.min(LONGEST).max(Duration::from_nanos(1));
    let units = [
        (left.as_nanos(), b'n'),
        (left.as_micros(), b'u'),
        (left.as_millis(), b'm'),
        (u128::from(left.as_secs()), b'S'),
    ];
    // The last one holds three years of seconds.
    let (number, unit) = units.into_iter().find(|(number, _)| *number <= MOST).unwrap_or((MOST, b'S'));
    written(number, Some(unit))
}

/// The time left that our own header says in milliseconds, at most [`LONGEST`]; nothing if it is not
/// digits only.
pub fn parse_millis(value: &[u8]) -> Option<Duration> {
    // More digits than a u64 holds for certain are more than a year, whatever they are.
    if value.len() > 18 && value.iter().all(u8::is_ascii_digit) {
        return Some(LONGEST);
    }
    Some(Duration::from_millis(number(value)?).min(LONGEST))
}

/// `left` as our own header has it.
pub fn format_millis(left: Duration) -> HeaderValue {
    written(left.min(LONGEST).as_millis(), None)
}

/// The time left at `now`, or nothing if `deadline` has passed.
pub fn left(deadline: Instant, now: Instant) -> Option<Duration> {
    deadline.checked_duration_since(now).filter(|left| !left.is_zero())
}

/// The earlier of two deadlines, of which either may be none.
pub fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (deadline, None) | (None, deadline) => deadline,
    }
}

/// The number of up to 18 digits.
fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits
        .iter()
        .try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0')))
}

fn written(mut number: u128, unit: Option<u8>) -> HeaderValue {
    let mut text = [0; 40];
    let mut start = text.len();
    if let Some(unit) = unit {
        start -= 1;
        text[start] = unit;
    }
    loop {
        start -= 1;
        // A remainder of ten is a digit.
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[start..]).expect("digits and a letter are valid in a header")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        for (text, left) in [
            ("1H", Duration::from_secs(3600)),
            ("2M", Duration::from_secs(120)),
            ("30S", Duration::from_secs(30)),
            ("250m", Duration::from_millis(250)),
            ("7u", Duration::from_micros(7)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("00000010m", Duration::from_millis(10)),
            ("0n", Duration::ZERO),
            ("99999999H", LONGEST),
        ] {
            assert_eq!(parse_grpc(text.as_bytes()), Some(left), "{text}");
        }
        for text in [
            "",
            "m",
            "10",
            "10s",
            "10h",
            "123456789m",
            "-1S",
            "+1S",
            "1.5S",
            " 1S",
            "1S ",
            "1 S",
            "1mS",
            "\u{661}S",
        ] {
            assert_eq!(parse_grpc(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn grpc_timeouts_are_written_in_the_finest_unit_that_holds_them() {
        for (left, text) in [
            (Duration::ZERO, "1n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(30), "30000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::MAX, "31536000S"),
        ] {
            assert_eq!(format_grpc(left), text);
        }
    }

    #[test]
    fn millis_are_read_and_written() {
        for (text, left) in [
            ("0", Some(Duration::ZERO)),
            ("250", Some(Duration::from_millis(250))),
            ("000000000000000250", Some(Duration::from_millis(250))),
            ("999999999999999999", Some(LONGEST)),
            ("99999999999999999999999999999999999999999999", Some(LONGEST)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.0", None),
            ("0x10", None),
            ("9999999999999999999x", None),
        ] {
            assert_eq!(parse_millis(text.as_bytes()), left, "{text:?}");
        }
        assert_eq!(format_millis(Duration::from_micros(1999)), "1");
        assert_eq!(format_millis(Duration::ZERO), "0");
        assert_eq!(format_millis(Duration::MAX), "31536000000");
    }

    /// Over a hop nothing is gained and next to nothing lost.
    #[test]
    fn a_hop_never_adds_time() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let most = LONGEST.as_nanos() as u64 >> rng.u32(0..54);
            let left = Duration::from_nanos(rng.u64(1..=most));
            let grpc = parse_grpc(format_grpc(left).as_bytes()).unwrap();
            assert!(
                grpc <= left && grpc.as_secs_f64() >= left.as_secs_f64() * 0.999_98,
                "seed {seed}: {left:?} {grpc:?}"
            );
            let http = parse_millis(format_millis(left).as_bytes()).unwrap();
            assert!(http <= left && left - http < Duration::from_millis(1), "seed {seed}: {left:?} {http:?}");
        }
    }

    #[test]
    fn anything_is_read_without_a_panic_and_within_bounds() {
        for seed in 0..20_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let text: Vec<u8> =
                (0..rng.usize(0..24)).map(|_| *rng.choice(b"0123456789HMSmun-. \xff").unwrap()).collect();
            for parsed in [parse_grpc(&text), parse_millis(&text)].into_iter().flatten() {
                assert!(parsed <= LONGEST, "seed {seed}: {text:?}");
            }
        }
    }

    #[test]
    fn a_deadline_reached_has_passed() {
        let now = Instant::now();
        let later = now + Duration::from_millis(5);
        assert_eq!(
            (left(later, now), left(now, now), left(now, later)),
            (Some(Duration::from_millis(5)), None, None)
        );
        assert_eq!((earlier(Some(later), Some(now)), earlier(None, Some(later))), (Some(now), Some(later)));
        assert_eq!((earlier(Some(later), None), earlier(None, None)), (Some(later), None));
    }
}
