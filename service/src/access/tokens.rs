//! The tokens of a role, on disk and in memory.
//!
//! Invariant: the disk has only hashes of secrets, and a token works only after its record is durable.

use super::grant::{Caller, Grant, NamePattern};
use crate::audit::now_ms;
use crate::error_text::with_sources;
use crate::token_hash::TokenHash;
use axum::http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use shoal_api::access::{Scope, TokenCreated, TokenRequest, TokenView};
use shoal_kv::KvError;
use shoal_proto::hex;
use shoal_proto::locality::{ParseLocalityError, Selector, is_name};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// The name of callers that need no token.
const ANYBODY: &str = "anybody";
/// The name of the admin token, which is in a file and not in the store.
const ADMIN: &str = "admin";
/// Tokens of a role.
const TOKENS_MAX: usize = 1024;
/// Names of one token.
const NAMES_MAX: usize = 64;

/// Why a token is not created or revoked.
#[derive(Debug, thiserror::Error)]
pub enum TokenFault {
    #[error("invalid token name `{0}`: use letters, digits, `.`, `_`, `-`, at most 63 bytes")]
    Name(String),
    #[error("the token `{0}` exists")]
    Exists(String),
    #[error("there is no token `{0}`")]
    Unknown(String),
    #[error("`{ADMIN}` is the token in the file of the key `admin_token`, and `{ANYBODY}` is nobody")]
    Admin,
    #[error("there are {TOKENS_MAX} tokens")]
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
    Store(#[from] KvError),
    #[error("cannot encode the token")]
    Encode(#[from] serde_json::Error),
    #[error("the system has no random bytes")]
    Random(#[from] getrandom::Error),
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
        self.view.expires_at.is_some_and(|at| at <= unix_s())
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

fn unix_s() -> u64 {
    now_ms() / 1000
}

/// Where a role keeps the records of its tokens.
pub trait TokenRecords: Send + Sync {
    /// Returns all records with the names of their tokens.
    ///
    /// # Errors
    /// Fails if the disk fails.
    fn all(&self) -> Result<Vec<(String, Vec<u8>)>, KvError>;

    /// Stores a record, or removes it. The change survives a loss of power when this returns.
    ///
    /// # Errors
    /// Fails if the disk fails.
    fn put(&self, name: &str, record: Option<Vec<u8>>) -> Result<(), KvError>;
}

/// The tokens of a role.
pub struct Tokens {
    records: Box<dyn TokenRecords>,
    /// `None` where the port serves this machine only and everybody may read.
    admin: Option<TokenHash>,
    rows: Mutex<BTreeMap<String, Token>>,
}

impl Tokens {
    /// Continues with the tokens on disk. A record that cannot be read is logged, and its token does not work.
    ///
    /// Without an admin token every caller may read, and nobody can create tokens. A role does so only on a port that
    /// no other machine reaches.
    pub fn open(records: Box<dyn TokenRecords>, admin: Option<TokenHash>) -> Arc<Self> {
        let stored = records.all().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot read the tokens; only the admin token works");
            Vec::new()
        });
        let mut rows = BTreeMap::new();
        for (name, bytes) in stored {
            match Token::from_record(&bytes) {
                Some(token) => drop(rows.insert(token.view.name.clone(), token)),
                None => tracing::error!(name, "cannot read a stored token; revoke it and create another one"),
            }
        }
        Arc::new(Self { records, admin, rows: Mutex::new(rows) })
    }

    fn rows(&self) -> MutexGuard<'_, BTreeMap<String, Token>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the caller of a request.
    pub fn caller(&self, method: &Method, headers: &HeaderMap) -> Option<Caller> {
        // A browser sends a password along with requests of other sites' pages, so a password changes nothing.
        let is_reading = matches!(*method, Method::GET | Method::HEAD);
        let by_browser = || TokenHash::shown_by_browser(headers).filter(|_| is_reading);
        let shown = TokenHash::shown(headers).or_else(by_browser);
        let anybody = || {
            let grant = Arc::new(Grant::nothing());
            self.admin.is_none().then(|| Caller::new(ANYBODY, Scope::Read, grant, CancellationToken::new(), None))
        };
        shown.and_then(|shown| self.identify(shown)).or_else(anybody)
    }

    fn identify(&self, shown: TokenHash) -> Option<Caller> {
        if self.admin == Some(shown) {
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
    pub fn create(&self, request: TokenRequest) -> Result<TokenCreated, TokenFault> {
        let TokenRequest { name, scope, names, to, expires } = request;
        if !is_name(&name) {
            return Err(TokenFault::Name(name));
        }
        if name == ADMIN || name == ANYBODY {
            return Err(TokenFault::Admin);
        }
        let created_at = unix_s();
        let expires_at = expires.map(|span| created_at.saturating_add(span.0.as_secs()));
        if expires_at.is_some_and(|at| at <= created_at) {
            return Err(TokenFault::Expired);
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let secret = hex::encode(&bytes);
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
        self.records.put(&name, Some(record?))?;
        rows.insert(name, token);
        Ok(TokenCreated { token: view, secret })
    }

    /// Returns the tokens in the order of their names.
    pub fn all(&self) -> Vec<TokenView> {
        self.rows().values().map(|token| token.view.clone()).collect()
    }

    /// Revokes a token, and ends the streams that were opened with it. Blocks.
    ///
    /// # Errors
    /// Returns an error if there is no such token, or if the token would work again after a restart.
    pub fn revoke(&self, name: &str) -> Result<TokenView, TokenFault> {
        if name == ADMIN {
            return Err(TokenFault::Admin);
        }
        let mut rows = self.rows();
        // First on disk, so that a failure leaves a token that can be revoked again.
        let Some(token) = rows.get(name) else { return Err(TokenFault::Unknown(name.to_string())) };
        token.revoked.cancel();
        let view = token.view.clone();
        self.records.put(name, None).inspect_err(|error| {
            tracing::error!(name, error = with_sources(error), "cannot revoke a token");
        })?;
        rows.remove(name);
        Ok(view)
    }
}
