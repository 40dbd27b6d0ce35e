//! A content's way into the store: from its manifest to a durable whole.
//!
//! Invariant: at most one begin of a content runs at a time.

use super::Context;
use super::blocking_pool::WorkKind;
use super::completions::Completion;
use crate::handle::{Failure, SmallContent};
use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, HostIndex, PieceIndex};
use shoal_proto::manifest::Manifest;
use shoal_proto::report::Reason;
use shoal_store::{BeginError, Begun, Store};
use shoal_swarm::io::Input;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Small contents in memory.
const SMALL_CONTENTS_MAX: usize = 64;

/// Manifests and data of small contents, newest first. They travel inside announcements.
#[derive(Default)]
struct SmallContents {
    rows: VecDeque<(ContentId, SmallContent)>,
}

impl SmallContents {
    fn get(&self, content: &ContentId) -> Option<&SmallContent> {
        self.rows.iter().find(|(id, _)| id == content).map(|(_, small)| small)
    }

    fn forget(&mut self, content: &ContentId) {
        self.rows.retain(|(id, _)| id != content);
    }

    fn insert(&mut self, content: ContentId, small: SmallContent) {
        self.forget(&content);
        self.rows.push_front((content, small));
        self.rows.truncate(SMALL_CONTENTS_MAX);
    }
}

/// How the store begins a content.
#[derive(Clone, Copy)]
pub enum BeginAs {
    Content,
    /// The next version of a feed. The store copies pieces from `former`, which readers have.
    FeedVersion {
        former: Option<ContentId>,
    },
}

/// Contents that the store is about to begin, and small contents in memory.
#[derive(Default)]
pub struct Contents {
    small: SmallContents,
    /// Contents whose begin runs, with their manifests once these are checked.
    beginning: HashMap<ContentId, Option<Bytes>>,
}

impl Contents {
    /// Notes the begin of a content. Returns false if one runs already.
    fn note_begin(&mut self, content: ContentId, manifest: Option<Bytes>) -> bool {
        let is_new = !self.beginning.contains_key(&content);
        if is_new {
            self.beginning.insert(content, manifest);
        }
        is_new
    }

    pub fn is_beginning(&self, content: &ContentId) -> bool {
        self.beginning.contains_key(content)
    }

    /// The checked manifest of a content whose begin runs.
    pub fn beginning_manifest(&self, content: &ContentId) -> Option<&Bytes> {
        self.beginning.get(content)?.as_ref()
    }

    pub fn small(&self, content: &ContentId) -> Option<&SmallContent> {
        self.small.get(content)
    }

    pub fn forget_small(&mut self, content: &ContentId) {
        self.small.forget(content);
    }

    /// Reads a seeder's own small content for its announcement. Other hosts receive its data inside the announcement.
    pub fn read_small(cx: &mut Context, announcement: Arc<Announcement>) {
        let store = cx.store.clone();
        cx.pool.run(WorkKind::Read, Class::from(announcement.kind), move || {
            let small = read_small(&store, &announcement.content);
            Completion::SmallContentRead { announcement, small }
        });
    }

    /// Keeps a small content for its announcement. Returns whether there is one.
    pub fn on_small_read(&mut self, content: ContentId, small: Option<SmallContent>) -> bool {
        let is_here = small.is_some();
        if let Some(small) = small {
            self.small.insert(content, small);
        }
        is_here
    }

    /// Stores a small content that came inside its announcement.
    ///
    /// Returns true if the data is correct and will be in the store.
    pub fn take_inline(&mut self, cx: &mut Context, announcement: &Announcement, small: SmallContent) -> bool {
        let content = announcement.content;
        if cx.store.manifest(&content).is_some() && self.small.get(&content).is_some() {
            return true;
        }
        if !small.is_content(&content) {
            cx.accounting.count(super::accounting::Event::ShardCorrupt);
            return false;
        }
        if !self.note_begin(content, Some(small.manifest.clone())) {
            return false;
        }
        self.small.insert(content, small.clone());
        let store = cx.store.clone();
        cx.pool.run(WorkKind::Store, Class::from(announcement.kind), move || {
            let begun = store.begin(&small.manifest).map_err(begin_failure).and_then(|begun| {
                let written = store.write_all_pieces(&content, &small.data);
                written.map_err(|error| Failure::new(Reason::Disk, error))?;
                Ok(Begun { have: Bitmap::full(begun.geometry.piece_count()), ..begun })
            });
            Completion::Begun { content, begun }
        });
        true
    }

