//! How long to wait before a request is sent again.
//!
//! Sources: Brooker, "Timeouts, retries, and backoff with jitter" (Amazon Builders' Library) and
//! "Exponential Backoff And Jitter" (full jitter: least work for clients that compete); RFC 9110
//! section 10.2.3 (`Retry-After`); gRFC A6 (`grpc-retry-pushback-ms`).

use std::time::{Duration, SystemTime};

/// Pauses that grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Longest pause before the second attempt; doubled for each further one.
    pub base: Duration,
    /// Longest pause of all, and longest one that a server may ask for.
    pub max: Duration,
}

/// What a server says about another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Not before this time has gone by.
    After(Duration),
    /// Not at all.
    Never,
}

impl Backoff {
    /// The pause before retry number `retry`, from 1: anything from nothing to the step's longest, so
    /// that clients that failed together do not come back together.
    pub fn jittered(&self, retry: u32, rng: &mut fastrand::Rng) -> Duration {
        let doublings = retry.saturating_sub(1).min(31);
        self.base.saturating_mul(1 << doublings).min(self.max).mul_f64(rng.f64())
    }

    /// The pause before retry number `retry`, from 1, where the server may have `asked` for one: never
    /// sooner than asked, and jittered beyond it as far as the longest pause allows. `None`: no retry,
    /// for the server wants none, or later than anybody would wait.
    pub fn pause(&self, retry: u32, asked: Option<Asked>, rng: &mut fastrand::Rng) -> Option<Duration> {
        let jittered = self.jittered(retry, rng);
        match asked {
            None => Some(jittered),
            Some(Asked::After(time)) if time <= self.max => Some((time + jittered).min(self.max)),
            Some(Asked::After(_) | Asked::Never) => None,
        }
    }
}

/// The time a `Retry-After` asks for at `wall`: seconds, or a date in any of the three forms of RFC 9110
/// section 5.6.7. A date that has passed asks for none; a malformed value is no wish at all.
pub fn parse_retry_after(value: &[u8], wall: SystemTime) -> Option<Duration> {
    if !value.is_empty() && value.iter().all(u8::is_ascii_digit) {
        let seconds = value
            .iter()
            .fold(0u64, |seconds, digit| seconds.saturating_mul(10).saturating_add(u64::from(digit - b'0')));
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(std::str::from_utf8(value).ok()?).ok()?;
    Some(date.duration_since(wall).unwrap_or_default())
}

/// What `grpc-retry-pushback-ms` says: a negative or unreadable number means that the server wants no
/// retry (gRFC A6, "Pushback").
pub fn parse_pushback(value: &[u8]) -> Asked {
    let digits_only = value.iter().all(u8::is_ascii_digit);
    let millis =
        std::str::from_utf8(value).ok().filter(|_| digits_only).and_then(|text| text.parse::<i32>().ok());
    // Digits alone are not negative.
    millis
        .map_or(Asked::Never, |millis| Asked::After(Duration::from_millis(u64::from(millis.unsigned_abs()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) };

    #[test]
    fn pauses_are_spread_from_nothing_to_a_doubling_limit() {
        let mut rng = fastrand::Rng::with_seed(3);
        for (retry, longest) in
            [(0, 25), (1, 25), (2, 50), (3, 100), (4, 200), (5, 250), (40, 250), (u32::MAX, 250)]
        {
            let pauses: Vec<_> = (0..1000).map(|_| BACKOFF.jittered(retry, &mut rng)).collect();
            let (shortest, most) = (*pauses.iter().min().unwrap(), *pauses.iter().max().unwrap());
            assert!(shortest < ms(longest) / 50, "retry {retry}: {shortest:?}");
            assert!(most <= ms(longest) && most > ms(longest) * 49 / 50, "retry {retry}: {most:?}");
            let mean = pauses.iter().sum::<Duration>() / 1000;
            assert!(
                mean > ms(longest) * 45 / 100 && mean < ms(longest) * 55 / 100,
                "retry {retry}: {mean:?}"
            );
        }
    }

    #[test]
    fn a_server_is_given_the_time_it_asks_for_or_no_retry() {
        for seed in 0..1000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (retry, time) = (rng.u32(1..6), ms(rng.u64(0..500)));
            match BACKOFF.pause(retry, Some(Asked::After(time)), &mut rng) {
                Some(pause) => {
                    assert!(pause >= time && pause <= ms(250), "seed {seed}: {pause:?} for {time:?}");
                }
                None => assert!(time > ms(250), "seed {seed}: {time:?}"),
            }
            assert_eq!(BACKOFF.pause(retry, Some(Asked::Never), &mut rng), None);
            assert!(BACKOFF.pause(retry, None, &mut rng).is_some_and(|pause| pause <= ms(250)));
        }
        let mut rng = fastrand::Rng::with_seed(1);
        let pauses: std::collections::BTreeSet<_> =
            (0..100).map(|_| BACKOFF.pause(1, Some(Asked::After(ms(100))), &mut rng)).collect();
        assert!(pauses.len() > 90, "everybody would come back at once");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |text: &str| parse_retry_after(text.as_bytes(), wall).map(|time| time.as_secs());
        assert_eq!((seconds("0"), seconds("120"), seconds("007")), (Some(0), Some(120), Some(7)));
        assert_eq!(seconds("99999999999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:38 GMT"), Some(1));
        assert_eq!(seconds("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60));
        assert_eq!(seconds("Sun Nov  6 09:49:37 1994"), Some(3600));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:36 GMT"), Some(0), "it has passed");
        for text in ["", "-1", "1.5", "soon", " 1", "+1", "Sun, 06 Nov 1994"] {
            assert_eq!(seconds(text), None, "{text:?}");
        }
        assert_eq!(parse_retry_after(b"\xff", wall), None);
    }

    #[test]
    fn pushback_that_is_no_number_means_no() {
        assert_eq!(parse_pushback(b"0"), Asked::After(Duration::ZERO));
        assert_eq!(parse_pushback(b"1500"), Asked::After(ms(1500)));
        assert_eq!(parse_pushback(b"2147483647"), Asked::After(ms(2_147_483_647)));
        for value in [b"-1".as_slice(), b"", b"x", b"2147483648", b"1.0", b"+1", b" 1", b"\xff"] {
            assert_eq!(parse_pushback(value), Asked::Never, "{value:?}");
        }
    }
}
