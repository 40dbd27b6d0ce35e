//! Feeds: publishing the next version of a name, from memory.
//!
//! Owns: the sequences of feeds (`sequences`). `api` serves publications over HTTP.
//! Invariant: when [`Feeds::publish`] returns, the version is durable and hosts are being informed.

#![allow(unreachable_pub, reason = "in these private modules `pub` marks the interface to the rest of the folder")]

mod api;
mod sequences;

pub(crate) use api::routes;

use crate::config::SeederConfig;
use crate::errors::StateError;
use crate::publisher_keys::PublisherKeys;
use bytes::Bytes;
use sequences::{Reserved, Sequences};
use shoal_net::admission::Admission;
use shoal_peer::clock::unix_ms;
use shoal_peer::feeds::FeedWriteError;
use shoal_peer::handle::{DriverCommand, FeedPublication, NodeHandle, SmallContent};
use shoal_proto::announcement::{Announcement, Kind};
use shoal_proto::codec::Document;
use shoal_proto::feed::{FeedMark, feed_id, is_feed_name};
use shoal_proto::ids::{ContentId, NodeId};
use shoal_proto::limits;
use shoal_proto::locality::Selector;
use shoal_proto::manifest::Manifest;
use shoal_store::ingest::{IngestError, IngestOptions};
use shoal_store::inline_manifest;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinError;

/// Large versions that are ingested at the same time.
const INGESTS_MAX: usize = 2;
/// How long hosts remember a feed after its last version, seconds.
const LIFETIME_S: u64 = 365 * 86_400;
/// How long to wait before looking again whether another publication has reserved sequences.
const RESERVE_WAIT: Duration = Duration::from_millis(1);

/// Why a version is not published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeedError {
    #[error("invalid feed name `{0}`")]
    Name(String),
    #[error("no host of the region matches `{0}`")]
    NoHosts(String),
    #[error("the version has {0} bytes, a feed's version has at most {max}", max = limits::FEED_BYTES_MAX)]
    TooLarge(u64),
    #[error("cannot ingest the version")]
    Ingest(#[from] IngestError),
    #[error("cannot store the version")]
    Store(#[from] StateError),
    #[error("cannot keep the version")]
    Driver(#[source] FeedWriteError),
    #[error("a task of the publication panicked")]
    Task(#[from] JoinError),
}

/// A version's content, before it is announced.
struct PreparedVersion {
    content: ContentId,
    manifest_bytes: u64,
    /// Manifest and data of a version that travels inside its announcement. Otherwise both are in the store.
    small: Option<SmallContent>,
}

/// The feeds of a seeder.
pub(crate) struct Feeds {
    keys: Arc<PublisherKeys>,
    admission: Admission,
    me: NodeId,
    node: NodeHandle,
    options: IngestOptions,
    sequences: Arc<Sequences>,
    ingests: Semaphore,
}

impl Feeds {
    /// Continues from the disk.
    pub(crate) fn open(
        config: &SeederConfig,
        keys: Arc<PublisherKeys>,
        admission: Admission,
        me: NodeId,
        node: NodeHandle,
    ) -> Arc<Self> {
        let (options, sequences) = (config.ingest_options(None), Sequences::open(node.store.clone()));
        Arc::new(Self { keys, admission, me, node, options, sequences, ingests: Semaphore::new(INGESTS_MAX) })
    }

    /// Publishes the next version of a feed and returns its sequence.
    ///
    /// Hosts abandon an older version that is still on its way.
    ///
    /// # Errors
    /// Returns an error if the name, the hosts or the data are not acceptable, or the disk fails.
    pub(crate) async fn publish(
        &self,
        name: &str,
        kind: Kind,
        data: Bytes,
        selector: &Selector,
    ) -> Result<u64, FeedError> {
        self.check(name, &data, selector)?;
        let published_at_ms = unix_ms();
        let sequence = self.next_sequence(name, published_at_ms).await?;
        let size = data.len() as u64;
        let prepared = self.prepare(name, data).await?;
        let announcement = Announcement {
            job: feed_id(name),
            content: prepared.content,
            kind,
            name: name.into(),
            version: sequence.to_string(),
            sequence,
            selector: selector.clone(),
            origin: self.me,
            manifest_bytes: prepared.manifest_bytes,
            size,
            created_at: published_at_ms / 1000,
            expires_at: published_at_ms / 1000 + LIFETIME_S,
            order: None,
            feed: Some(FeedMark { published_at_ms }),
            staged: false,
        };
        let envelope = self.keys.seal(&announcement).map_err(StateError::from)?;
        let (kept, written) = oneshot::channel();
        let publication =
            FeedPublication { envelope, announcement: Arc::new(announcement), small: prepared.small, kept };
        let sent = self.node.commands.send(DriverCommand::PublishFeed(Box::new(publication))).await;
        sent.map_err(|_| StateError::Stopping)?;
        written.await.map_err(|_| StateError::Stopping)?.map_err(FeedError::Driver)?;
        Ok(sequence)
    }

    fn check(&self, name: &str, data: &Bytes, selector: &Selector) -> Result<(), FeedError> {
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
        Ok(())
    }

    async fn prepare(&self, name: &str, data: Bytes) -> Result<PreparedVersion, FeedError> {
        if data.len() as u64 <= limits::INLINE_DATA_BYTES_MAX {
            let manifest = inline_manifest(&data).to_bytes();
            let (content, manifest_bytes) = (Manifest::id(&manifest), manifest.len() as u64);
            return Ok(PreparedVersion {
                content,
                manifest_bytes,
                small: Some(SmallContent { manifest: manifest.into(), data }),
            });
        }
        let _place = self.ingests.acquire().await.map_err(|_| StateError::Stopping)?;
        let (store, options) = (self.node.store.clone(), self.options.clone());
        let former = self.node.feeds.get(name).map(|version| version.content);
        let ingested = tokio::task::spawn_blocking(move || store.ingest_version(&data, &options, former.as_ref()));
        let ingested = ingested.await??;
        Ok(PreparedVersion { content: ingested.content, manifest_bytes: ingested.manifest_bytes, small: None })
    }

    /// Returns the next sequence of a name: the clock, or one more than the last sequence.
    async fn next_sequence(&self, name: &str, now: u64) -> Result<u64, FeedError> {
        loop {
            // Another seeder may have published the name meanwhile.
            let heard = self.node.feeds.announced_sequence(name).unwrap_or(0);
            let Reserved { sequence, reserve_up_to } =
                self.sequences.draw(name, self.admission.trust().epoch(), now, heard).map_err(StateError::from)?;
            let reserving = reserve_up_to.map(|ceiling| {
                let sequences = self.sequences.clone();
                tokio::task::spawn_blocking(move || sequences.reserve(ceiling))
            });
            match (sequence, reserving) {
                // The reservation runs ahead of its use, so the version does not wait for it.
                (Some(sequence), _) => return Ok(sequence),
                (None, Some(reserving)) => reserving.await??,
                (None, None) => tokio::time::sleep(RESERVE_WAIT).await,
            }
        }
    }
}
