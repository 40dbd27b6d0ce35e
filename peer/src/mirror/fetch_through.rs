//! Fetch-through: the mirror requests an image that the host lacks from the region's seeder, through the tracker.
//!
//! Invariant: at any time at most one request for one image is under way, and a client waits at most `mirror.max_wait`.

use super::request::ManifestReference;
use crate::arrivals::Arrivals;
use crate::images::{Images, RepositoryName};
use shoal_net::control::ControlHandle;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::image::{Digest, Reference};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

/// Images whose last request is remembered.
const REQUESTS_MAX: usize = 256;
/// Time after a promise within which the image is not requested again.
const PROMISE_VALID_FOR: Duration = Duration::from_secs(30);
/// Time after a refusal within which the image is not requested again.
const REFUSAL_VALID_FOR: Duration = Duration::from_secs(10);

/// The last request for an image.
#[derive(Clone, Copy, Debug)]
struct LastRequest {
    /// True while the request is under way, and after the seeder accepted it.
    promised: bool,
    valid_until: Instant,
}

/// Who makes the next request for an image.
enum Turn {
    /// The caller.
    Ours,
    /// A request was made recently. The image may arrive if it was promised.
    Taken { promised: bool },
}

/// Requests images from the region's seeder.
pub struct FetchThrough {
    control: ControlHandle,
    tracker: watch::Receiver<Option<NodeId>>,
    requests: Mutex<BTreeMap<String, LastRequest>>,
}

impl FetchThrough {
    /// Returns a client that sends its requests to the tracker in use.
    pub fn new(control: ControlHandle, tracker: watch::Receiver<Option<NodeId>>) -> Self {
        Self { control, tracker, requests: Mutex::default() }
    }

    fn requests(&self) -> MutexGuard<'_, BTreeMap<String, LastRequest>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_turn(&self, reference: &str) -> Turn {
        let now = Instant::now();
        let mut requests = self.requests();
        requests.retain(|_, request| request.valid_until > now);
        if let Some(request) = requests.get(reference) {
            return Turn::Taken { promised: request.promised };
        }
        if requests.len() >= REQUESTS_MAX {
            return Turn::Taken { promised: false };
        }
        // Other clients wait for the answer to this request, so it counts as promised meanwhile.
        let request = LastRequest { promised: true, valid_until: now + PROMISE_VALID_FOR };
        requests.insert(reference.to_string(), request);
        Turn::Ours
    }

    /// Requests an image unless a recent request exists. Returns whether the image may arrive.
    async fn request(&self, reference: &str, max_wait: Duration) -> bool {
        if let Turn::Taken { promised } = self.take_turn(reference) {
            return promised;
        }
        let tracker = *self.tracker.borrow();
        let Some(tracker) = tracker else { return self.on_refusal(reference, "no tracker can be reached") };
        let want = Request::WantImage { reference: reference.to_string(), host: None };
        match timeout(max_wait, self.control.request(tracker, want)).await {
            Ok(Ok(Response::Done)) => true,
            Ok(Ok(Response::Refused { why })) => self.on_refusal(reference, &why),
            Ok(Ok(_)) => self.on_refusal(reference, "the tracker sent an unexpected answer"),
            Ok(Err(error)) => self.on_refusal(reference, &error.to_string()),
            Err(_) => self.on_refusal(reference, "the tracker did not answer in time"),
        }
    }

    fn on_refusal(&self, reference: &str, reason: &str) -> bool {
        tracing::debug!(%reference, %reason, "the region does not fetch an image");
        let refusal = LastRequest { promised: false, valid_until: Instant::now() + REFUSAL_VALID_FOR };
        self.requests().insert(reference.to_string(), refusal);
        false
    }

    /// Requests an image and waits at most `max_wait` for its manifest. Returns the digest of the image's root.
    pub(super) async fn fetch(
        &self,
        images: &Images,
        arrivals: &Arrivals,
        name: &RepositoryName,
        wanted: &ManifestReference,
        max_wait: Duration,
    ) -> Option<Digest> {
        let until = Instant::now() + max_wait;
        let (tag, digest) = match wanted {
            ManifestReference::Tag(tag) => (Some(tag.clone()), None),
            ManifestReference::Digest(digest) => (None, Some(*digest)),
        };
        let reference = Reference { host: name.registry.clone()?, path: name.path.clone(), tag, digest };
        // Created before the first look, so that no manifest is missed.
        let mut begun = arrivals.of_begun_contents();
        if !self.request(&reference.to_string(), max_wait).await {
            return None;
        }
        loop {
            if let Some(digest) = wanted.resolve(images, name) {
                return Some(digest);
            }
            timeout_at(until, begun.changed()).await.ok()?.ok()?;
        }
    }
}

impl ManifestReference {
    /// Returns the digest if the store has the manifest's blob, whole or arriving.
    pub(super) fn resolve(&self, images: &Images, name: &RepositoryName) -> Option<Digest> {
        let digest = match self {
            Self::Tag(tag) => images.root_of_tag(name, tag),
            Self::Digest(digest) => Some(*digest),
        };
        digest.filter(|digest| images.blob(digest).is_some())
    }
}
