//! The manifests that clients requested from the mirror recently.
//!
//! The prewarm task uses this list to notice that containerd pulled an image without the mirror.
//! Invariant: the list holds at most [`REMEMBERED_MAX`] digests, the most recent first.

use shoal_proto::image::Digest;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

/// Digests in the list. The oldest one goes when another comes.
const REMEMBERED_MAX: usize = 256;

/// Digests of recently requested manifests, shared by the mirror and the prewarm task.
#[derive(Debug, Default)]
pub(crate) struct RecentPulls {
    digests: Mutex<VecDeque<Digest>>,
}

impl RecentPulls {
    /// Records that a client requested this manifest.
    pub(crate) fn record(&self, digest: Digest) {
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        digests.retain(|known| *known != digest);
        digests.push_front(digest);
        digests.truncate(REMEMBERED_MAX);
    }

    /// Whether a client requested this manifest recently.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recent_requests_are_remembered_for_a_while() {
        let pulls = RecentPulls::default();
        let digest = |n: usize| Digest([(n % 256) as u8; 32].map(|b| b ^ (n / 256) as u8));
        pulls.record(digest(0));
        assert!(pulls.contains(&digest(0)) && !pulls.contains(&digest(1)));
        (1..=REMEMBERED_MAX).for_each(|n| {
            let mut other = digest(n);
            other.0[0] = 0xaa;
            other.0[1] = n as u8;
            other.0[2] = (n >> 8) as u8;
            pulls.record(other);
        });
        assert!(!pulls.contains(&digest(0)));
    }
}
