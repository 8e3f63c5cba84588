//! Whether this machine's clock can be trusted: certificates are judged by it. Pure.

use std::time::{Duration, SystemTime};

/// Certificates are valid from a minute before their issue: up to there a clock may be behind.
const TOLERANCE: f64 = 60.0;

/// How far `now` is ahead of the registry's clock, in seconds, by the date of an answer: RFC 9110
/// section 6.6.1, in whole seconds.
pub fn offset(date: &str, now: SystemTime) -> Option<f64> {
    let theirs = httpdate::parse_http_date(date).ok()?;
    Some(match now.duration_since(theirs) {
        Ok(ahead) => ahead.as_secs_f64().floor(),
        Err(behind) => -behind.duration().as_secs_f64().ceil(),
    })
}

/// The registry's time, by this machine's clock and how far that is ahead.
pub fn corrected(now: SystemTime, offset: f64) -> SystemTime {
    let by = Duration::try_from_secs_f64(offset.abs()).unwrap_or_default();
    let corrected = if offset > 0.0 { now.checked_sub(by) } else { now.checked_add(by) };
    corrected.unwrap_or(now)
}

/// What to tell people about such an offset; none when it does no harm.
pub fn complaint(offset: f64) -> Option<String> {
    if offset.abs() <= TOLERANCE {
        return None;
    }
    let how_far = roughly(Duration::from_secs_f64(offset.abs()));
    let direction = if offset > 0.0 { "ahead of" } else { "behind" };
    Some(format!(
        "this machine's clock is {how_far} {direction} the registry's: certificates are judged by the registry's; set the clock"
    ))
}

/// A time for people, in the largest unit of which it has at least two.
pub fn roughly(time: Duration) -> String {
    let seconds = time.as_secs();
    let units = [("days", 86_400), ("hours", 3600), ("minutes", 60)];
    let unit = units.iter().find(|(_, length)| seconds >= 2 * length);
    unit.map_or_else(|| format!("{seconds} seconds"), |(name, length)| format!("{} {name}", seconds / length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_in_its_direction() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(offset(date, now), Some(0.0));
        let hours = Duration::from_secs(7200);
        let ahead = complaint(offset(date, now + hours).unwrap()).unwrap();
        assert!(ahead.contains("2 hours ahead of"), "{ahead}");
        let behind = complaint(offset(date, now - hours).unwrap()).unwrap();
        assert!(behind.contains("2 hours behind"), "{behind}");
        assert_eq!(complaint(offset(date, now + Duration::from_secs(30)).unwrap()), None);
        for wrong in [now + hours, now - hours] {
            assert_eq!(corrected(wrong, offset(date, wrong).unwrap()), now);
        }
        assert_eq!(offset("yesterday", now), None);
    }
}
