//! Large versions of feeds: contents in the store whose bytes readers get as a file.
//!
//! Invariant: the version that readers have stays in the store until they have the next one.

use super::Feeds;
use crate::driver::Context;
use crate::driver::blocking_pool::WorkKind;
use crate::driver::completions::Completion;
use crate::driver::contents::{BeginAs, Contents};
use crate::feeds::{FeedData, FeedFiles, FeedVersion, PendingWrite};
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::ids::{ContentId, JobId};
use shoal_store::{FinishError, Store};
use shoal_swarm::io::Input;
use std::fs::File;
use std::io;
use std::sync::Arc;

/// Why readers do not get a large version.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    #[error("the version is not durable")]
    Finish(#[from] FinishError),
    #[error("cannot place the version's file")]
    Io(#[from] io::Error),
    #[error("this node has no readers")]
    NoReaders,
}

impl Feeds {
    /// Begins a large version that the store has already, as after a feed's return to an earlier version.
    pub(super) fn begin_stored(&mut self, cx: &mut Context, contents: &mut Contents, content: ContentId) {
        if cx.progress(&content).total == 0
            && cx.store.is_whole(&content)
            && let Ok(manifest) = cx.store.read_manifest(&content)
        {
            let begin_as = self.begin_as(cx, &content);
            contents.begin(cx, content, manifest, begin_as);
        }
    }

    /// Drops the content of a replaced announcement, unless readers have it. The core drops an incomplete one itself.
    pub(super) fn drop_superseded(&mut self, cx: &mut Context, superseded: Option<Arc<Announcement>>) {
        let Some(former) = superseded.filter(|former| !former.is_small()) else { return };
        let content = former.content;
        let is_shown = self.feeds.get(&former.job).and_then(|feed| feed.shown) == Some(content);
        if !is_shown && !cx.jobs.is_named(&content) && cx.store.manifest(&content).is_some() {
            cx.drop_content(content);
        }
    }

    /// The announcement whose newest feed version a content is.
    pub fn version_of(&self, cx: &Context, content: &ContentId) -> Option<Arc<Announcement>> {
        cx.jobs.of_content(content).find(|announcement| self.feeds.contains_key(&announcement.job)).cloned()
    }

    /// How the store begins a content.
    pub fn begin_as(&self, cx: &Context, content: &ContentId) -> BeginAs {
        match self.version_of(cx, content) {
            Some(announcement) => {
                BeginAs::FeedVersion { former: self.feeds.get(&announcement.job).and_then(|feed| feed.shown) }
            }
            None => BeginAs::Content,
        }
    }

    /// Makes a complete large version's file for readers.
    pub fn place(&self, cx: &mut Context, announcement: Arc<Announcement>) {
        let (store, files) = (cx.store.clone(), self.files.clone());
        cx.pool.run(WorkKind::Activate, Class::from(announcement.kind), move || {
            let result = place(&store, &files, &announcement);
            Completion::FeedPlaced { announcement, result }
        });
    }

    pub fn on_placed(&mut self, cx: &mut Context, announcement: &Announcement, result: Result<Arc<File>, PlaceError>) {
        let (id, content) = (announcement.job, announcement.content);
        let file = match result {
            Ok(file) => file,
            Err(error) => {
                let why = with_source(&error);
                self.latest.on_refused(&announcement.name, announcement.sequence, "disk", why);
                cx.tell(Input::Removed { content });
                // The content failed here, so it stays only if another job needs it.
                if cx.jobs.pushes_of(&content).iter().all(|job| job.job == announcement.job) {
                    cx.drop_content(content);
                }
                return;
            }
        };
        let version = Arc::new(FeedVersion::new(announcement, FeedData::File(file)));
        if !self.latest.publish(&id, version.clone()) {
            self.drop_unnamed(cx, content);
            return;
        }
        self.set_shown(cx, id, content);
        // If a newer version came meanwhile, this announcement is gone, and the newer version goes to the disk later.
        if let Some(job) = cx.jobs.get(&id)
            && job.announcement.sequence == announcement.sequence
        {
            let envelope = job.envelope.clone();
            self.writer.write(id, PendingWrite { version, envelope, manifest: None, done: None });
        }
    }

    /// Notes the large version that readers have, and drops the one before.
    pub(super) fn set_shown(&mut self, cx: &mut Context, feed: JobId, content: ContentId) {
        let Some(feed) = self.feeds.get_mut(&feed) else { return };
        if let Some(former) = feed.shown.replace(content).filter(|former| *former != content) {
            self.drop_unnamed(cx, former);
        }
    }

    /// Drops a content that neither readers nor jobs need.
    pub(super) fn drop_unnamed(&mut self, cx: &mut Context, content: ContentId) {
        let is_shown = self.feeds.values().any(|feed| feed.shown == Some(content));
        if !is_shown && !cx.jobs.is_named(&content) {
            cx.tell(Input::Removed { content });
            cx.drop_content(content);
        }
    }
}

/// Tells the core about a large version that is whole in the store.
pub(super) fn tell_if_whole(cx: &mut Context, content: &ContentId) {
    let geometry = cx.store.manifest(content).and_then(|manifest| manifest.geometry(content).ok());
    let Some(geometry) = geometry.filter(|_| cx.store.is_whole(content)) else { return };
    let have = Bitmap::full(geometry.piece_count());
    cx.tell(Input::ContentReady { content: *content, geometry, have });
}

/// Makes a large version durable and places its file. Blocks.
fn place(store: &Store, files: &FeedFiles, announcement: &Announcement) -> Result<Arc<File>, PlaceError> {
    store.finish_version(&announcement.content)?;
    let stream = store.stream_path(&announcement.content, 0);
    let version = FeedVersion::new(announcement, FeedData::Store);
    files.place(&version, Some(&stream))?.ok_or(PlaceError::NoReaders)
}

/// An error's text with the text of its source.
fn with_source(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}
