//! Feeds: publishing the next version of a name, from memory.
//!
//! Invariant: a sequence is given once and never goes back, whatever is killed when. What may have been given is on the
//! disk, a span at a time, before the first of that span is; so no version waits for the disk.

use crate::config::SeederConfig;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use shoal_peer::driver::setup::RunningNode;
use shoal_peer::feeds::unix_ms;
use shoal_peer::handle::{DriverCommand, FeedPublication, NodeHandle};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::desired::name_of;
use shoal_proto::feed::{FeedMark, feed_id, is_feed_name};
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_proto::manifest::Manifest;
use shoal_proto::trust::{Envelope, Keypair};
use shoal_service::http_server::ApiError;
use shoal_store::ingest::IngestOptions;
use shoal_store::inline_manifest;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, oneshot};

/// Key of the record that says which sequences may have been given.
const CEILING: &str = "feed-ceiling";
/// Sequences set aside at a time. One is a millisecond of the clock, or less where versions come faster.
const SPAN: u64 = 60_000;
/// Large versions taken in at once.
const INGESTS_MAX: usize = 2;
/// How long hosts remember a feed after its last version, seconds.
const LIFETIME_S: u64 = 365 * 86_400;

/// Why a version is not published.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The name cannot be.
    #[error("`{0}` is no feed name")]
    Name(String),
    /// The selector selects nobody.
    #[error("no host of the region is `{0}`")]
    NoHosts(String),
    /// Too much data.
    #[error("{0} bytes are more than a version of a feed may have ({max})", max = limits::FEED_BYTES_MAX)]
    TooLarge(u64),
    /// The seeder's disk is at fault, or the seeder stops.
    #[error("cannot keep the version: {0}")]
    Store(String),
}

struct Sequences {
    /// The last given, by name.
    last: BTreeMap<String, u64>,
    /// None below was given before the start.
    floor: u64,
    /// None above is given before this is raised on the disk.
    ceiling: u64,
    /// It is being raised.
    raising: bool,
}

/// The feeds of a seeder.
pub struct Feeds {
    publisher: Keypair,
    me: NodeId,
    node: NodeHandle,
    options: IngestOptions,
    sequences: Mutex<Sequences>,
    ingests: Semaphore,
}

impl Feeds {
    /// Continues from the disk.
    pub fn open(config: &SeederConfig, publisher: Keypair, running: &RunningNode) -> Arc<Self> {
        let node = running.handle.clone();
        let ceiling = node.store.get_state(CEILING).ok().flatten();
        let ceiling = ceiling.and_then(|bytes| decode_exact::<u64>(&bytes).ok()).unwrap_or(0);
        Arc::new(Self {
            publisher,
            me: running.credential.node,
            node,
            options: IngestOptions {
                average: None,
                data: config.data_shards,
                parity: config.parity_shards,
                lanes: config.lanes,
            },
            sequences: Mutex::new(Sequences { last: BTreeMap::new(), floor: ceiling, ceiling, raising: false }),
            ingests: Semaphore::new(INGESTS_MAX),
        })
    }

    /// Publishes the next version of a feed to the hosts selected; gives its sequence. When this returns, hosts are being
    /// told, and a kill of this seeder loses the version no more. An older version still on its way is abandoned.
    pub async fn publish(
        self: &Arc<Self>,
        name: &str,
        kind: Kind,
        data: Bytes,
        selector: &Selector,
    ) -> Result<u64, FeedError> {
        if !is_feed_name(name) {
            return Err(FeedError::Name(name.into()));
        }
        if data.len() as u64 > limits::FEED_BYTES_MAX {
            return Err(FeedError::TooLarge(data.len() as u64));
        }
        let membership = self.node.membership.borrow().clone();
        if !membership.is_empty() && membership.select(selector).none() {
            return Err(FeedError::NoHosts(selector.to_string()));
        }
        let published_at_ms = unix_ms();
        let sequence = self.next_sequence(name, published_at_ms).await?;
        let size = data.len() as u64;
        let (content, manifest_bytes, small) = if size <= limits::INLINE_DATA_BYTES_MAX {
            let manifest = inline_manifest(&data).to_bytes();
            (Manifest::id(&manifest), manifest.len() as u64, Some((Bytes::from(manifest), data)))
        } else {
            let (content, manifest_bytes) = self.ingest(name, data).await?;
            (content, manifest_bytes, None)
        };
        let announcement = Announcement {
            job: feed_id(name),
            content,
            kind,
            name: name.into(),
            version: sequence.to_string(),
            sequence,
            selector: selector.clone(),
            origin: self.me,
            manifest_bytes,
            size,
            created_at: published_at_ms / 1000,
            expires_at: published_at_ms / 1000 + LIFETIME_S,
            order: None,
            feed: Some(FeedMark { published_at_ms }),
            staged: false,
        };
        let envelope = Envelope::seal(&announcement, &self.publisher);
        let (kept, written) = oneshot::channel();
        let publication = FeedPublication { envelope, announcement: Arc::new(announcement), small, kept };
        let stopping = || FeedError::Store("the node is stopping".into());
        self.node.commands.send(DriverCommand::PublishFeed(Box::new(publication))).await.map_err(|_| stopping())?;
        written.await.map_err(|_| stopping())?.map_err(FeedError::Store)?;
        Ok(sequence)
    }

