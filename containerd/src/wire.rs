//! Messages as containerd and CRI define them, with the fields used here; others are skipped when read and absent when
//! sent.
//!
//! Invariant: field numbers are those of the published `.proto` files (containerd `api/services/*/v1`, CRI `runtime.v1`).

use prost::Message;
use std::collections::BTreeMap;

/// String labels.
pub type Labels = BTreeMap<String, String>;

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Message)]
pub struct FieldMask {
    /// Which fields.
    #[prost(string, repeated, tag = "1")]
    pub paths: Vec<String>,
}

/// `containerd.types.Descriptor`.
#[derive(Clone, PartialEq, Message)]
pub struct Descriptor {
    /// Media type.
    #[prost(string, tag = "1")]
    pub media_type: String,
    /// `sha256:...`.
    #[prost(string, tag = "2")]
    pub digest: String,
    /// Bytes.
    #[prost(int64, tag = "3")]
    pub size: i64,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    /// File system.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// What.
    #[prost(string, tag = "2")]
    pub source: String,
    /// Where, below the root.
    #[prost(string, tag = "3")]
    pub target: String,
    /// Options.
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// `version.v1.VersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct VersionResponse {
    /// As released.
    #[prost(string, tag = "1")]
    pub version: String,
}

/// `introspection.v1.PluginsRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PluginsRequest {
    /// Any of these.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// gRPC code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Why.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// `introspection.v1.Plugin`.
#[derive(Clone, PartialEq, Message)]
pub struct Plugin {
    /// E.g. `io.containerd.snapshotter.v1`.
    #[prost(string, tag = "1")]
    pub kind: String,
    /// E.g. `overlayfs`.
    #[prost(string, tag = "2")]
    pub id: String,
    /// What it tells of itself, e.g. `root`.
    #[prost(btree_map = "string, string", tag = "5")]
    pub exports: Labels,
    /// Why it does not run.
    #[prost(message, optional, tag = "7")]
    pub init_err: Option<Status>,
}

/// `introspection.v1.PluginsResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PluginsResponse {
    /// All that matched.
    #[prost(message, repeated, tag = "1")]
    pub plugins: Vec<Plugin>,
}

/// `images.v1.Image`.
#[derive(Clone, PartialEq, Message)]
pub struct Image {
    /// Reference.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "2")]
    pub labels: Labels,
    /// Manifest or index.
    #[prost(message, optional, tag = "3")]
    pub target: Option<Descriptor>,
}

/// `images.v1.GetImageRequest` and `DeleteImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageNameRequest {
    /// Reference.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// `images.v1.GetImageResponse`, `CreateImageRequest`, and the responses to create and update.
#[derive(Clone, PartialEq, Message)]
pub struct ImageMessage {
    /// The image.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
}

/// `images.v1.UpdateImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct UpdateImageRequest {
    /// The image.
    #[prost(message, optional, tag = "1")]
    pub image: Option<Image>,
    /// What of it.
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `content.v1.Info`.
#[derive(Clone, PartialEq, Message)]
pub struct Info {
    /// `sha256:...`.
    #[prost(string, tag = "1")]
    pub digest: String,
    /// Bytes.
    #[prost(int64, tag = "2")]
    pub size: i64,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: Labels,
}

/// `content.v1.InfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct InfoRequest {
    /// `sha256:...`.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `content.v1.InfoResponse` and `UpdateResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct InfoResponse {
    /// The blob.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
}

/// `content.v1.UpdateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct UpdateContentRequest {
    /// The blob.
    #[prost(message, optional, tag = "1")]
    pub info: Option<Info>,
    /// What of it.
    #[prost(message, optional, tag = "2")]
    pub update_mask: Option<FieldMask>,
}

/// `content.v1.ReadContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ReadContentRequest {
    /// `sha256:...`.
    #[prost(string, tag = "1")]
    pub digest: String,
}

/// `content.v1.ReadContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ReadContentResponse {
    /// Bytes from the start.
    #[prost(int64, tag = "1")]
    pub offset: i64,
    /// Bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub data: bytes::Bytes,
}

/// `content.v1.WriteAction`: how far the write is.
pub const WRITE_STAT: i32 = 0;
/// Data follows.
pub const WRITE_DATA: i32 = 1;
/// All is there.
pub const WRITE_COMMIT: i32 = 2;

/// `content.v1.WriteContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct WriteContentRequest {
    /// One of the `WRITE_` numbers.
    #[prost(int32, tag = "1")]
    pub action: i32,
    /// Names this write, so that it can be taken up again.
    #[prost(string, tag = "2")]
    pub reference: String,
    /// Bytes in all.
    #[prost(int64, tag = "3")]
    pub total: i64,
    /// Digest the whole must have.
    #[prost(string, tag = "4")]
    pub expected: String,
    /// Where `data` goes.
    #[prost(int64, tag = "5")]
    pub offset: i64,
    /// Bytes.
    #[prost(bytes = "bytes", tag = "6")]
    pub data: bytes::Bytes,
    /// Labels, with the commit.
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: Labels,
}

