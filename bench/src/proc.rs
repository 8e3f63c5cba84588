//! What the kernel says of processes: CPU time and memory.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// What Linux calls a tick towards programs, on every architecture: `USER_HZ`.
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time of processes, all their threads, since they started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// From `schedstat` of the threads alive, in nanoseconds.
    pub(crate) nanoseconds: u64,
    /// User and system time from `stat`, in clock ticks: coarse, but includes threads that ended.
    pub(crate) ticks: u64,
}

impl Cpu {
    /// Of these processes, now.
    pub(crate) fn of(pids: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for pid in pids {
            let place = PathBuf::from(format!("/proc/{pid}"));
            let stat = fs::read_to_string(place.join("stat")).with_context(|| format!("process {pid}"))?;
            sum.ticks += stat_ticks(&stat).with_context(|| format!("stat of process {pid}: {stat}"))?;
            for thread in fs::read_dir(place.join("task"))? {
                // A thread may end while we look.
                let line = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
                sum.nanoseconds += schedstat_nanoseconds(&line).unwrap_or_default();
            }
        }
        Ok(sum)
    }

    /// What was used since an earlier look, in microseconds: the finer measure where it agrees with the
    /// coarse one, which wins where the two differ because threads ended.
    pub(crate) fn microseconds_since(self, before: Self) -> f64 {
        let fine = self.nanoseconds.saturating_sub(before.nanoseconds) as f64 / 1e3;
        let tick = 1e6 / TICKS_PER_SECOND;
        let coarse = self.ticks.saturating_sub(before.ticks) as f64 * tick;
        if agree(fine, coarse, tick) { fine } else { coarse }
    }
}

/// Whether two measures differ by no more than a tick of each process and a twentieth.
fn agree(fine: f64, coarse: f64, tick: f64) -> bool {
    (fine - coarse).abs() <= 4.0 * tick + coarse / 20.0
}

/// Fields 14 and 15, after the name in parentheses, which may hold anything.
fn stat_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

fn schedstat_nanoseconds(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}

/// Resident memory of processes together, in bytes: `VmRSS`.
pub(crate) fn resident(pids: &[u32]) -> Result<u64> {
    pids.iter()
        .map(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            vm_rss(&status).with_context(|| format!("process {pid} has no VmRSS"))
        })
        .sum()
}

fn vm_rss(status: &str) -> Option<u64> {
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.trim().strip_suffix(" kB")?;
    Some(kib.trim().parse::<u64>().ok()? * 1024)
}

/// Lets this process and its children have as many open files as the machine allows.
pub(crate) fn raise_open_files() -> u64 {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _as_it_was = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_blanks_and_parentheses_does_not_move_the_fields() {
        let stat = "12 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 41 1 13 14";
        assert_eq!(stat_ticks(stat), Some(42));
        assert_eq!(stat_ticks("12 (a) S 1"), None);
    }

    #[test]
    fn memory_and_time_on_the_cpu_are_read() {
        assert_eq!(vm_rss("Name:\tx\nVmRSS:\t   12 kB\n"), Some(12 << 10));
        assert_eq!(schedstat_nanoseconds("123 4 5\n"), Some(123));
    }

    #[test]
    fn the_fine_measure_counts_while_the_coarse_one_agrees() {
        let before = Cpu { nanoseconds: 1_000, ticks: 10 };
        assert_eq!(Cpu { nanoseconds: 1_001_000_000, ticks: 110 }.microseconds_since(before), 1_000_999.0);
        // Half of the time was that of a thread that is gone.
        assert_eq!(Cpu { nanoseconds: 500_001_000, ticks: 110 }.microseconds_since(before), 1_000_000.0);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let own = [std::process::id()];
        let before = Cpu::of(&own).unwrap();
        while Cpu::of(&own).unwrap().nanoseconds < before.nanoseconds + 1_000_000 {}
        assert!(resident(&own).unwrap() > 1 << 20);
    }
}
