//! The jobs that this host knows: their signed announcements, by job and by content.
//!
//! A feed's newest announcement is in the table under the feed's id.
//! Invariant: the index by content names exactly the jobs of the table.

use bytes::Bytes;
use shoal_proto::announcement::{Announcement, Class};
use shoal_proto::ids::{ContentId, JobId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// One job: its announcement and the signed envelope that other hosts receive.
pub struct Job {
    pub announcement: Arc<Announcement>,
    pub envelope: Bytes,
}

/// All known jobs.
#[derive(Default)]
pub struct JobTable {
    jobs: BTreeMap<JobId, Job>,
    by_content: HashMap<ContentId, BTreeSet<JobId>>,
}

impl JobTable {
    /// Adds a job. Returns the former announcement, which a feed's next version replaces.
    pub fn insert(&mut self, announcement: Arc<Announcement>, envelope: Bytes) -> Option<Arc<Announcement>> {
        let (id, content) = (announcement.job, announcement.content);
        let former = self.remove(&id);
        self.by_content.entry(content).or_default().insert(id);
        self.jobs.insert(id, Job { announcement, envelope });
        former
    }

    pub fn remove(&mut self, id: &JobId) -> Option<Arc<Announcement>> {
        let announcement = self.jobs.remove(id)?.announcement;
        if let Some(ids) = self.by_content.get_mut(&announcement.content) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_content.remove(&announcement.content);
            }
        }
        Some(announcement)
    }

    pub fn get(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }

    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// All ids, in order.
    pub fn ids(&self) -> Vec<JobId> {
        self.jobs.keys().copied().collect()
    }

    /// All announcements, in order of job id.
    pub fn announcements(&self) -> impl Iterator<Item = &Arc<Announcement>> {
        self.jobs.values().map(|job| &job.announcement)
    }

    /// Announcements of a content, in order of job id: pushes, demotions and feeds.
    pub fn of_content(&self, content: &ContentId) -> impl Iterator<Item = &Arc<Announcement>> {
        let ids = self.by_content.get(content).into_iter().flatten();
        ids.filter_map(|id| self.jobs.get(id)).map(|job| &job.announcement)
    }

    /// Announcements that ask for a content, whether or not this host is selected.
    pub fn pushes_of(&self, content: &ContentId) -> Vec<Arc<Announcement>> {
        self.of_content(content).filter(|announcement| !announcement.demotes()).cloned().collect()
    }

    pub fn is_named(&self, content: &ContentId) -> bool {
        self.by_content.contains_key(content)
    }

    /// The most urgent class of a content's jobs.
    pub fn class_of(&self, content: &ContentId) -> Class {
        self.of_content(content).map(|announcement| Class::from(announcement.kind)).min().unwrap_or(Class::Bulk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::announcement::Kind;
    use shoal_proto::ids::NodeId;
    use shoal_proto::locality::Selector;

    #[test]
    fn a_replaced_announcement_leaves_the_index_by_content() {
        let announcement = |job, content| {
            Arc::new(Announcement {
                job: JobId([job; 16]),
                content: ContentId([content; 32]),
                kind: Kind::Config,
                name: "name".into(),
                version: "1".into(),
                sequence: 1,
                selector: Selector::all(),
                origin: NodeId([0; 32]),
                manifest_bytes: 1,
                size: 1,
                created_at: 0,
                expires_at: 1,
                feed: None,
                staged: false,
                order: None,
            })
        };
        let mut table = JobTable::default();
        table.insert(announcement(1, 1), Bytes::new());
        table.insert(announcement(2, 1), Bytes::new());
        let former = table.insert(announcement(1, 2), Bytes::new()).unwrap();
        assert_eq!(former.content, ContentId([1; 32]));
        let jobs_of = |table: &JobTable, content| -> Vec<u8> {
            table.of_content(&ContentId([content; 32])).map(|job| job.job.0[0]).collect()
        };
        assert_eq!((jobs_of(&table, 1), jobs_of(&table, 2)), (vec![2], vec![1]));
        table.remove(&JobId([2; 16]));
        assert!(!table.is_named(&ContentId([1; 32])) && table.is_named(&ContentId([2; 32])));
    }
}
