//! The time that certificates are judged by: the wall clock's, as long as nobody who should know
//! contradicts it.
//!
//! A wall clock may be set wrong, or jump, under a process that serves. Once the registry has confirmed
//! the time, it is carried on by the clock that counts since the machine was started and cannot be set
//! (`CLOCK_BOOTTIME`, which goes on in suspension), so that a jump changes nothing; the next answer of
//! the registry confirms or corrects it. One for the process, as the wall clock is.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

/// The last confirmed time, and when that was since the machine was started.
static CONFIRMED: Mutex<Option<(SystemTime, Duration)>> = Mutex::new(None);

/// The time certificates are judged by. The wall clock's while none was confirmed.
pub fn now() -> SystemTime {
    let confirmed = *CONFIRMED.lock().expect("no holder of this lock panics");
    let carried_on = |(time, at): (SystemTime, Duration)| time.checked_add(since_boot().saturating_sub(at));
    confirmed.and_then(carried_on).unwrap_or_else(SystemTime::now)
}

/// Takes `time` for the right one now: the wall clock's, where the registry's agrees with it, else the
/// registry's.
pub fn confirm(time: SystemTime) {
    *CONFIRMED.lock().expect("no holder of this lock panics") = Some((time, since_boot()));
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    // The kernel counts from zero, nanoseconds below a second.
    let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default());
    seconds + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}

/// Gives rustls the same time.
#[derive(Debug)]
struct MeshTime;

impl TimeProvider for MeshTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(now().duration_since(SystemTime::UNIX_EPOCH).ok()?))
    }
}

/// For rustls configurations.
pub(super) fn provider() -> Arc<dyn TimeProvider> {
    Arc::new(MeshTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmed_time_goes_on_whatever_the_wall_clock_says() {
        let wall = SystemTime::now();
        let close = |time: SystemTime, to: SystemTime| {
            let apart = time.duration_since(to).unwrap_or_else(|error| error.duration());
            apart < Duration::from_secs(60)
        };
        assert!(close(now(), wall));
        let yesterday = wall - Duration::from_secs(86_400);
        confirm(yesterday);
        let first = now();
        assert!(close(first, yesterday) && first >= yesterday);
        while now() == first {}
        assert!(now() > first, "it goes on");
        confirm(SystemTime::now());
        assert!(close(now(), wall));
    }
}
