//! How an identity is proven: join tokens first, afterwards the certificate in hand.
//!
//! The id comes from the token's row or from the caller's certificate, never from a request.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::check_label;
use prometheus::IntCounter;

use crate::ca::{Authority, Issued, ProvenKey, random};
use crate::error::RequestError;
use crate::metrics::Metrics;
use crate::model::{self, GrantRow, TOKENS, TokenRow, Use, grant_key, grants_of, token_key};
use crate::store::{Op, Store, StoreError, Txn};

/// A single-use token answers the same key again for this long: the first answer may have been lost.
const RETRY_WINDOW: Duration = Duration::from_secs(60);
/// Time to live of a single-use token.
const SINGLE_USE_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_TTL: Duration = Duration::from_secs(366 * 24 * 3600);
/// Expired tokens are shown this long, and for as long as they could be revoked; then forgotten.
const KEEP_EXPIRED: Duration = Duration::from_secs(24 * 3600);
const MAX_SERVICES: usize = 256;
const MAX_TOKEN_ID: usize = 64;
/// Tokens an identity is held to have joined with, of those that grant the same. A fleet that makes a
/// token for each machine would otherwise leave rows for ever.
const MAX_GRANTS: usize = 256;
/// Attempts at a transaction that others keep changing.
pub const ATTEMPTS: usize = 16;

/// Issues first certificates and renews them.
pub struct Joins {
    store: Arc<dyn Store>,
    authority: Arc<Authority>,
    refused: IntCounter,
}

