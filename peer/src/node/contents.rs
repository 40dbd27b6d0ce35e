//! A content's way here: from its announcement and manifest to the version that is switched in.

use super::Driver;
use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Class, Kind};
use shoal_proto::codec::{Document, decode_exact, encode};
use shoal_proto::ids::{ContentId, HostIndex, JobId, PieceIndex, ShardIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::report::{HostState, Reason};
use shoal_proto::trust::{Envelope, Role};
use shoal_store::{BeginError, Begun, Store};
use shoal_swarm::io::Input;
use std::collections::VecDeque;
use std::sync::Arc;

/// Small contents kept in memory to send along with announcements.
const INLINED_MAX: usize = 64;

/// What an effect that ran elsewhere brought.
pub(super) enum Done {
    /// Nothing to tell.
    Nothing,
    /// Payload to send.
    Read { to: HostIndex, content: ContentId, shard: Option<ShardIndex>, class: Class, read: Result<Bytes, String> },
    /// A manifest was looked at and its space reserved.
    Begun { content: ContentId, from: Option<HostIndex>, begun: Result<Begun, BeginFault> },
    /// A content is durable, or not.
    Finished { content: ContentId, result: Result<(), String> },
    /// A version was switched in, or not.
    Activated { announcement: Arc<Announcement>, result: Result<(), String> },
    /// A small content was read, to be sent along.
    Small { content: ContentId, manifest: Vec<u8>, data: Vec<u8>, then: Option<Arc<Announcement>> },
}

/// Why a content was not begun.
pub(super) enum BeginFault {
    /// The manifest is not the one announced.
    Corrupt,
    /// The content cannot be had here.
    Refused(Reason, String),
}

/// Manifests and data of small contents, newest first.
#[derive(Default)]
pub(super) struct Inlined {
    rows: VecDeque<(ContentId, Vec<u8>, Vec<u8>)>,
}

impl Inlined {
    pub(super) fn get(&self, content: &ContentId) -> Option<(Vec<u8>, Vec<u8>)> {
        let row = self.rows.iter().find(|(id, _, _)| id == content)?;
        Some((row.1.clone(), row.2.clone()))
    }

    fn put(&mut self, content: ContentId, manifest: Vec<u8>, data: Vec<u8>) {
        self.rows.retain(|(id, _, _)| *id != content);
        self.rows.push_front((content, manifest, data));
        self.rows.truncate(INLINED_MAX);
    }
}

impl Driver {
    /// Remembers a job and its signed announcement, on disk too.
    pub(super) fn keep_job(&mut self, announcement: Arc<Announcement>, envelope: Bytes) {
        let job = announcement.job;
        if let Err(error) = self.store.save_job(&job, &envelope) {
            tracing::error!(%job, %error, "cannot keep an announcement");
        }
        self.open_report(&announcement);
        self.envelopes.insert(job, (announcement, envelope));
        self.book.metrics.contents.set(self.envelopes.len() as i64);
    }

    /// Hosts report on jobs that are for them.
    pub(super) fn open_report(&mut self, announcement: &Announcement) {
        let me = self.me.and_then(|me| self.membership.get(me));
        let ours =
            me.is_some_and(|me| me.role == Role::Peer && announcement.selector.matches(&me.locality, &me.labels));
        if ours {
            self.shared.reports().open(announcement.job);
        }
    }

    fn is_reported(&self, job: &JobId) -> bool {
        self.role == Role::Peer && self.shared.reports().all().any(|report| report.job == *job)
    }

    /// Says of all jobs of a content how far this host is.
    fn reach_all(&mut self, content: &ContentId, state: HostState, detail: &str) {
        let jobs: Vec<JobId> = self
            .envelopes
            .values()
            .filter(|(announcement, _)| announcement.content == *content)
            .map(|(announcement, _)| announcement.job)
            .collect();
        for job in jobs {
            self.reach(&job, state, detail);
        }
    }

    fn reach(&mut self, job: &JobId, state: HostState, detail: &str) {
        if self.is_reported(job) {
            self.shared.reports().reach(*job, state, detail);
            self.shared.tell_soon();
        }
    }

    /// A seeder's own publication.
    pub(super) fn publish(&mut self, envelope: &Envelope, announcement: Arc<Announcement>) {
        self.keep_job(announcement.clone(), envelope.to_bytes().into());
        if !Self::is_small(&announcement) {
            self.announce_own(announcement, false);
            return;
        }
        let (store, content) = (self.store.clone(), announcement.content);
        self.done.spawn_blocking(move || match read_small(&store, &content) {
            Some((manifest, data)) => Done::Small { content, manifest, data, then: Some(announcement) },
            None => Done::Nothing,
        });
    }

    fn announce_own(&mut self, announcement: Arc<Announcement>, inline: bool) {
        let content = announcement.content;
        self.tell(Input::Announced { from: None, lane: 0, announcement, inline });
        if let Some(manifest) = self.store.manifest(&content)
            && let Ok(geometry) = manifest.geometry(&content)
        {
            let mut have = geometry.no_pieces();
            (0..geometry.piece_count()).for_each(|piece| {
                have.set(piece);
            });
            self.tell(Input::ContentReady { content, geometry, have });
        }
    }

    /// A small content that came with its announcement. True when it is what was announced.
    pub(super) fn take_inline(&mut self, announcement: &Announcement, manifest: Vec<u8>, data: Vec<u8>) -> bool {
        let content = announcement.content;
        if self.inlined.get(&content).is_some() {
            return true;
        }
        let fits = Manifest::id(&manifest) == content
            && Manifest::from_bytes(&manifest)
                .is_ok_and(|manifest| manifest.size() == data.len() as u64 && pieces_fit(&manifest, &data));
        if !fits {
            self.book.metrics.corrupt.inc();
            return false;
        }
        self.inlined.put(content, manifest.clone(), data.clone());
        let store = self.store.clone();
        self.done.spawn_blocking(move || {
            let begun = store.begin(&manifest).map_err(fault);
            let begun = begun.and_then(|begun| {
                store.fill(&content, &data).map_err(|error| BeginFault::Refused(Reason::Disk, error.to_string()))?;
                let mut have = begun.geometry.no_pieces();
                (0..begun.geometry.piece_count()).for_each(|piece| {
                    have.set(piece);
                });
                Ok(Begun { have, ..begun })
            });
            Done::Begun { content, from: None, begun }
        });
        true
    }

    /// A manifest arrived.
    pub(super) fn begin(&mut self, content: ContentId, manifest: Bytes, from: Option<HostIndex>) {
        let store = self.store.clone();
        self.done.spawn_blocking(move || {
            let begun = if Manifest::id(&manifest) == content {
                store.begin(&manifest).map_err(fault)
            } else {
                Err(BeginFault::Corrupt)
            };
            Done::Begun { content, from, begun }
        });
    }

    pub(super) fn on_done(&mut self, done: Done) {
        match done {
            Done::Nothing => {}
            Done::Read { to, content, shard, class, read } => match read {
                Ok(bytes) => self.send_part(to, content, shard, class, bytes),
                Err(error) => {
                    tracing::warn!(content = %content.short(), %error, "cannot read what should be here");
                    self.tell(Input::Sent { to, content, shard });
                    if let Some(shard) = shard {
                        self.tell(Input::PieceLost { content, shard });
                    }
                }
            },
            Done::Begun { content, from, begun } => self.on_begun(content, from, begun),
            Done::Finished { content, result: Ok(()) } => {
                self.report_progress(&content);
                self.reach_all(&content, HostState::Has, "");
                self.activate_all(content);
            }
            Done::Finished { content, result: Err(error) } => self.disk_failed(content, &error),
            Done::Activated { announcement, result } => self.on_activated(&announcement, result),
            Done::Small { content, manifest, data, then } => {
                self.inlined.put(content, manifest, data);
                if let Some(announcement) = then {
                    self.announce_own(announcement, true);
                }
            }
        }
    }

    fn on_begun(&mut self, content: ContentId, from: Option<HostIndex>, begun: Result<Begun, BeginFault>) {
        match begun {
            Ok(begun) => {
                for evicted in begun.evicted {
                    tracing::info!(content = %evicted.short(), "evicted");
                    self.book.forget(&evicted);
                    self.tell(Input::Removed { content: evicted });
                }
                self.book.received(content, None, begun.reused);
                self.tell(Input::ContentReady { content, geometry: begun.geometry, have: begun.have });
                self.report_progress(&content);
            }
            Err(BeginFault::Corrupt) => {
                if let Some(from) = from {
                    self.tell(Input::ManifestCorrupt { content, from });
                }
            }
            Err(BeginFault::Refused(reason, why)) => self.refuse(content, reason, &why),
        }
    }

    /// This host will not have the content.
    fn refuse(&mut self, content: ContentId, reason: Reason, why: &str) {
        tracing::warn!(content = %content.short(), %reason, %why, "refused a content");
        self.tell(Input::ContentRefused { content });
        self.reach_all(&content, HostState::Failed(reason), why);
    }

    pub(super) fn disk_failed(&mut self, content: ContentId, error: &str) {
        self.refuse(content, Reason::Disk, error);
        let store = self.store.clone();
        self.done.spawn_blocking(move || {
            if let Err(error) = store.remove(&content) {
                tracing::error!(content = %content.short(), %error, "cannot remove a content");
            }
            Done::Nothing
        });
    }

    pub(super) fn abandon(&mut self, content: ContentId) {
        self.reach_all(&content, HostState::Failed(Reason::Superseded), "a newer version came first");
        self.book.forget(&content);
        let store = self.store.clone();
        self.done.spawn_blocking(move || {
            if let Err(error) = store.remove(&content) {
                tracing::error!(content = %content.short(), %error, "cannot remove a content");
            }
            Done::Nothing
        });
    }

    /// An older version than what is switched in is not wanted.
    pub(super) fn refuse_if_stale(&mut self, announcement: &Announcement) {
        let key = (announcement.kind, announcement.name.clone());
        let newest = self.activated.get(&key).copied().unwrap_or(0);
        if announcement.sequence < newest && self.is_reported(&announcement.job) {
            self.tell(Input::ContentRefused { content: announcement.content });
            self.reach(&announcement.job, HostState::Failed(Reason::Stale), "a newer version is active here");
        }
    }

    pub(super) fn complete(&mut self, content: ContentId) {
        if self.role != Role::Peer {
            return;
        }
        let store = self.store.clone();
        self.done.spawn_blocking(move || Done::Finished {
            content,
            result: store.finish(&content).map_err(|error| error.to_string()),
        });
    }

    fn activate_all(&mut self, content: ContentId) {
        let jobs: Vec<Arc<Announcement>> = self
            .envelopes
            .values()
            .filter(|(announcement, _)| announcement.content == content)
            .map(|(announcement, _)| announcement.clone())
            .collect();
        for announcement in jobs {
            if !self.is_reported(&announcement.job) {
                continue;
            }
            let key = (announcement.kind, announcement.name.clone());
            if announcement.sequence < self.activated.get(&key).copied().unwrap_or(0) {
                self.reach(&announcement.job, HostState::Failed(Reason::Stale), "a newer version is active here");
                continue;
            }
            let Some(folder) = self.content_dir.clone() else { continue };
            self.activated.insert(key, announcement.sequence);
            let store = self.store.clone();
            self.done.spawn_blocking(move || {
                let result = folder.activate(&store, &content, &announcement.name, &announcement.version);
                Done::Activated { announcement, result: result.map_err(|error| error.to_string()) }
            });
        }
    }

    fn on_activated(&mut self, announcement: &Announcement, result: Result<(), String>) {
        match result {
            Ok(()) => {
                self.save_activated(announcement);
                tracing::info!(name = announcement.name, version = announcement.version, "active");
                self.reach(&announcement.job, HostState::Active, "");
            }
            Err(why) => {
                tracing::error!(name = announcement.name, version = announcement.version, %why, "cannot activate");
                self.reach(&announcement.job, HostState::Failed(Reason::Activation), &why);
            }
        }
    }

    fn save_activated(&mut self, announcement: &Announcement) {
        let key = format!("active/{}/{}", announcement.kind, announcement.name);
        if let Err(error) = self.store.put_state(&key, Some(encode(&announcement.sequence))) {
            tracing::error!(%error, "cannot keep what is active");
        }
    }

    pub(super) fn load_activated(&mut self) {
        for (key, value) in self.store.scan_state("active/").unwrap_or_default() {
            let Some((kind, name)) = key["active/".len()..].split_once('/') else { continue };
            if let (Ok(kind), Ok(sequence)) = (kind.parse::<Kind>(), decode_exact::<u64>(&value)) {
                self.activated.insert((kind, name.to_string()), sequence);
            }
        }
    }
}

fn fault(error: BeginError) -> BeginFault {
    let reason = match &error {
        BeginError::WouldNotFit { .. } => Reason::NoSpace,
        BeginError::Manifest(_) => Reason::BadManifest,
        BeginError::Io(_) | BeginError::Index(_) => Reason::Disk,
    };
    BeginFault::Refused(reason, error.to_string())
}

fn pieces_fit(manifest: &Manifest, data: &[u8]) -> bool {
    let mut at = 0;
    manifest.lens().enumerate().all(|(piece, len)| {
        let bytes = &data[at..at + len as usize];
        at += len as usize;
        shoal_proto::ids::Hash::of(bytes) == manifest.piece_hash(PieceIndex(piece as u32))
    })
}

fn read_small(store: &Store, content: &ContentId) -> Option<(Vec<u8>, Vec<u8>)> {
    let manifest = store.manifest(content)?;
    let geometry = manifest.geometry(content).ok()?;
    let mut data = Vec::new();
    for piece in (0..geometry.piece_count()).map(PieceIndex) {
        data.extend_from_slice(&store.read(content, geometry.shard_of(piece)).ok()?);
    }
    Some((store.read_manifest(content).ok()?.to_vec(), data))
}
