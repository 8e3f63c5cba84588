//! Opaque bytes between sidecars: what goes ahead of them, and the copying itself.

pub mod preface;
pub mod relay;

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// Silence after which a peer is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(30);
/// Time between such questions.
const ASKING: Duration = Duration::from_secs(10);
/// Questions without an answer after which it is gone.
const QUESTIONS: u32 = 3;

/// Has the kernel end a connection whose peer is gone: after a minute, where it would be hours or never
/// (tcp(7), `TCP_KEEPALIVE`). A peer that is there and has nothing to say, or reads nothing for a while,
/// answers.
pub fn keep_alive(tcp: &TcpStream) {
    let asked = sockopt::set_socket_keepalive(tcp, true)
        .and_then(|()| sockopt::set_tcp_keepidle(tcp, SILENCE))
        .and_then(|()| sockopt::set_tcp_keepintvl(tcp, ASKING))
        .and_then(|()| sockopt::set_tcp_keepcnt(tcp, QUESTIONS));
    // Without it, what is written to it will tell.
    if let Err(error) = asked {
        tracing::debug!(%error, "no TCP keep-alive");
    }
}
