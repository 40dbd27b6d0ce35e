//! The tokens of a seeder, on disk and in memory.
//!
//! Invariant: the disk has only hashes of secrets, and a token works only after its record is durable.

use super::grant::{Caller, Grant, NamePattern};
use crate::errors::{StateError, with_sources};
use serde::{Deserialize, Serialize};
use shoal_api::access::{Scope, TokenCreated, TokenRequest, TokenView};
use shoal_net::admission::system_clock;
use shoal_proto::locality::{ParseLocalityError, Selector, is_name};
use shoal_service::token_hash::TokenHash;
use shoal_store::Store;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// The name of the admin token, which is in a file and not in the store.
const ADMIN: &str = "admin";
/// Tokens of a seeder.
const TOKENS_MAX: usize = 1024;
/// Names of one token.
const NAMES_MAX: usize = 64;

/// Why a token is not created or revoked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenFault {
    #[error("invalid token name `{0}`: use letters, digits, `.`, `_`, `-`, at most 63 bytes")]
    Name(String),
    #[error("the token `{0}` exists")]
    Exists(String),
    #[error("this seeder has no token `{0}`")]
    Unknown(String),
    #[error("`{ADMIN}` is the token in the file of the key `admin_token`")]
    Admin,
    #[error("this seeder has {TOKENS_MAX} tokens")]
    TooMany,
    #[error("a token of scope push needs names and hosts")]
    Unbounded,
    #[error("only a token of scope push has names and hosts")]
    Bounded,
    #[error("invalid name `{0}` of contents: use `edge/` for the names below edge, `edge/app` for one name, or `*`")]
    Pattern(String),
    #[error("a token has at most {NAMES_MAX} names")]
    Patterns,
    #[error("the token would expire at once")]
    Expired,
    #[error(transparent)]
    Selector(#[from] ParseLocalityError),
    #[error("cannot store the token")]
    Store(#[from] StateError),
}

/// A token on disk.
#[derive(Serialize, Deserialize)]
struct Record {
    hash: String,
    token: TokenView,
}

struct Token {
    hash: TokenHash,
    view: TokenView,
    grant: Arc<Grant>,
    revoked: CancellationToken,
}

impl Token {
    fn new(hash: TokenHash, view: TokenView) -> Result<Self, TokenFault> {
        let grant = Arc::new(grant_of(&view)?);
        Ok(Self { hash, view, grant, revoked: CancellationToken::new() })
    }

    fn from_record(bytes: &[u8]) -> Option<Self> {
        let record: Record = serde_json::from_slice(bytes).ok()?;
        Self::new(TokenHash::from_hex(&record.hash)?, record.token).ok()
    }

    fn is_expired(&self) -> bool {
        self.view.expires_at.is_some_and(|at| at <= system_clock())
    }
}

/// Returns what a token allows.
fn grant_of(view: &TokenView) -> Result<Grant, TokenFault> {
    let is_bounded = !view.names.is_empty() && !view.to.is_empty();
    match view.scope {
        Scope::Push if !is_bounded => return Err(TokenFault::Unbounded),
        Scope::Push => {}
        _ if !view.names.is_empty() || !view.to.is_empty() => return Err(TokenFault::Bounded),
        Scope::Read => return Ok(Grant::nothing()),
        Scope::Admin => return Ok(Grant::everything()),
    }
    if view.names.len() > NAMES_MAX {
        return Err(TokenFault::Patterns);
    }
    let pattern = |text: &String| NamePattern::parse(text).ok_or_else(|| TokenFault::Pattern(text.clone()));
    let names = view.names.iter().map(pattern).collect::<Result<_, _>>()?;
    Ok(Grant { names, to: Some(Selector::parse(&view.to)?) })
}

fn key(name: &str) -> String {
    format!("token/{name}")
}

/// The tokens of a seeder.
pub(crate) struct Tokens {
    store: Store,
    admin: TokenHash,
    rows: Mutex<BTreeMap<String, Token>>,
}

impl Tokens {
    /// Continues with the tokens on disk. A record that cannot be read is logged, and its token does not work.
    pub(crate) fn open(store: Store, admin: TokenHash) -> Arc<Self> {
        let records = store.scan_state("token/").unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the tokens; only the admin token works");
            Vec::new()
        });
        let mut rows = BTreeMap::new();
        for (key, bytes) in records {
            match Token::from_record(&bytes) {
                Some(token) => drop(rows.insert(token.view.name.clone(), token)),
                None => tracing::error!(key, "cannot read a stored token; revoke it and create another one"),
            }
        }
        Arc::new(Self { store, admin, rows: Mutex::new(rows) })
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Token>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the caller that shows a secret with this hash.
    pub(crate) fn identify(&self, shown: TokenHash) -> Option<Caller> {
        if shown == self.admin {
            let grant = Arc::new(Grant::everything());
            return Some(Caller::new(ADMIN, Scope::Admin, grant, CancellationToken::new(), None));
        }
        let rows = self.rows();
        let token = rows.values().find(|token| token.hash == shown).filter(|token| !token.is_expired())?;
        let Token { view, grant, revoked, .. } = token;
        Some(Caller::new(&view.name, view.scope, grant.clone(), revoked.clone(), view.expires_at))
    }

    /// Creates a token. Blocks.
    ///
    /// # Errors
    /// Returns why the token is not created.
    pub(crate) fn create(&self, request: TokenRequest) -> Result<TokenCreated, TokenFault> {
        let TokenRequest { name, scope, names, to, expires } = request;
        if !is_name(&name) {
            return Err(TokenFault::Name(name));
        }
        if name == ADMIN {
            return Err(TokenFault::Admin);
        }
        let created_at = system_clock();
        let expires_at = expires.map(|span| created_at.saturating_add(span.0.as_secs()));
        if expires_at.is_some_and(|at| at <= created_at) {
            return Err(TokenFault::Expired);
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(StateError::from)?;
        let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let view = TokenView { name: name.clone(), scope, names, to, created_at, expires_at };
        let token = Token::new(TokenHash::of(secret.as_bytes()), view.clone())?;
        // Locked until the record is durable, so that two requests do not create one name.
        let mut rows = self.rows();
        if rows.contains_key(&name) {
            return Err(TokenFault::Exists(name));
        }
        if rows.len() >= TOKENS_MAX {
            return Err(TokenFault::TooMany);
        }
        let record = serde_json::to_vec(&Record { hash: token.hash.to_hex(), token: view.clone() });
        self.put(&name, Some(record.map_err(StateError::from)?))?;
        rows.insert(name, token);
        Ok(TokenCreated { token: view, secret })
    }

    fn put(&self, name: &str, record: Option<Vec<u8>>) -> Result<(), StateError> {
        self.store.put_state(&key(name), record)?;
        Ok(self.store.sync()?)
    }

    /// Returns the tokens in the order of their names.
    pub(crate) fn all(&self) -> Vec<TokenView> {
        self.rows().values().map(|token| token.view.clone()).collect()
    }

    /// Revokes a token, and ends the streams that were opened with it. Blocks.
    ///
    /// # Errors
    /// Returns an error if there is no such token, or if the token would work again after a restart.
    pub(crate) fn revoke(&self, name: &str) -> Result<TokenView, TokenFault> {
        if name == ADMIN {
            return Err(TokenFault::Admin);
        }
        let mut rows = self.rows();
        // First on disk, so that a failure leaves a token that can be revoked again.
        let Some(token) = rows.get(name) else { return Err(TokenFault::Unknown(name.to_string())) };
        token.revoked.cancel();
        let view = token.view.clone();
        self.put(name, None).inspect_err(|error| {
            tracing::error!(name, error = with_sources(error), "cannot revoke a token");
        })?;
        rows.remove(name);
        Ok(view)
    }
}
