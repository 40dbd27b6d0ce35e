//! What every part of the store shares: the table of contents, the database, the shard cache, the space accounts.
//!
//! Each part adds its operations as methods of [`Inner`], and [`crate::Store`] is the public face of them.
//! Invariant: a thread that takes several of these mutexes takes them in the order in which they stand here.

use crate::blob_places::BlobPlaces;
use crate::config::{EventSink, StoreConfig, StoreEvent};
use crate::content::Content;
use crate::errors::OpenError;
use crate::layout::{FileExtent, OpenFiles};
use crate::lock::lock;
use crate::shard_cache::ShardCache;
use crate::tables::Tables;
use shoal_kv::KvError;
use shoal_proto::codec::encode;
use shoal_proto::ids::ContentId;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// The state of an open store.
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    pub(crate) tables: Tables,
    pub(crate) cache: ShardCache,
    pub(crate) opened: Arc<OpenFiles>,
    /// Held while an ingest becomes a content, so that two ingests of one content do not meet.
    pub(crate) adopting: Mutex<()>,
    /// Bytes reserved for contents that are not counted yet.
    pub(crate) reserved: Mutex<u64>,
    /// The contents by id. Private, so that an entry is changed only through the methods below.
    contents: Mutex<BTreeMap<ContentId, Arc<Content>>>,
    pub(crate) blobs: Mutex<BlobPlaces>,
    /// Files that contents being begun share with others. Their bytes are counted already.
    pub(crate) linked: Mutex<Vec<FileExtent>>,
    sink: EventSink,
    attempts: AtomicU64,
}

impl Inner {
    /// Opens the folder and finds its contents. The store hashes what an interrupted fetch left.
    pub(crate) fn open(config: StoreConfig, sink: EventSink) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { dir: config.dir.clone(), source };
        let folder = config.dir.join("contents");
        fs::create_dir_all(&folder).map_err(io)?;
        let tables = Tables::open(&config.dir)?;
        let opened = Arc::new(OpenFiles::new(config.direct_io));
        let mut contents = BTreeMap::new();
        for item in fs::read_dir(&folder).map_err(io)? {
            let path = item.map_err(io)?.path();
            match Content::load(&path, &tables, &opened) {
                Ok(Some(content)) => {
                    contents.insert(content.id, Arc::new(content));
                }
                Ok(None) => {
                    tracing::info!(path = %path.display(), "removed the remains of an interrupted start");
                    fs::remove_dir_all(&path).map_err(io)?;
                }
                // The content may be whole, so an operator decides about it.
                Err(error) => tracing::error!(path = %path.display(), %error, "cannot open a content; left it alone"),
            }
        }
        Ok(Self {
            cache: ShardCache::new(config.cache_bytes, config.unwritten_bytes),
            config,
            tables,
            opened,
            adopting: Mutex::default(),
            reserved: Mutex::default(),
            blobs: Mutex::new(BlobPlaces::of(contents.values())),
            contents: Mutex::new(contents),
            linked: Mutex::default(),
            sink,
            attempts: AtomicU64::new(0),
        })
    }

    /// Reports an event on the calling thread.
    pub(crate) fn report(&self, event: StoreEvent) {
        (self.sink)(event);
    }

    pub(crate) fn content(&self, id: &ContentId) -> Option<Arc<Content>> {
        lock(&self.contents).get(id).cloned()
    }

    /// Returns the contents in the order of their ids.
    pub(crate) fn contents(&self) -> Vec<Arc<Content>> {
        lock(&self.contents).values().cloned().collect()
    }

    pub(crate) fn content_count(&self) -> usize {
        lock(&self.contents).len()
    }

    pub(crate) fn insert_content(&self, content: Arc<Content>) {
        lock(&self.contents).insert(content.id, content);
    }

    pub(crate) fn take_content(&self, id: &ContentId) -> Option<Arc<Content>> {
        lock(&self.contents).remove(id)
    }

    /// Returns the folder of a content, whether it exists or not.
    pub(crate) fn folder(&self, id: &ContentId) -> PathBuf {
        self.config.dir.join("contents").join(id.to_string())
    }

    /// Returns a new folder name for an ingest. It lies on the store's disk, so that a rename moves it to its place.
    pub(crate) fn new_ingest_folder(&self) -> PathBuf {
        let attempt = self.attempts.fetch_add(1, Ordering::Relaxed);
        self.config.dir.join("contents").join(format!("ingest-{attempt}"))
    }

    /// Writes a content's state to the database.
    pub(crate) fn save_state(&self, content: &Content) -> Result<(), KvError> {
        self.tables.contents.put(content.id.0, encode(&content.state()))
    }
}
