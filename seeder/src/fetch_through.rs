//! Images that hosts were asked for and have not: pulled once for all that ask, if their registry is one the operator named.
//!
//! Invariant: what a host asks for never makes the seeder pull from a registry that `fetch_through` does not name, and a
//! host that asks again for what is on its way starts nothing.

use crate::images;
use crate::jobs::{ImageRequest, Jobs, PushRequest};
use shoal_peer::handle::NodeHandle;
use shoal_peer::tracker_client::FetchThroughRequest;
use shoal_proto::announcement::Kind;
use shoal_proto::control::Response;
use shoal_proto::ids::JobId;
use shoal_proto::image::{Reference, is_host, is_repository};
use shoal_proto::limits;
use shoal_proto::locality::Locality;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Hosts that ask within this time share a job.
const TOGETHER: Duration = Duration::from_millis(200);
/// Images that wait for it at once.
const PENDING_MAX: usize = 64;
/// Images hosts asked for that are under way at once.
const JOBS_MAX: usize = 32;

/// Whether `text` is a registry, or a registry and the beginning of repositories in it.
pub(crate) fn is_repository_prefix(text: &str) -> bool {
    let (host, path) = text.split_once('/').map_or((text, None), |(host, path)| (host, Some(path)));
    is_host(host) && path.is_none_or(is_repository)
}

fn is_allowed(prefixes: &[String], reference: &Reference) -> bool {
    let name = format!("{}/{}", reference.host, reference.path);
    prefixes.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

/// Who waits for one image.
struct Pending {
    hosts: BTreeSet<Locality>,
    due: Instant,
}

/// Jobs begun for hosts that asked: of which image, for whom.
type Ours = BTreeMap<JobId, (String, BTreeSet<Locality>)>;

/// Takes hosts' wishes until the token is cancelled.
pub(crate) struct FetchThrough {
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) node: NodeHandle,
    pub(crate) prefixes: Vec<String>,
    pub(crate) pushes: mpsc::Sender<(JobId, PushRequest)>,
}

impl FetchThrough {
    pub(crate) async fn run(self, mut wishes: mpsc::Receiver<FetchThroughRequest>, token: CancellationToken) {
        let mut pending: BTreeMap<String, Pending> = BTreeMap::new();
        let mut ours: Ours = BTreeMap::new();
        loop {
            let due = pending.values().map(|row| row.due).min();
            tokio::select! {
                biased;
                () = token.cancelled() => return,
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    let now = Instant::now();
                    let ready: Vec<String> =
                        pending.iter().filter(|(_, row)| row.due <= now).map(|(name, _)| name.clone()).collect();
                    for reference in ready {
                        if let Some(row) = pending.remove(&reference) {
                            ours.extend(self.begin(&reference, row.hosts).await);
                        }
                    }
                }
                wish = wishes.recv() => {
                    let Some(wish) = wish else { return };
                    ours.retain(|job, _| self.jobs.status(job).is_some_and(|status| !status.is_final()));
                    let answer = match self.accept(&wish, &mut pending, &ours) {
                        Ok(()) => Response::Done,
                        Err(why) => Response::Refused { why },
                    };
                    wish.reply.send(answer);
                }
            }
        }
    }

    fn accept(
        &self,
        wish: &FetchThroughRequest,
        pending: &mut BTreeMap<String, Pending>,
        ours: &Ours,
    ) -> Result<(), String> {
        let reference: Reference = wish.reference.parse().map_err(|_| "no image's name".to_string())?;
        if !is_allowed(&self.prefixes, &reference) {
            return Err(format!("the seeder's fetch_through does not name {}/{}", reference.host, reference.path));
        }
        let member = self.node.membership.borrow().get(wish.host).cloned();
        let member = member.ok_or_else(|| "the seeder does not know this host yet".to_string())?;
        let on_its_way = ours.values().any(|(name, hosts)| *name == wish.reference && hosts.contains(&member.locality));
        if on_its_way {
            return Ok(());
        }
        if !pending.contains_key(&wish.reference) && (pending.len() >= PENDING_MAX || ours.len() >= JOBS_MAX) {
            return Err("too many images are on their way".into());
        }
        let row = pending
            .entry(wish.reference.clone())
            .or_insert_with(|| Pending { hosts: BTreeSet::new(), due: Instant::now() + TOGETHER });
        row.hosts.insert(member.locality);
        Ok(())
    }

    /// Begins the jobs for an image: as many as selectors hold hosts.
    async fn begin(&self, reference: &str, hosts: BTreeSet<Locality>) -> Ours {
        let one = |host: &Locality| {
            format!("region={},site={},rack={},host={}", host.region, host.site, host.rack, host.host)
        };
        let hosts: Vec<Locality> = hosts.into_iter().collect();
        let mut begun = Ours::new();
        for hosts in hosts.chunks(limits::SELECTOR_TERMS_MAX) {
            let image = ImageRequest { reference: Some(reference.to_string()), platform: None, pull: true };
            let request = PushRequest {
                path: PathBuf::new(),
                name: String::new(),
                version: String::new(),
                kind: Kind::Image,
                to: hosts.iter().map(one).collect(),
                // Who asked pulls it by itself; nobody asked for it to be unpacked and kept.
                staged: true,
                image: Some(image),
            };
            match self.create(request).await {
                Ok(job) => {
                    tracing::info!(%reference, %job, hosts = hosts.len(), "fetched for hosts that were asked for it");
                    begun.insert(job, (reference.to_string(), hosts.iter().cloned().collect()));
                }
                Err(error) => tracing::warn!(%reference, %error, "cannot fetch an image for hosts"),
            }
        }
        begun
    }

    async fn create(&self, request: PushRequest) -> Result<JobId, String> {
        let permit = self.pushes.reserve().await.map_err(|error| error.to_string())?;
        // Nothing is read: its name is given.
        let request = images::complete(request).map_err(|error| error.to_string())?;
        let job = self.jobs.create(&request).map_err(|error| error.to_string())?;
        permit.send((job, request));
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_operator_named_is_fetched() {
        let prefixes = ["registry.example:5000/lab".to_string(), "ghcr.example".to_string()];
        let allowed = |name: &str| is_allowed(&prefixes, &name.parse().unwrap());
        assert!(allowed("registry.example:5000/lab/app:v1") && allowed("registry.example:5000/lab:v1"));
        assert!(allowed("ghcr.example/anything/at/all"));
        assert!(!allowed("registry.example:5000/labor/app:v1"));
        assert!(!allowed("registry.example:5000/other:v1"));
        assert!(!allowed("registry.example/lab/app:v1"));
        assert!(!allowed("ghcr.example.evil.example/a"));
        assert!(!is_allowed(&[], &"nginx".parse().unwrap()));
        for bad in ["", "/", "a/", "a//b", "https://a", "a/B", "a b"] {
            assert!(!is_repository_prefix(bad), "{bad}");
        }
        assert!(is_repository_prefix("registry.example:5000") && is_repository_prefix("docker.io/library"));
    }
}
