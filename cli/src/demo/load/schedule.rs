//! When each request is due, and a clock fine enough to keep it.
//!
//! Open loop: request `i` is due at `i / rate` whatever became of those before it, so that a slow
//! answer cannot slow the questions down and hide its own delay.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

const NANOS: u128 = 1_000_000_000;

/// Due times of a load, counted from its start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schedule {
    rate: u32,
    total: Option<u64>,
    end: Option<Duration>,
}

impl Schedule {
    /// `rate` requests a second, for `duration` or for ever.
    pub(super) fn new(rate: u32, duration: Option<Duration>) -> Self {
        let total = duration.map(|duration| {
            u64::try_from((duration.as_nanos() * u128::from(rate)).div_ceil(NANOS)).unwrap_or(u64::MAX)
        });
        Self { rate, total: if rate == 0 { Some(0) } else { total }, end: duration }
    }

    /// When the load is over, if ever.
    pub(super) fn end(&self) -> Option<Duration> {
        self.end
    }

    /// When request `index` is due; `None` when there is no such request.
    pub(super) fn due(&self, index: u64) -> Option<Duration> {
        if self.total.is_some_and(|total| index >= total) {
            return None;
        }
        let nanos = u128::from(index) * NANOS / u128::from(self.rate);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

/// Waits with the kernel's precision. The runtime's own timers are whole milliseconds, which would be
/// seen in every delay measured.
#[derive(Debug)]
pub(super) struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    // Deprecated for descriptors that may be closed or exchanged while registered, in favour of an
    // `unsafe` constructor; an `OwnedFd` that never leaves this struct can be neither.
    #[allow(deprecated)]
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)?))
    }

    /// Returns after `wait`.
    ///
    /// Cancel safety: safe; the next call sets the alarm anew.
    pub(super) async fn after(&self, wait: Duration) -> io::Result<()> {
        // All zeros would switch the alarm off.
        let wait = wait.max(Duration::from_nanos(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
        loop {
            let mut guard = self.0.readable().await?;
            let mut expirations = [0; 8];
            match rustix::io::read(self.0.get_ref(), &mut expirations) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => guard.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(schedule: Schedule) -> Vec<Duration> {
        (0..).map_while(|index| schedule.due(index)).collect()
    }

    #[test]
    fn requests_are_spread_evenly_and_end_before_the_duration() {
        let due = all(Schedule::new(4, Some(Duration::from_secs(1))));
        assert_eq!(due, [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(all(Schedule::new(2000, Some(Duration::from_secs(20)))).len(), 40_000);
    }

    #[test]
    fn rounding_never_accumulates() {
        let schedule = Schedule::new(3, None);
        assert_eq!(schedule.due(3_000_000_000), Some(Duration::from_secs(1_000_000_000)));
    }

    #[test]
    fn a_part_of_a_second_counts_and_no_rate_is_no_request() {
        assert_eq!(all(Schedule::new(10, Some(Duration::from_millis(101)))).len(), 2);
        assert_eq!(Schedule::new(0, None).due(0), None);
    }

    #[tokio::test]
    async fn the_alarm_rings_after_the_wait_and_can_be_set_again() {
        let alarm = Alarm::new().unwrap();
        for wait in [0, 300, 1500].map(Duration::from_micros) {
            let start = std::time::Instant::now();
            alarm.after(wait).await.unwrap();
            assert!(start.elapsed() >= wait);
        }
    }
}
