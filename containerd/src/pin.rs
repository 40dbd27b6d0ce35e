//! Pins: what keeps an image from garbage collectors, containerd's own and kubelet's.
//!
//! A lease keeps the blobs and the snapshots, also when somebody removes the image's record; a label tells CRI (from
//! containerd 1.7 on) that kubelet is not to remove it. A pin is named by whoever sets it, so that two jobs of one image
//! do not undo each other.

use crate::image::Unpacked;
use crate::wire::{self, Labels};
use crate::{Containerd, RuntimeError};

/// Begins the names of our leases; also their label.
const OURS: &str = "shoal.pin";
/// What CRI looks at.
const CRI_PINNED: &str = "io.cri-containerd.pinned";

impl Containerd {
    fn lease(pin: &str) -> String {
        format!("{OURS}-{pin}")
    }

    /// Keeps an unpacked image until [`Containerd::unpin`]. Doing it again changes nothing.
    pub async fn pin(&self, pin: &str, name: &str, image: &Unpacked) -> Result<(), RuntimeError> {
        let Unpacked::Yes { root, snapshot } = image else {
            return Err(RuntimeError::Missing { what: format!("pin {name}") });
        };
        self.make_lease(&Self::lease(pin), Labels::from([(OURS.to_string(), name.to_string())])).await?;
        let mut kept = vec![(root.digest.clone(), "content".to_string())];
        kept.extend(snapshot.clone().map(|key| (key, format!("snapshots/{}", self.snapshotter()))));
        for (id, kind) in kept {
            self.keep(&Self::lease(pin), id, kind).await?;
        }
        self.label(name, CRI_PINNED, "pinned").await
    }

    /// Takes a pin away, and the label when no other of our pins holds the image.
    pub async fn unpin(&self, pin: &str, name: &str) -> Result<(), RuntimeError> {
        self.drop_lease(&Self::lease(pin)).await?;
        if self.pins().await?.iter().any(|(_, held)| held == name) {
            return Ok(());
        }
        match self.label(name, CRI_PINNED, "").await {
            Err(RuntimeError::Missing { .. }) => Ok(()),
            other => other,
        }
    }

    /// Our pins: whose, and of which image.
    pub async fn pins(&self) -> Result<Vec<(String, String)>, RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/List";
        let answer: wire::ListLeasesResponse =
            self.quick(path, "list leases", wire::ListLeasesRequest { filters: Vec::new() }, None).await?;
        let ours = answer.leases.into_iter().filter_map(|mut lease| {
            let pin = lease.id.strip_prefix(OURS)?.strip_prefix('-')?.to_string();
            Some((pin, lease.labels.remove(OURS)?))
        });
        Ok(ours.collect())
    }

    /// Has a lease keep a blob or a snapshot, also one that is not there yet.
    pub(crate) async fn keep(&self, lease: &str, id: String, kind: String) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/AddResource";
        let resource = Some(wire::Resource { id, kind });
        let request = wire::AddResourceRequest { id: lease.to_string(), resource };
        self.quick::<_, ()>(path, "keep by a lease", request, None).await
    }

    /// Makes a lease unless it is there.
    pub(crate) async fn make_lease(&self, id: &str, labels: Labels) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/Create";
        let request = wire::CreateLeaseRequest { id: id.to_string(), labels };
        match self.quick::<_, ()>(path, "make a lease", request, None).await {
            Err(RuntimeError::Refused { why, .. }) if why.contains("already exists") => Ok(()),
            other => other,
        }
    }

    /// Removes a lease if it is there.
    pub(crate) async fn drop_lease(&self, id: &str) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/Delete";
        let request = wire::DeleteLeaseRequest { id: id.to_string(), sync: false };
        match self.quick::<_, ()>(path, "end a lease", request, None).await {
            Err(RuntimeError::Missing { .. }) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Descriptor;

    #[tokio::test]
    async fn nothing_that_is_not_unpacked_is_pinned() {
        let containerd = Containerd::new(std::path::Path::new("/nowhere"), "k8s.io", "overlayfs");
        let pinned = containerd.pin("a", "registry.example/a:1", &Unpacked::No).await;
        assert!(matches!(pinned, Err(RuntimeError::Missing { .. })));
        let image = Unpacked::Yes { root: Descriptor::new("m", "sha256:0", 1), snapshot: None };
        let away = containerd.pin("a", "registry.example/a:1", &image).await.unwrap_err();
        assert!(matches!(away, RuntimeError::Away { .. }), "{away}");
        assert!(away.to_string().contains("/nowhere"));
    }
}