    async fn ingest(&self, name: &str, data: Bytes) -> Result<(ContentId, u64), FeedError> {
        let Ok(_permit) = self.ingests.acquire().await else { return Err(FeedError::Store("stopping".into())) };
        let (store, options) = (self.node.store.clone(), self.options.clone());
        let former = self.node.feeds.get(name).map(|version| version.content);
        let ingested = tokio::task::spawn_blocking(move || store.ingest_version(&data, &options, former.as_ref()));
        let ingested = ingested.await.map_err(|error| FeedError::Store(error.to_string()))?;
        let ingested = ingested.map_err(|error| FeedError::Store(error.to_string()))?;
        Ok((ingested.content, ingested.manifest_bytes))
    }

    fn sequences(&self) -> MutexGuard<'_, Sequences> {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next sequence of a name: the clock's milliseconds, or one more than the last.
    async fn next_sequence(self: &Arc<Self>, name: &str, now: u64) -> Result<u64, FeedError> {
        loop {
            // Another seeder may have published the name meanwhile.
            let heard = self.node.feeds.announced(name).unwrap_or(0);
            let next = {
                let mut sequences = self.sequences();
                let last = sequences.last.get(name).copied().unwrap_or(sequences.floor);
                let next = now.max(last.max(heard) + 1);
                let near = next + SPAN / 2 > sequences.ceiling && !sequences.raising;
                sequences.raising |= near;
                let given = next <= sequences.ceiling;
                if given {
                    sequences.last.insert(name.into(), next);
                }
                (next, near, given)
            };
            let raised = match next {
                (next, true, _) => Some(self.raise(next + SPAN)),
                _ => None,
            };
            match (next, raised) {
                // Raised in good time: the version does not wait for it.
                ((next, _, true), _) => return Ok(next),
                ((_, _, false), Some(raised)) => {
                    raised.await.map_err(|error| FeedError::Store(error.to_string()))?.map_err(FeedError::Store)?;
                }
                // Another version raises it.
                ((_, _, false), None) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
            }
        }
    }

    /// Sets sequences aside, durably, on a thread that may wait for the disk.
    fn raise(self: &Arc<Self>, ceiling: u64) -> tokio::task::JoinHandle<Result<(), String>> {
        let feeds = self.clone();
        tokio::task::spawn_blocking(move || {
            let store = &feeds.node.store;
            let kept = store.put_state(CEILING, Some(encode(&ceiling))).and_then(|()| store.sync());
            let mut sequences = feeds.sequences();
            sequences.raising = false;
            if kept.is_ok() {
                sequences.ceiling = sequences.ceiling.max(ceiling);
            }
            kept.map_err(|error| error.to_string())
        })
    }
}

/// The answer to a publication.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    /// The feed.
    pub feed: String,
    /// The version's sequence.
    pub sequence: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    /// What it is for.
    kind: Option<Kind>,
    /// Selectors, each an alternative, separated by `;`. All hosts when absent.
    to: Option<String>,
}

/// The routes.
pub(crate) fn routes(feeds: Arc<Feeds>) -> Router {
    let limit = DefaultBodyLimit::max(limits::FEED_BYTES_MAX as usize);
    Router::new().route("/v1/feeds/{*name}", post(publish).layer(limit)).with_state(feeds)
}

async fn publish(
    State(feeds): State<Arc<Feeds>>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
    data: Bytes,
) -> Result<Json<Published>, ApiError> {
    let refused = |status, why: String, remedy: &str| ApiError::new(status, "version refused", why, remedy);
    if name_of(&name).is_some() {
        let why = format!("`{name}` carries a rollout's desired states");
        return Err(refused(StatusCode::BAD_REQUEST, why, "use `shoal rollout`"));
    }
    let to: Vec<&str> = asked.to.as_deref().map_or_else(|| vec!["all"], |to| to.split(';').collect());
    let selector = Selector::parse(&to).map_err(|error| {
        let remedy = "use all, region=R, site=S, rack=R, host=H or label=value, joined by `,`";
        refused(StatusCode::BAD_REQUEST, error.to_string(), remedy)
    })?;
    let published = feeds.publish(&name, asked.kind.unwrap_or(Kind::Gslb), data, &selector).await;
    let sequence = published.map_err(|error| {
        let (status, remedy) = match &error {
            FeedError::Name(_) => (
                StatusCode::BAD_REQUEST,
                "use letters, digits, `.`, `_`, `-`, joined by `/`, at most 128 bytes, not ending in `/events`",
            ),
            FeedError::NoHosts(_) => (StatusCode::BAD_REQUEST, "see `shoal hosts` for the hosts there are"),
            FeedError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "push it as a content"),
            FeedError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "look at the seeder's disk and its log"),
        };
        refused(status, error.to_string(), remedy)
    })?;
    Ok(Json(Published { feed: name, sequence }))
}