    /// Checks a received manifest's hash, unless the content's begin runs already.
    pub fn on_manifest(&mut self, cx: &mut Context, content: ContentId, manifest: Bytes, from: HostIndex) {
        if self.note_begin(content, None) {
            let class = cx.jobs.class_of(&content);
            cx.pool.run(WorkKind::Store, class, move || {
                let manifest = (Manifest::id(&manifest) == content).then_some(manifest);
                Completion::ManifestHashed { content, from, manifest }
            });
        }
    }

    /// Begins a content after its manifest's check, which returns `None` for a wrong hash.
    ///
    /// The core may pass the manifest on before the begin. Space and local deduplication take a while, and would
    /// otherwise delay each level of the trees.
    pub fn on_manifest_hashed(
        &mut self,
        cx: &mut Context,
        content: ContentId,
        from: HostIndex,
        manifest: Option<Bytes>,
        begin_as: BeginAs,
    ) {
        match manifest {
            Some(manifest) => {
                self.beginning.insert(content, Some(manifest.clone()));
                cx.tell(Input::ManifestVerified { content });
                run_begin(cx, content, manifest, begin_as);
            }
            None => {
                self.beginning.remove(&content);
                cx.tell(Input::ManifestCorrupt { content, from });
            }
        }
    }

    /// Begins a content whose manifest is in the store.
    pub fn begin(&mut self, cx: &mut Context, content: ContentId, manifest: Bytes, begin_as: BeginAs) {
        if self.note_begin(content, Some(manifest.clone())) {
            run_begin(cx, content, manifest, begin_as);
        }
    }

    /// Tells the core that the store has begun a content. Returns why the store refused it.
    pub fn on_begun(
        &mut self,
        cx: &mut Context,
        content: ContentId,
        begun: Result<Begun, Failure>,
    ) -> Result<(), Failure> {
        self.beginning.remove(&content);
        let begun = begun?;
        cx.arrivals.on_begun(&content);
        cx.forget_evicted(begun.evicted);
        cx.accounting.received(content, None, begun.reused);
        cx.tell(Input::ContentReady { content, geometry: begun.geometry, have: begun.have });
        if cx.core.as_ref().is_some_and(|core| core.progress(&content).is_none()) {
            // A newer version superseded it while the begin ran.
            cx.drop_content(content);
        } else {
            cx.report_progress(&content);
        }
        Ok(())
    }
}

fn run_begin(cx: &mut Context, content: ContentId, manifest: Bytes, begin_as: BeginAs) {
    let (store, class) = (cx.store.clone(), cx.jobs.class_of(&content));
    cx.pool.run(WorkKind::Store, class, move || {
        let begun = match begin_as {
            BeginAs::FeedVersion { former } => store.begin_version(&manifest, former),
            BeginAs::Content => store.begin(&manifest),
        };
        Completion::Begun { content, begun: begun.map_err(begin_failure) }
    });
}

pub fn begin_failure(error: BeginError) -> Failure {
    let reason = match &error {
        BeginError::WouldNotFit { .. } => Reason::NoSpace,
        BeginError::Manifest(_) => Reason::BadManifest,
        BeginError::Io(_) | BeginError::Database(_) => Reason::Disk,
    };
    Failure::new(reason, error)
}

/// Reads a small content. `None` if it is not complete.
fn read_small(store: &Store, content: &ContentId) -> Option<SmallContent> {
    let manifest = store.manifest(content)?;
    let geometry = manifest.geometry(content).ok()?;
    let mut data = Vec::new();
    for piece in (0..geometry.piece_count()).map(PieceIndex) {
        data.extend_from_slice(&store.read(content, geometry.shard_of(piece)).ok()?);
    }
    Some(SmallContent { manifest: store.read_manifest(content).ok()?, data: data.into() })
}
