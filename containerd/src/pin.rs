//! Pins protect an image from the garbage collectors of containerd and kubelet.
//!
//! A pin is a lease and a label. The lease keeps blobs and snapshots, even after the image's record is removed. The
//! label tells CRI, from containerd 1.7 on, that kubelet must not remove the image.
//! Invariant: an image stays pinned until its last pin is removed. Two jobs of one image use two pin names.

use crate::client::Containerd;
use crate::error::RuntimeError;
use crate::unpacked::Unpacked;
use crate::wire::{self, Labels};

/// Prefix of the names of our leases, and the key of their label.
const LEASE_PREFIX: &str = "shoal.pin";
/// The label that CRI reads.
const CRI_PINNED: &str = "io.cri-containerd.pinned";

/// One pin of ours in containerd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    /// The name that the caller of [`Containerd::pin`] chose.
    pub name: String,
    /// The reference of the image.
    pub image: String,
}

impl Containerd {
    fn lease_of(pin: &str) -> String {
        format!("{LEASE_PREFIX}-{pin}")
    }

    /// Keeps an unpacked image until [`Containerd::unpin`]. A repeated call changes nothing.
    ///
    /// # Errors
    /// Fails if the image is not unpacked, or if containerd fails.
    pub async fn pin(&self, pin: &str, image: &str, unpacked: &Unpacked) -> Result<(), RuntimeError> {
        let Unpacked::Yes { root, snapshot } = unpacked else {
            return Err(RuntimeError::NotFound { action: format!("pin {image}") });
        };
        let lease = Self::lease_of(pin);
        self.create_lease(&lease, Labels::from([(LEASE_PREFIX.to_string(), image.to_string())])).await?;
        self.add_to_lease(&lease, root.digest.clone(), "content".to_string()).await?;
        if let Some(snapshot) = snapshot {
            self.add_to_lease(&lease, snapshot.clone(), format!("snapshots/{}", self.snapshotter())).await?;
        }
        self.label_image(image, CRI_PINNED, "pinned").await
    }

    /// Removes a pin, and the label if no other pin of ours is left on the image.
    ///
    /// # Errors
    /// Fails if containerd fails. A missing pin or image is no failure.
    pub async fn unpin(&self, pin: &str, image: &str) -> Result<(), RuntimeError> {
        self.delete_lease(&Self::lease_of(pin)).await?;
        if self.pins().await?.iter().any(|other| other.image == image) {
            return Ok(());
        }
        match self.label_image(image, CRI_PINNED, "").await {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Returns all pins of ours.
    ///
    /// # Errors
    /// Fails if containerd fails.
    pub async fn pins(&self) -> Result<Vec<Pin>, RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/List";
        let request = wire::ListLeasesRequest { filters: Vec::new() };
        let answer: wire::ListLeasesResponse = self.unary(path, "list leases", request, None).await?;
        let pins = answer.leases.into_iter().filter_map(|mut lease| {
            let name = lease.id.strip_prefix(LEASE_PREFIX)?.strip_prefix('-')?.to_string();
            Some(Pin { name, image: lease.labels.remove(LEASE_PREFIX)? })
        });
        Ok(pins.collect())
    }

    /// Makes a lease keep a blob or a snapshot. The resource may arrive later.
    pub(crate) async fn add_to_lease(&self, lease: &str, id: String, kind: String) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/AddResource";
        let action = format!("add {id} to lease {lease}");
        let resource = Some(wire::Resource { id, kind });
        let request = wire::AddResourceRequest { id: lease.to_string(), resource };
        self.unary::<_, ()>(path, &action, request, None).await
    }

    /// Creates a lease unless it exists.
    pub(crate) async fn create_lease(&self, id: &str, labels: Labels) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/Create";
        let request = wire::CreateLeaseRequest { id: id.to_string(), labels };
        match self.unary::<_, ()>(path, &format!("create lease {id}"), request, None).await {
            Err(RuntimeError::AlreadyExists { .. }) => Ok(()),
            other => other,
        }
    }

    /// Deletes a lease if it exists.
    pub(crate) async fn delete_lease(&self, id: &str) -> Result<(), RuntimeError> {
        let path = "/containerd.services.leases.v1.Leases/Delete";
        let request = wire::DeleteLeaseRequest { id: id.to_string(), sync: false };
        match self.unary::<_, ()>(path, &format!("delete lease {id}"), request, None).await {
            Err(RuntimeError::NotFound { .. }) => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Descriptor;

    #[tokio::test]
    async fn an_image_that_is_not_unpacked_cannot_be_pinned() {
        let containerd = Containerd::new(std::path::Path::new("/nowhere"), "k8s.io", "overlayfs");
        let pinned = containerd.pin("a", "registry.example/a:1", &Unpacked::No).await;
        assert!(matches!(pinned, Err(RuntimeError::NotFound { .. })));
        let image = Unpacked::Yes { root: Descriptor::new("m", "sha256:0", 1), snapshot: None };
        let error = containerd.pin("a", "registry.example/a:1", &image).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("/nowhere"));
    }
}
