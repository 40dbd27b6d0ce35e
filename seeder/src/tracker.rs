//! The tracker, as the seeder uses it: which one is connected, and questions to it.
//!
//! Invariant: a job counts as opened only after the tracker has accepted its announcement.

use crate::jobs::{ASK_MAX, EnvelopeForTracker, Jobs};
use shoal_net::control::{ControlHandle, RequestError};
use shoal_proto::bitmap::Bitmap;
use shoal_proto::control::{HostLine, JobStates, Request, Response};
use shoal_proto::ids::{JobId, NodeId};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long to wait before asking a tracker again that refused a job.
const REFUSED_WAIT: Duration = Duration::from_secs(5);
/// How long a list of hosts waits for the tracker's word on duplicates.
const DUPLICATES_WAIT: Duration = Duration::from_secs(1);

/// The tracker. Clones are the same.
#[derive(Clone)]
pub(crate) struct Tracker {
    control: ControlHandle,
    current: watch::Receiver<Option<NodeId>>,
    jobs: Arc<Jobs>,
}

impl Tracker {
    pub(crate) fn new(control: ControlHandle, current: watch::Receiver<Option<NodeId>>, jobs: Arc<Jobs>) -> Self {
        Self { control, current, jobs }
    }

    /// Returns the connected tracker, if there is one.
    pub(crate) fn current(&self) -> Option<NodeId> {
        *self.current.borrow()
    }

    /// Sends a request.
    ///
    /// # Errors
    /// Returns an error if the tracker does not answer in time.
    pub(crate) async fn request(&self, tracker: NodeId, request: Request) -> Result<Response, RequestError> {
        self.control.request(tracker, request).await
    }

    /// Returns the hosts' states in a job, or `None` if the tracker cannot tell now.
    pub(crate) async fn host_states(&self, tracker: NodeId, job: JobId) -> Option<JobStates> {
        match self.request(tracker, Request::HostStates { job }).await {
            Ok(Response::States(states)) => Some(states),
            Ok(answer) => {
                tracing::debug!(%job, ?answer, "the tracker does not know the hosts' states");
                None
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot ask the tracker for the hosts' states");
                None
            }
        }
    }

    /// Returns what hosts say in a job, those that failed first. Empty if the tracker cannot tell now.
    pub(crate) async fn host_lines(&self, tracker: NodeId, job: JobId) -> Vec<HostLine> {
        match self.request(tracker, Request::JobStatus { job }).await {
            Ok(Response::Rollup(rollup)) => rollup.lines,
            Ok(answer) => {
                tracing::debug!(%job, ?answer, "the tracker does not know what hosts say");
                Vec::new()
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot ask the tracker what hosts say");
                Vec::new()
            }
        }
    }

    /// Returns the hosts in whose place another host tried to join. No host, if the tracker does not tell soon.
    pub(crate) async fn duplicates(&self) -> Bitmap {
        let Some(tracker) = self.current() else { return Bitmap::default() };
        match timeout(DUPLICATES_WAIT, self.request(tracker, Request::Duplicates)).await {
            Ok(Ok(Response::Duplicates { hosts })) => hosts,
            _ => Bitmap::default(),
        }
    }

    /// Sends a job's announcement to the tracker, unless the tracker has it. Returns whether the tracker has it now.
    pub(crate) async fn open_job(&self, tracker: NodeId, job: JobId) -> bool {
        let envelope = match self.jobs.envelope_for_tracker(&job) {
            EnvelopeForTracker::Known => return true,
            EnvelopeForTracker::Send(envelope) => envelope,
            EnvelopeForTracker::None => return false,
        };
        match self.request(tracker, Request::OpenJob { envelope }).await {
            Ok(Response::Done) => {
                self.jobs.set_opened(&job);
                true
            }
            Ok(answer) => {
                let why = match answer {
                    Response::Refused { why } => format!("the tracker refuses the job: {why}"),
                    _ => "the tracker sent an unexpected answer".to_string(),
                };
                tracing::warn!(%job, %why, "cannot open a job at the tracker");
                self.jobs.set_refused(&job, why, REFUSED_WAIT);
                false
            }
            Err(error) => {
                tracing::debug!(%job, %error, "cannot open a job at the tracker");
                self.jobs.ask_later(&job, ASK_MAX);
                false
            }
        }
    }
}
