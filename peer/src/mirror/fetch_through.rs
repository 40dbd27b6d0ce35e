//! Images that are not here: asked of the region's seeder, by way of the tracker, and waited for a little.
//!
//! Invariant: an image is asked for once at a time, whoever pulls it here, and nobody waits longer than the budget.

use super::Mirror;
use super::request::By;
use crate::images::RepositoryName;
use shoal_net::control::ControlHandle;
use shoal_proto::control::{Request, Response};
use shoal_proto::ids::NodeId;
use shoal_proto::image::{Digest, Reference};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Images whose asking is remembered.
const FLIGHTS_MAX: usize = 256;
/// An image that was promised is not asked for again for this long.
const PROMISED_FOR: Duration = Duration::from_secs(30);
/// Nor one that was refused.
const REFUSED_FOR: Duration = Duration::from_secs(10);
/// How often what was promised is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What became of a question, and until when that holds.
#[derive(Clone, Copy, Debug)]
struct Flight {
    promised: bool,
    until: Instant,
}

/// Asks the region for images.
pub struct FetchThrough {
    control: ControlHandle,
    tracker: watch::Receiver<Option<NodeId>>,
    flights: Mutex<BTreeMap<String, Flight>>,
}

impl FetchThrough {
    /// By way of the tracker in use.
    pub fn new(control: ControlHandle, tracker: watch::Receiver<Option<NodeId>>) -> Self {
        Self { control, tracker, flights: Mutex::default() }
    }

    fn flights(&self) -> MutexGuard<'_, BTreeMap<String, Flight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the turn to ask for an image; `Err` says whether it was promised to somebody before.
    fn take_turn(&self, reference: &str) -> Result<(), bool> {
        let now = Instant::now();
        let mut flights = self.flights();
        flights.retain(|_, flight| flight.until > now);
        if let Some(flight) = flights.get(reference) {
            return Err(flight.promised);
        }
        if flights.len() >= FLIGHTS_MAX {
            return Err(false);
        }
        // Promised until the answer says otherwise: others wait for the same.
        flights.insert(reference.to_string(), Flight { promised: true, until: now + PROMISED_FOR });
        Ok(())
    }

    /// Whether the image may come.
    async fn ask(&self, reference: &str, budget: Duration) -> bool {
        if let Err(promised) = self.take_turn(reference) {
            return promised;
        }
        let tracker = *self.tracker.borrow();
        let want = Request::WantImage { reference: reference.to_string(), host: None };
        let answer = match tracker {
            Some(tracker) => tokio::time::timeout(budget, self.control.request(tracker, want)).await,
            None => return self.refused(reference, "no tracker can be reached"),
        };
        match answer {
            Ok(Ok(Response::Done)) => true,
            Ok(Ok(Response::Refused { why })) => self.refused(reference, &why),
            Ok(Ok(_)) => self.refused(reference, "no proper answer"),
            Ok(Err(error)) => self.refused(reference, &error.to_string()),
            Err(_) => self.refused(reference, "no answer in time"),
        }
    }

    fn refused(&self, reference: &str, why: &str) -> bool {
        tracing::debug!(%reference, %why, "an image is not fetched for the region");
        let flight = Flight { promised: false, until: Instant::now() + REFUSED_FOR };
        self.flights().insert(reference.to_string(), flight);
        false
    }
}

impl Mirror {
    /// Has an image brought here and waits for its manifest to be on the way, within the budget.
    pub(super) async fn fetch(&self, name: &RepositoryName, by: &By) -> Option<Digest> {
        let fetcher = self.fetcher.as_ref()?;
        let until = Instant::now() + self.budget;
        let (tag, digest) = match by {
            By::Tag(tag) => (Some(tag.clone()), None),
            By::Digest(digest) => (None, Some(*digest)),
        };
        let reference = Reference { host: name.registry.clone()?, path: name.path.clone(), tag, digest };
        if !fetcher.ask(&reference.to_string(), self.budget).await {
            return None;
        }
        loop {
            let found = match by {
                By::Tag(tag) => self.images.tagged(name, tag),
                By::Digest(digest) => Some(*digest),
            };
            if let Some(digest) = found.filter(|digest| self.images.blob(digest).is_some()) {
                return Some(digest);
            }
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