impl Joins {
    /// On a store and its authority.
    pub fn new(store: Arc<dyn Store>, authority: Arc<Authority>, metrics: &Metrics) -> Self {
        Self { store, authority, refused: metrics.joins_refused.clone() }
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// Names that are not labels, too many services, too long a time; the store.
    pub async fn create_token(
        &self,
        request: v1::CreateTokenRequest,
        now: SystemTime,
    ) -> Result<v1::CreateTokenResponse, RequestError> {
        let invalid = |error: &dyn std::fmt::Display| RequestError::Invalid(error.to_string());
        check_label(&request.namespace).map_err(|e| invalid(&format_args!("namespace: {e}")))?;
        check_label(&request.account).map_err(|e| invalid(&format_args!("account: {e}")))?;
        if request.services.len() > MAX_SERVICES {
            return Err(invalid(&format_args!("a token names at most {MAX_SERVICES} services")));
        }
        for service in &request.services {
            check_label(service).map_err(|e| invalid(&format_args!("service: {e}")))?;
        }
        let single_use = request.ttl_seconds == 0;
        let ttl = if single_use { SINGLE_USE_TTL } else { Duration::from_secs(request.ttl_seconds) };
        if ttl > MAX_TTL {
            return Err(invalid(&"a token lives at most 366 days"));
        }
        let token = Token {
            id: random::<8>().iter().map(|byte| format!("{byte:02x}")).collect(),
            secret: URL_SAFE_NO_PAD.encode(random::<32>()),
            pin: self.authority.pin().to_owned(),
        };
        let services: BTreeSet<String> = request.services.into_iter().collect();
        let row = TokenRow {
            secret_hash: hash(&token.secret),
            namespace: request.namespace,
            account: request.account,
            services: services.into_iter().collect(),
            expires: unix(now + ttl),
            single_use,
            used: None,
        };
        let mut txn = Txn::default();
        txn.expect(&token_key(&token.id), None);
        txn.put(token_key(&token.id), model::encode(&row));
        self.forget_expired(&mut txn, now).await?;
        self.store.commit(txn).await?;
        tracing::info!(token = token.id, namespace = row.namespace, account = row.account, "join token made");
        Ok(v1::CreateTokenResponse { token: token.expose(), id: token.id, expires: row.expires })
    }

    async fn forget_expired(&self, txn: &mut Txn, now: SystemTime) -> Result<(), RequestError> {
        let before = unix(now - KEEP_EXPIRED);
        for entry in self.store.range(TOKENS, None).await?.entries {
            let Ok(row) = model::decode::<TokenRow>(&entry) else { continue };
            let grant = grant_key(&row.namespace, &row.account, &entry.key[TOKENS.len()..]);
            if row.expires < before && self.store.entry(&grant).await?.is_none() {
                txn.ops.push(Op::Delete(entry.key.to_string()));
            }
        }
        Ok(())
    }

    /// Takes a token back, and what it granted to those who joined with it: without another token,
    /// they can no longer register, and their certificates end without renewal.
    ///
    /// # Errors
    /// When there is none; the store.
    pub async fn revoke_token(&self, id: &str) -> Result<(), RequestError> {
        let Some(entry) = self.store.entry(&token_key(id)).await? else {
            return Err(RequestError::NotFound("no such token; see `outrigger get tokens`".to_owned()));
        };
        let row: TokenRow = model::decode(&entry)?;
        let grant = grant_key(&row.namespace, &row.account, id);
        let ops = vec![Op::Delete(token_key(id)), Op::Delete(grant)];
        self.store.commit(Txn { conditions: Vec::new(), ops }).await?;
        tracing::info!(token = id, namespace = row.namespace, account = row.account, "token revoked");
        Ok(())
    }

    /// Exchanges a token for a certificate.
    ///
    /// # Errors
    /// A token that is unknown, expired or used; a request that proves no key; the store.
    pub async fn join(
        &self,
        request: v1::JoinRequest,
        now: SystemTime,
    ) -> Result<v1::CertificateResponse, RequestError> {
        for _ in 0..ATTEMPTS {
            match self.try_join(&request, now).await {
                Err(RequestError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => {
                    // Counted rather than told: anyone can bring it about, as often as they like.
                    self.refused.inc();
                    let token: String = request.token_id.chars().take(MAX_TOKEN_ID).collect();
                    tracing::debug!(?token, %error, "join refused");
                    return Err(error);
                }
                Ok(response) => return Ok(response),
            }
        }
        Err(StoreError::Conflict { key: "the token".to_owned() }.into())
    }

    async fn try_join(
        &self,
        request: &v1::JoinRequest,
        now: SystemTime,
    ) -> Result<v1::CertificateResponse, RequestError> {
        let refuse = |why: &str| {
            RequestError::Unauthenticated(format!("{why}; make a new one with `outrigger token`"))
        };
        let id = &request.token_id;
        let plain = id.len() <= MAX_TOKEN_ID && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let key = token_key(if plain { id } else { "" });
        let entry = self.store.entry(&key).await?;
        let row: Option<TokenRow> = entry.as_ref().map(model::decode).transpose()?;
        // The same work and the same answer whether the id or the secret is wrong.
        let given = hash(&request.secret);
        let known = row.as_ref().map_or("", |row| &row.secret_hash);
        let matches = verify_slices_are_equal(given.as_bytes(), known.as_bytes()).is_ok();
        let (Some(mut row), true) = (row, matches) else { return Err(refuse("token unknown")) };
        if unix(now) >= row.expires {
            return Err(refuse("token expired"));
        }
        let proven = ProvenKey::from_request(&request.csr)?;
        let mut txn = Txn::default();
        txn.expect(&key, entry.as_ref());
        if row.single_use {
            let key_hash = proven.hash();
            match &row.used {
                Some(used) if used.key_hash != key_hash || !recent(used, now) => {
                    return Err(refuse("token already used"));
                }
                Some(_) => {}
                None => {
                    row.used = Some(Use { key_hash, at: unix(now) });
                    txn.put(key, model::encode(&row));
                }
            }
        }
        self.grant(id, &row, &mut txn).await?;
        let identity =
            SpiffeId::workload(self.authority.trust_domain().clone(), &row.namespace, &row.account)
                .map_err(|error| RequestError::Invalid(error.to_string()))?;
        let issued = self.authority.issue(&identity, &proven, now)?;
        self.store.commit(txn).await?;
        tracing::info!(token = id, %identity, "joined");
        Ok(self.response(&identity, &issued))
    }

    /// Notes that the token's identity joined with it. When it has with many that grant the same, the
    /// oldest of those no longer counts.
    async fn grant(&self, id: &str, row: &TokenRow, txn: &mut Txn) -> Result<(), RequestError> {
        let key = grant_key(&row.namespace, &row.account, id);
        let entry = self.store.entry(&key).await?;
        if entry.is_some() {
            return Ok(());
        }
        txn.expect(&key, None);
        let grant = GrantRow { services: row.services.clone() };
        let mut alike = self.store.range(&grants_of(&row.namespace, &row.account), None).await?.entries;
        alike.retain(|entry| model::decode::<GrantRow>(entry).is_ok_and(|other| other == grant));
        if alike.len() >= MAX_GRANTS
            && let Some(oldest) = alike.iter().min_by_key(|entry| entry.revision)
        {
            txn.ops.push(Op::Delete(oldest.key.to_string()));
        }
        txn.put(key, model::encode(&grant));
        Ok(())
    }

    /// Renews a certificate: the same id as the caller's, for a key it proves to hold.
    ///
    /// # Errors
    /// An identity whose tokens were all revoked; a request that proves no key; signing; the store.
    pub async fn renew(
        &self,
        identity: &SpiffeId,
        csr: &[u8],
        now: SystemTime,
    ) -> Result<v1::CertificateResponse, RequestError> {
        granted(&*self.store, identity).await?;
        let issued = self.authority.issue(identity, &ProvenKey::from_request(csr)?, now)?;
        Ok(self.response(identity, &issued))
    }

    fn response(&self, identity: &SpiffeId, issued: &Issued) -> v1::CertificateResponse {
        v1::CertificateResponse {
            chain: vec![issued.leaf.to_vec()],
            bundle: vec![self.authority.root().to_vec()],
            not_before: unix(issued.not_before),
            not_after: unix(issued.not_after),
            identity: identity.to_string(),
        }
    }
}

/// Labels of the services a workload may register: those of all tokens its identity joined with.
/// That a token has expired or was used up ends its use, not what it granted.
///
/// # Errors
/// Another caller than a workload; one whose tokens were all revoked; the store.
pub async fn granted(store: &dyn Store, caller: &SpiffeId) -> Result<BTreeSet<String>, RequestError> {
    let (Some(namespace), Some(account)) = (caller.namespace(), caller.account()) else {
        return Err(RequestError::Denied(format!("{caller} is not a workload")));
    };
    let grants = store.range(&grants_of(namespace, account), None).await?.entries;
    if grants.is_empty() {
        return Err(RequestError::Denied(format!(
            "every token {caller} joined with was revoked; if it is still wanted, join again with a new one: `outrigger token --namespace {namespace} --account {account}`"
        )));
    }
    let mut services = BTreeSet::new();
    for entry in &grants {
        services.extend(model::decode::<GrantRow>(entry)?.services);
    }
    Ok(services)
}

fn recent(used: &Use, now: SystemTime) -> bool {
    let window = i64::try_from(RETRY_WINDOW.as_secs()).unwrap_or(i64::MAX);
    unix(now) <= used.at.saturating_add(window)
}

/// SHA-256, base64. The secret has 256 random bits, so a fast hash without salt keeps it.
fn hash(secret: &str) -> String {
    STANDARD.encode(digest(&SHA256, secret.as_bytes()))
}

/// Seconds since 1970.
pub fn unix(time: SystemTime) -> i64 {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
