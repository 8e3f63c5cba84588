//! Why a handshake failed, and what to say about clients of another mesh.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// Clients of another root are told of once in this time: each of them tries for ever.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The client does not believe this registry's root, or its certificate comes from another.
    OtherRoot,
    /// A certificate is out of its time, or one of the two clocks is wrong.
    Expired,
    /// A certificate that is wrong in another way.
    Certificate,
    /// It took too long.
    Timeout,
    /// The connection ended.
    Broken,
    /// It was no TLS 1.3.
    Protocol,
}

impl Refusal {
    /// Reads the error of a handshake. A client checks our certificate before it sends its own, so one
    /// of another mesh is known by its alert (RFC 8446 section 6.2). Roots of one trust domain have the
    /// same name: what differs is the key, so that it is a signature that does not fit.
    pub(super) fn of(error: &io::Error) -> Self {
        let tls = error.get_ref().and_then(|source| source.downcast_ref::<Error>());
        match tls {
            None if error.kind() == io::ErrorKind::TimedOut => Self::Timeout,
            None => Self::Broken,
            Some(
                Error::AlertReceived(
                    AlertDescription::UnknownCA
                    | AlertDescription::CertificateUnknown
                    | AlertDescription::DecryptError,
                )
                | Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature),
            ) => Self::OtherRoot,
            Some(
                Error::AlertReceived(AlertDescription::CertificateExpired)
                | Error::InvalidCertificate(
                    CertificateError::Expired
                    | CertificateError::ExpiredContext { .. }
                    | CertificateError::NotValidYet
                    | CertificateError::NotValidYetContext { .. },
                ),
            ) => Self::Expired,
            Some(
                Error::InvalidCertificate(_)
                | Error::AlertReceived(
                    AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate,
                ),
            ) => Self::Certificate,
            Some(_) => Self::Protocol,
        }
    }

    /// The metric's label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::OtherRoot => "other_root",
            Self::Expired => "expired",
            Self::Certificate => "certificate",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Protocol => "protocol",
        }
    }
}

/// Clients of another root, told of now and then.
#[derive(Default)]
pub(super) struct Strangers(Mutex<Told>);

#[derive(Default)]
struct Told {
    at: Option<Instant>,
    since: u64,
}

impl Strangers {
    /// Notes why a client was not let in, and says so if it is time.
    pub(super) fn met(&self, refusal: Refusal, address: SocketAddr) {
        if refusal != Refusal::OtherRoot {
            return;
        }
        if let Some(attempts) = self.due(Instant::now()) {
            tracing::warn!(
                %address,
                attempts,
                "a sidecar with a certificate or token of another root: was this registry's data lost? Restore its backup (`outrigger registry restore`) or give the sidecars new tokens (`outrigger token`); or is the sidecar's registry.address that of another mesh?"
            );
        }
    }

    /// How many there were since it was last said, this one included; none when it was just said.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.since += 1;
        if told.at.is_some_and(|at| now.duration_since(at) < TELL_EVERY) {
            return None;
        }
        told.at = Some(now);
        Some(std::mem::take(&mut told.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_once_a_minute_with_how_often() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        assert_eq!(strangers.due(now), Some(1));
        for second in 1..60 {
            assert_eq!(strangers.due(now + Duration::from_secs(second)), None);
        }
        assert_eq!(strangers.due(now + TELL_EVERY), Some(60));
    }

    #[test]
    fn reasons_are_told_apart() {
        let tls = |error: Error| Refusal::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(tls(Error::AlertReceived(AlertDescription::UnknownCA)), Refusal::OtherRoot);
        assert_eq!(tls(CertificateError::UnknownIssuer.into()), Refusal::OtherRoot);
        assert_eq!(tls(CertificateError::Expired.into()), Refusal::Expired);
        assert_eq!(tls(CertificateError::BadSignature.into()), Refusal::OtherRoot);
        assert_eq!(tls(Error::AlertReceived(AlertDescription::CertificateUnknown)), Refusal::OtherRoot);
        assert_eq!(tls(Error::AlertReceived(AlertDescription::DecryptError)), Refusal::OtherRoot);
        assert_eq!(tls(CertificateError::Revoked.into()), Refusal::Certificate);
        assert_eq!(tls(Error::HandshakeNotComplete), Refusal::Protocol);
        assert_eq!(Refusal::of(&io::ErrorKind::TimedOut.into()), Refusal::Timeout);
        assert_eq!(Refusal::of(&io::ErrorKind::UnexpectedEof.into()), Refusal::Broken);
    }
}
