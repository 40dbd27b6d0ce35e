//! Signing announcements and handing them to the driver.
//!
//! Invariant: an announcement leaves only after it is durable here, so a restarted seeder knows every job that hosts
//! know.

use crate::errors::StateError;
use crate::jobs::Jobs;
use crate::publisher_keys::{PublisherKeys, SignError};
use crate::tracker::Tracker;
use shoal_net::admission::system_clock;
use shoal_peer::handle::{DriverCommand, NodeHandle};
use shoal_proto::announcement::Announcement;
use shoal_proto::ids::NodeId;
use shoal_proto::trust::Envelope;
use std::sync::Arc;

/// Signs and publishes.
pub(crate) struct Publisher {
    keys: Arc<PublisherKeys>,
    me: NodeId,
    job_lifetime_s: u64,
    jobs: Arc<Jobs>,
    node: NodeHandle,
    tracker: Tracker,
}

/// When an announcement begins and ends to count, Unix seconds.
pub(crate) struct AnnouncementTimes {
    pub(crate) created_at: u64,
    pub(crate) expires_at: u64,
}

impl Publisher {
    pub(crate) fn new(
        keys: Arc<PublisherKeys>,
        me: NodeId,
        job_lifetime_s: u64,
        jobs: Arc<Jobs>,
        node: NodeHandle,
        tracker: Tracker,
    ) -> Self {
        Self { keys, me, job_lifetime_s, jobs, node, tracker }
    }

    /// Returns this seeder's id, which is the origin of what it announces.
    pub(crate) fn me(&self) -> NodeId {
        self.me
    }

    /// Returns the times of an announcement that is made now.
    pub(crate) fn times(&self) -> AnnouncementTimes {
        let created_at = system_clock();
        AnnouncementTimes { created_at, expires_at: created_at + self.job_lifetime_s }
    }

    /// Signs an announcement.
    ///
    /// # Errors
    /// As [`PublisherKeys::seal`].
    pub(crate) fn seal(&self, announcement: &Announcement) -> Result<Envelope, SignError> {
        self.keys.seal(announcement)
    }

    /// Publishes an announcement whose job is in the table.
    ///
    /// # Errors
    /// Returns an error if the disk fails or the seeder is stopping. Hosts know nothing of the job then.
    pub(crate) async fn publish(&self, announcement: Announcement, envelope: Envelope) -> Result<(), StateError> {
        let job = announcement.job;
        if announcement.order.is_none() {
            self.node.store.set_sequence(&announcement.content, announcement.sequence)?;
        }
        self.jobs.pin_needed()?;
        self.node.store.sync()?;
        // The tracker first, so that it knows the job before hosts report on it. Without a connection, `Progress` tells
        // the tracker later.
        if let Some(tracker) = self.tracker.current() {
            self.tracker.open_job(tracker, job).await;
        }
        let Announcement { name, version, size, order, .. } = &announcement;
        tracing::info!(%job, name, version, size, ?order, "announced a job");
        let command = DriverCommand::Publish { envelope, announcement: Arc::new(announcement) };
        self.node.commands.send(command).await.map_err(|_| StateError::Stopping)
    }
}
