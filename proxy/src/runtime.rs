//! The two runtimes: the data plane, sized by configuration, and the control thread.

use std::io;

use tokio::runtime::{Builder, Runtime};

use crate::config::Workers;

/// How many threads carry requests. `auto` follows the CPU quota of the cgroup, which the standard
/// library reads, and is at least one.
pub fn worker_count(workers: Workers) -> usize {
    match workers {
        Workers::Fixed(number) => number,
        Workers::Auto => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// The data plane: one thread without work stealing, or several with it.
///
/// # Errors
/// When the system refuses threads or epoll.
pub fn data_plane(workers: Workers) -> io::Result<Runtime> {
    match worker_count(workers) {
        1 => Builder::new_current_thread().enable_all().build(),
        number => Builder::new_multi_thread().worker_threads(number).thread_name("data").enable_all().build(),
    }
}

/// The control thread's runtime, so that a scrape or a large update never delays a request.
///
/// # Errors
/// As [`data_plane`].
pub fn control() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
