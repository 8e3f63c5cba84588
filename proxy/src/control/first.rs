//! The identity a sidecar starts with: the one on disk, or one for its join token.

use std::time::SystemTime;

use outrigger_api::token::Token;
use outrigger_common::mtls::{Svid, certificate_pin};

use super::certs::{self, JoinError};
use super::clock::roughly;
use super::disk::file::{Kind, SavedIdentity};
use super::disk::{Found, SavedSnapshot, StateDir};
use crate::shared::Shared;

/// What a sidecar starts with.
#[derive(Debug)]
pub struct First {
    /// Who it is.
    pub svid: Svid,
    /// Id of the token that began the identity; none: it is on disk already.
    pub joined: Option<String>,
    /// What the registry told before, if it is of the same mesh and identity.
    pub snapshot: Option<SavedSnapshot>,
}

/// What to do about what is on disk.
#[derive(Debug)]
enum Choice {
    /// Nothing has to be asked.
    Use(SavedIdentity),
    /// The token is another one of the same mesh: try it, and use this if it does not work.
    Prefer(SavedIdentity),
    /// The token is of another mesh: what is on disk is of no use any more.
    Foreign,
    /// Join; why what is on disk will not do, if there is anything.
    Join(Option<String>),
}

fn choose(found: Found<SavedIdentity>, token: Option<&Token>, place: &str, now: SystemTime) -> Choice {
    let saved = match found {
        Found::Nothing => return Choice::Join(None),
        Found::Damaged(why) => return Choice::Join(Some(why)),
        Found::Good(saved) => saved,
    };
    if let Some(token) = token
        && !saved.svid.bundle.iter().filter_map(certificate_pin).any(|pin| pin == token.pin)
    {
        return Choice::Foreign;
    }
    if saved.svid.remaining(now).is_zero() {
        let over = now.duration_since(saved.svid.not_after).unwrap_or_default();
        return Choice::Join(Some(format!("the certificate in {place} expired {} ago", roughly(over))));
    }
    match token {
        Some(token) if token.id != saved.token => Choice::Prefer(saved),
        Some(_) | None => Choice::Use(saved),
    }
}

/// Gets an identity, waiting for the registry as long as it takes when the disk has none. `waiting`
/// hears why.
///
/// Cancel safety: a single-use token may be spent.
///
/// # Errors
/// Neither the disk nor the token gives an identity, and asking again would not help.
pub async fn identity(
    shared: &Shared,
    directory: Option<&StateDir>,
    found: Found<SavedIdentity>,
    snapshot: Option<SavedSnapshot>,
    waiting: impl Fn(String),
) -> Result<First, JoinError> {
    let place = directory.map(|directory| directory.file(Kind::Identity).display().to_string());
    let token = shared.config.token.as_ref();
    let choice = choose(found, token, place.as_deref().unwrap_or_default(), SystemTime::now());
    let (why, snapshot) = match choice {
        Choice::Use(saved) => return Ok(First::from_disk(saved.svid, snapshot)),
        Choice::Prefer(saved) => match certs::join_now(shared).await {
            Ok((svid, token)) => return Ok(First::joined(svid, token, snapshot)),
            Err(why) => {
                tracing::warn!(
                    why,
                    "the join token is not the one of the state on disk, and could not be used: keeping the identity there"
                );
                return Ok(First::from_disk(saved.svid, snapshot));
            }
        },
        Choice::Foreign => {
            tracing::warn!(
                state_dir = ?directory.map(StateDir::path),
                "the state on disk is of another mesh than the join token: it is discarded"
            );
            // Before the identity is replaced: one mesh's snapshot must never meet another's identity.
            if let Some(Err(error)) = directory.map(|directory| directory.remove(Kind::Snapshot)) {
                tracing::warn!(%error, "the snapshot on disk cannot be removed");
            }
            (None, None)
        }
        Choice::Join(why) => (why, snapshot),
    };
    if let Some(why) = &why {
        tracing::warn!("{why}; joining anew");
    }
    let told = |later: String| match &why {
        Some(why) => waiting(format!("{why}; {later}")),
        None => waiting(later),
    };
    match certs::join(shared, told).await {
        Ok((svid, token)) => Ok(First::joined(svid, token, snapshot)),
        Err(source) => match why {
            Some(why) => Err(JoinError::State { why, source: Box::new(source) }),
            None => Err(source),
        },
    }
}

impl First {
    fn from_disk(svid: Svid, snapshot: Option<SavedSnapshot>) -> Self {
        let snapshot = snapshot.filter(|snapshot| snapshot.head.identity == svid.id.to_string());
        Self { svid, joined: None, snapshot }
    }

    /// Whoever gives a token means the registry that made it, whatever store that has now.
    fn joined(svid: Svid, token: String, snapshot: Option<SavedSnapshot>) -> Self {
        let mut first = Self::from_disk(svid, snapshot);
        if let Some(snapshot) = &mut first.snapshot {
            snapshot.head.store.clear();
        }
        first.joined = Some(token);
        first
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::disk::testing::Root;
    use super::*;

    fn token(id: &str, pin: &str) -> Token {
        Token { id: id.into(), secret: "s".into(), pin: pin.into() }
    }

    #[test]
    fn what_is_on_disk_is_used_unless_it_cannot_or_should_not_be() {
        let root = Root::new();
        let now = SystemTime::now();
        let saved =
            |expiry: SystemTime| Found::Good(SavedIdentity { svid: root.svid(expiry), token: "t1".into() });
        let good = || saved(now + Duration::from_secs(600));
        let (same, other) = (token("t1", &root.pin()), token("t2", &root.pin()));
        assert!(matches!(choose(good(), Some(&same), "/s", now), Choice::Use(_)));
        assert!(matches!(choose(good(), None, "/s", now), Choice::Use(_)));
        assert!(matches!(choose(good(), Some(&other), "/s", now), Choice::Prefer(_)));
        let foreign = token("t1", &Root::new().pin());
        assert!(matches!(choose(good(), Some(&foreign), "/s", now), Choice::Foreign));
        assert!(matches!(choose(Found::Nothing, Some(&same), "/s", now), Choice::Join(None)));
        let damaged = Found::Damaged("x".into());
        assert!(matches!(choose(damaged, None, "/s", now), Choice::Join(Some(why)) if why == "x"));
        // Not valid yet: the clock is behind, and peers judge by theirs.
        let early = now - Duration::from_secs(7200);
        assert!(matches!(choose(good(), Some(&same), "/s", early), Choice::Use(_)));
        let late = now + Duration::from_secs(600 + 7200);
        let Choice::Join(Some(why)) = choose(good(), Some(&same), "/s/identity", late) else {
            panic!("an expired certificate proves nothing");
        };
        assert!(why.contains("/s/identity") && why.contains("expired 2 hours ago"), "{why}");
    }
}
