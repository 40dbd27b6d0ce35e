//! Signals to tasks that wait for data of a content.
//!
//! The store reports verified shards, the driver reports begun and removed contents, and the mirror waits for both.
//! Invariant: a receiver that is created before a look at the store misses no arrival after that look.

use shoal_proto::ids::ContentId;
use shoal_store::StoreEvent;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The signals of one node. Clones share them.
#[derive(Clone, Default)]
pub struct Arrivals {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Contents with a receiver. A sender without receivers is removed at its next signal.
    watched: Mutex<HashMap<ContentId, watch::Sender<()>>>,
    begun: watch::Sender<()>,
}

impl Arrivals {
    fn watched(&self) -> MutexGuard<'_, HashMap<ContentId, watch::Sender<()>>> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a receiver that changes whenever data of this content arrives or the content is removed.
    pub fn of_content(&self, content: ContentId) -> watch::Receiver<()> {
        self.watched().entry(content).or_default().subscribe()
    }

    /// Returns a receiver that changes whenever this host begins any content.
    pub fn of_begun_contents(&self) -> watch::Receiver<()> {
        self.inner.begun.subscribe()
    }

    /// The store verified, rebuilt or lost a shard. Called by the store's threads.
    pub fn on_store_event(&self, event: &StoreEvent) {
        match event {
            StoreEvent::Verified { content, .. } | StoreEvent::Rebuilt { content, .. } => self.on_change(content),
            _ => {}
        }
    }

    /// The manifest of a content is in the store, perhaps with pieces of other contents.
    pub fn on_begun(&self, content: &ContentId) {
        self.inner.begun.send_replace(());
        self.on_change(content);
    }

    /// A content's data changed. Removal counts as a change.
    pub fn on_change(&self, content: &ContentId) {
        let mut watched = self.watched();
        // `send` fails when the last receiver is gone.
        if watched.get(content).is_some_and(|sender| sender.send(()).is_err()) {
            watched.remove(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn receivers_see_arrivals_and_leave_nothing_behind() {
        let (arrivals, content) = (Arrivals::default(), ContentId([1; 32]));
        let (mut data, mut begun) = (arrivals.of_content(content), arrivals.of_begun_contents());
        arrivals.on_change(&ContentId([2; 32]));
        assert!(!data.has_changed().unwrap() && !begun.has_changed().unwrap());
        arrivals.on_begun(&content);
        begun.changed().await.unwrap();
        data.changed().await.unwrap();
        drop(data);
        arrivals.on_change(&content);
        assert!(arrivals.watched().is_empty());
    }
}