/// `content.v1.WriteContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct WriteContentResponse {
    /// What was done.
    #[prost(int32, tag = "1")]
    pub action: i32,
    /// Bytes there.
    #[prost(int64, tag = "4")]
    pub offset: i64,
    /// Digest, once committed.
    #[prost(string, tag = "6")]
    pub digest: String,
}

/// `content.v1.AbortRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AbortRequest {
    /// Names the write.
    #[prost(string, tag = "1")]
    pub reference: String,
}

/// `leases.v1.CreateRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CreateLeaseRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: Labels,
}

/// `leases.v1.DeleteRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct DeleteLeaseRequest {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Collect garbage before the answer.
    #[prost(bool, tag = "2")]
    pub sync: bool,
}

/// `leases.v1.ListRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ListLeasesRequest {
    /// Any of these.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `leases.v1.Lease`.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    /// Its name.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "3")]
    pub labels: Labels,
}

/// `leases.v1.ListResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ListLeasesResponse {
    /// All that matched.
    #[prost(message, repeated, tag = "1")]
    pub leases: Vec<Lease>,
}

/// `leases.v1.Resource`.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// Digest or key.
    #[prost(string, tag = "1")]
    pub id: String,
    /// `content`, `snapshots/NAME`.
    #[prost(string, tag = "2")]
    pub kind: String,
}

/// `leases.v1.AddResourceRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct AddResourceRequest {
    /// The lease.
    #[prost(string, tag = "1")]
    pub id: String,
    /// What it keeps.
    #[prost(message, optional, tag = "2")]
    pub resource: Option<Resource>,
}

/// `snapshots.v1.PrepareSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct PrepareSnapshotRequest {
    /// E.g. `overlayfs`.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Its name while it can be written to.
    #[prost(string, tag = "2")]
    pub key: String,
    /// What it stands on.
    #[prost(string, tag = "3")]
    pub parent: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: Labels,
}

/// `snapshots.v1.PrepareSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PrepareSnapshotResponse {
    /// How to mount it.
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

/// `snapshots.v1.CommitSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct CommitSnapshotRequest {
    /// E.g. `overlayfs`.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Its name from now on.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its name until now.
    #[prost(string, tag = "3")]
    pub key: String,
    /// Labels.
    #[prost(btree_map = "string, string", tag = "4")]
    pub labels: Labels,
}

/// `snapshots.v1.StatSnapshotRequest` and `RemoveSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotKeyRequest {
    /// E.g. `overlayfs`.
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    /// Its name.
    #[prost(string, tag = "2")]
    pub key: String,
}

/// `snapshots.v1.Kind` of a committed snapshot.
pub const SNAPSHOT_COMMITTED: i32 = 3;

/// `snapshots.v1.Info`.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotInfo {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Active, view or committed.
    #[prost(int32, tag = "3")]
    pub kind: i32,
}

/// `snapshots.v1.StatSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct StatSnapshotResponse {
    /// The snapshot.
    #[prost(message, optional, tag = "1")]
    pub info: Option<SnapshotInfo>,
}

/// `diff.v1.ApplyRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyRequest {
    /// The layer.
    #[prost(message, optional, tag = "1")]
    pub diff: Option<Descriptor>,
    /// Where it is unpacked.
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
}

/// `diff.v1.ApplyResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ApplyResponse {
    /// What was unpacked, uncompressed.
    #[prost(message, optional, tag = "1")]
    pub applied: Option<Descriptor>,
}

/// `runtime.v1.ImageSpec`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    /// Reference or id.
    #[prost(string, tag = "1")]
    pub image: String,
}

/// `runtime.v1.PullImageRequest` and `RemoveImageRequest`, as far as they are used.
#[derive(Clone, PartialEq, Message)]
pub struct ImageSpecRequest {
    /// Which.
    #[prost(message, optional, tag = "1")]
    pub image: Option<ImageSpec>,
}

/// `runtime.v1.PullImageResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct PullImageResponse {
    /// Its id.
    #[prost(string, tag = "1")]
    pub image_ref: String,
}

/// `runtime.v1.ImageFsInfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageFsInfoRequest {}

/// `runtime.v1.FilesystemIdentifier`.
#[derive(Clone, PartialEq, Message)]
pub struct FilesystemIdentifier {
    /// Folder of the snapshotter.
    #[prost(string, tag = "1")]
    pub mountpoint: String,
}

/// `runtime.v1.FilesystemUsage`.
#[derive(Clone, PartialEq, Message)]
pub struct FilesystemUsage {
    /// Where.
    #[prost(message, optional, tag = "2")]
    pub fs_id: Option<FilesystemIdentifier>,
}

/// `runtime.v1.ImageFsInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct ImageFsInfoResponse {
    /// Where images lie.
    #[prost(message, repeated, tag = "1")]
    pub image_filesystems: Vec<FilesystemUsage>,
}
