//! How other tasks reach the driver: a channel of commands, and the state that the driver shares with readers.
//!
//! The HTTP API, the mirror, the prewarm task and the seeder use this module without the driver itself.
//! Invariant: a [`NodeHandle`] never touches the core. Every command travels through one bounded channel to the driver.

use crate::arrivals::Arrivals;
use crate::feeds::{FeedWriteError, LatestVersions};
use crate::tracker_client::SharedReports;
use bytes::Bytes;
use shoal_api::contents::ContentStatus;
use shoal_api::rollouts::PeerRollout;
use shoal_proto::announcement::Announcement;
use shoal_proto::codec::Document;
use shoal_proto::ids::{ContentId, Hash, JobId, PieceIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::report::{HostReport, Reason};
use shoal_proto::trust::Envelope;
use shoal_store::Store;
use shoal_swarm::membership::Membership;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Manifest and data of a content that travels inside its announcement.
#[derive(Clone, Debug)]
pub struct SmallContent {
    /// The encoded manifest.
    pub manifest: Bytes,
    /// All pieces in order.
    pub data: Bytes,
}

impl SmallContent {
    /// Whether the hashes of manifest and data are those of `content`.
    pub fn is_content(&self, content: &ContentId) -> bool {
        if Manifest::id(&self.manifest) != *content {
            return false;
        }
        let Ok(manifest) = Manifest::from_bytes(&self.manifest) else { return false };
        let mut rest = &self.data[..];
        let is_intact = (0..).zip(manifest.lens()).all(|(piece, len)| {
            let Some((bytes, after)) = rest.split_at_checked(len as usize) else { return false };
            rest = after;
            Hash::of(bytes) == manifest.piece_hash(PieceIndex(piece))
        });
        is_intact && rest.is_empty()
    }
}

/// A seeder's own next version of a feed.
#[derive(Debug)]
pub struct FeedPublication {
    /// The signed announcement.
    pub envelope: Envelope,
    /// The announcement inside `envelope`.
    pub announcement: Arc<Announcement>,
    /// Manifest and data of a small version. A large version is in the store already.
    pub small: Option<SmallContent>,
    /// Receives the result once the version is durable.
    pub kept: oneshot::Sender<Result<(), FeedWriteError>>,
}

/// Why a host cannot do what a job asks, in the form of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The category that reports and the CLI count by.
    pub reason: Reason,
    /// The sentence for the operator.
    pub detail: String,
}

impl Failure {
    /// A failure with the text of `detail`.
    pub fn new(reason: Reason, detail: impl fmt::Display) -> Self {
        Self { reason, detail: detail.to_string() }
    }
}

/// What became of a host's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prewarmed {
    /// containerd has it unpacked and pinned.
    Unpacked,
    /// containerd cannot unpack it to a file system, so the host only keeps it.
    Kept {
        /// Why, for the operator.
        why: String,
    },
}

/// An order or a question to the driver.
#[derive(Debug)]
#[allow(missing_docs, reason = "the variants' docs say what their fields are for")]
pub enum DriverCommand {
    /// A seeder ingested a content and signed its announcement.
    Publish { envelope: Envelope, announcement: Arc<Announcement> },
    /// A seeder signed the next version of a feed.
    PublishFeed(Box<FeedPublication>),
    /// Asks for the state of every content of a job.
    Contents(oneshot::Sender<Vec<ContentStatus>>),
    /// Asks for the payload bytes of a job's content that this host sent since the job began.
    Sent(JobId, oneshot::Sender<u64>),
    /// Asks for the state of every name under a desired state.
    Rollouts(oneshot::Sender<Vec<PeerRollout>>),
    /// Asks for a sign of life.
    Ping(oneshot::Sender<()>),
    /// The prewarm task finished a job's image.
    ImagePrewarmed { job: JobId, outcome: Result<Prewarmed, Failure> },
}

/// The way to a node's driver. Clones reach the same driver.
#[derive(Clone)]
pub struct NodeHandle {
    /// Orders and questions.
    pub commands: mpsc::Sender<DriverCommand>,
    /// The membership. The driver publishes every change.
    pub membership: watch::Receiver<Arc<Membership>>,
    /// This host's reports.
    pub shared: Arc<SharedReports>,
    /// The node's store.
    pub store: Store,
    /// The newest versions of feeds.
    pub feeds: LatestVersions,
    /// Signals for tasks that wait for data of a content.
    pub arrivals: Arrivals,
}

impl NodeHandle {
    /// Sends a question with a place for its answer. Returns `None` once the driver has stopped.
    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> DriverCommand) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(question(reply)).await.ok()?;
        answer.await.ok()
    }

    /// The state of every content of a job. Empty once the driver has stopped.
    pub async fn contents(&self) -> Vec<ContentStatus> {
        self.ask(DriverCommand::Contents).await.unwrap_or_default()
    }

    /// Payload bytes of a job's content that this host sent since the job began.
    pub async fn sent(&self, job: JobId) -> u64 {
        self.ask(|reply| DriverCommand::Sent(job, reply)).await.unwrap_or_default()
    }

    /// The state of every name under a desired state. Empty once the driver has stopped.
    pub async fn rollouts(&self) -> Vec<PeerRollout> {
        self.ask(DriverCommand::Rollouts).await.unwrap_or_default()
    }

    /// Waits until the driver has handled a ping. Returns false once the driver has stopped.
    pub async fn is_alive(&self) -> bool {
        self.ask(DriverCommand::Ping).await.is_some()
    }

    /// This host's own reports.
    pub fn reports(&self) -> Vec<HostReport> {
        self.shared.reports().all().cloned().collect()
    }
}
