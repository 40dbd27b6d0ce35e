//! Names and their versions: sequences, newest contents, and which contents the store must keep.
//!
//! Invariant: the newest content of a name and every content that hosts still fetch are pinned.

use super::Jobs;
use crate::errors::StateError;
use shoal_api::jobs::JobPhase;
use shoal_peer::clock::unix_ms;
use shoal_proto::announcement::Kind;
use shoal_proto::codec::{decode_exact, encode};
use shoal_proto::ids::ContentId;
use shoal_proto::sequence;
use std::collections::{BTreeMap, BTreeSet};

/// A name that has versions. Of images, the repository without the tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionedName {
    pub(crate) kind: Kind,
    pub(crate) name: String,
}

impl Jobs {
    /// Returns the newest content of each name.
    ///
    /// Each tag of an image is a name of its own. Of a repository only the newest push counts here, because otherwise
    /// the seeder would keep every tag for ever.
    pub(crate) fn newest_contents(&self) -> BTreeMap<VersionedName, ContentId> {
        /// Compared by sequence first.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        struct Newest {
            sequence: u64,
            content: ContentId,
        }
        let mut newest: BTreeMap<VersionedName, Newest> = BTreeMap::new();
        for row in self.rows().values() {
            let Some(announcement) = row.announcement() else { continue };
            if announcement.demotes() {
                continue;
            }
            let name = match announcement.kind {
                Kind::Image => announcement.name.rsplit_once('/').map_or(&*announcement.name, |(name, _)| name).into(),
                _ => announcement.name,
            };
            let found = Newest { sequence: announcement.sequence, content: announcement.content };
            let newest = newest.entry(VersionedName { kind: announcement.kind, name }).or_insert(found);
            *newest = found.max(*newest);
        }
        newest.into_iter().map(|(name, newest)| (name, newest.content)).collect()
    }

    /// Returns the average piece length of a name's newest content. Versions that are cut alike share pieces.
    pub(crate) fn average_piece_bytes(&self, kind: Kind, name: &str) -> Option<u32> {
        let content = self.newest_contents().remove(&VersionedName { kind, name: name.to_string() })?;
        Some(self.node.store.manifest(&content)?.piece_bytes_avg)
    }

    /// Pins the contents that must stay, and allows the eviction of the others.
    ///
    /// # Errors
    /// Returns an error if the disk fails.
    pub(crate) fn pin_needed(&self) -> Result<(), StateError> {
        let mut needed: BTreeSet<ContentId> = self.newest_contents().into_values().collect();
        let mut known = needed.clone();
        for row in self.rows().values() {
            known.extend(row.status.content);
            if row.status.phase == JobPhase::Distributing {
                needed.extend(row.status.content);
            }
        }
        for content in known {
            self.node.store.pin(&content, needed.contains(&content))?;
        }
        Ok(())
    }

    /// Draws the next sequence of a name: the clock in the present trust epoch, or one more than the last sequence.
    ///
    /// Sequences grow across restarts, and across seeders whose clocks agree.
    ///
    /// # Errors
    /// Returns an error if the disk fails, or hosts would refuse the sequence.
    pub(crate) fn next_sequence(&self, kind: Kind, name: &str) -> Result<u64, StateError> {
        let key = format!("sequence/{kind}/{name}");
        let store = &self.node.store;
        let last = store.get_state(&key)?.and_then(|bytes| decode_exact::<u64>(&bytes).ok()).unwrap_or(0);
        let next = sequence::next(self.admission.trust().epoch(), unix_ms(), last)?;
        store.put_state(&key, Some(encode(&next)))?;
        Ok(next)
    }
}
