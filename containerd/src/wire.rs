//! The gRPC messages of containerd and CRI, written by hand, so that the build needs no protoc.
//!
//! A message has only the fields that this crate uses. Decoding skips all other fields. Messages that go back to
//! containerd in an update have all fields.
//! Invariant: field numbers are those of the published `.proto` files (containerd `api/services/*/v1`, CRI
//! `runtime.v1`).

use prost::Message;
use std::collections::BTreeMap;

/// Labels of a containerd record.
pub(crate) type Labels = BTreeMap<String, String>;

/// `google.protobuf.FieldMask`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct FieldMask {
    #[prost(string, repeated, tag = "1")]
    pub(crate) paths: Vec<String>,
}

/// `google.protobuf.Timestamp`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Timestamp {
    #[prost(int64, tag = "1")]
    pub(crate) seconds: i64,
    #[prost(int32, tag = "2")]
    pub(crate) nanos: i32,
}

/// `containerd.types.Descriptor`, with every field, because it goes back to containerd in updates.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Descriptor {
    #[prost(string, tag = "1")]
    pub(crate) media_type: String,
    #[prost(string, tag = "2")]
    pub(crate) digest: String,
    #[prost(int64, tag = "3")]
    pub(crate) size: i64,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) annotations: Labels,
}

/// `containerd.types.Mount`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mount {
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    #[prost(string, tag = "2")]
    pub(crate) source: String,
    /// The mount point below the root of the snapshot.
    #[prost(string, tag = "3")]
    pub(crate) target: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) options: Vec<String>,
}

/// `version.v1.VersionResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct VersionResponse {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
}

/// `introspection.v1.PluginsRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginsRequest {
    /// A plugin matches if it matches any of these filters.
    #[prost(string, repeated, tag = "1")]
    pub(crate) filters: Vec<String>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Status {
    /// A gRPC status code. 0 is success.
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

/// `introspection.v1.Plugin`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Plugin {
    /// For example `io.containerd.snapshotter.v1`.
    #[prost(string, tag = "1")]
    pub(crate) kind: String,
    /// For example `overlayfs`.
    #[prost(string, tag = "2")]
    pub(crate) id: String,
    /// Properties that the plugin publishes, for example its folder as `root`.
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) exports: Labels,
    /// Set if the plugin failed to start.
    #[prost(message, optional, tag = "7")]
    pub(crate) init_err: Option<Status>,
}

/// `introspection.v1.PluginsResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PluginsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) plugins: Vec<Plugin>,
}

/// `images.v1.Image`, with every field, because it goes back to containerd in updates.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Image {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(btree_map = "string, string", tag = "2")]
    pub(crate) labels: Labels,
    /// The descriptor of the manifest or index.
    #[prost(message, optional, tag = "3")]
    pub(crate) target: Option<Descriptor>,
    #[prost(message, optional, tag = "7")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "8")]
    pub(crate) updated_at: Option<Timestamp>,
}

/// `images.v1.GetImageRequest` and `DeleteImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageNameRequest {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
}

/// `images.v1.GetImageResponse`, `CreateImageRequest`, and the responses to create and update.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
}

/// `images.v1.UpdateImageRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<Image>,
    /// The fields to update. Other fields stay.
    #[prost(message, optional, tag = "2")]
    pub(crate) update_mask: Option<FieldMask>,
}

/// `content.v1.Info`, with every field, because it goes back to containerd in updates.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Info {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
    #[prost(int64, tag = "2")]
    pub(crate) size: i64,
    #[prost(message, optional, tag = "3")]
    pub(crate) created_at: Option<Timestamp>,
    #[prost(message, optional, tag = "4")]
    pub(crate) updated_at: Option<Timestamp>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) labels: Labels,
}

/// `content.v1.InfoRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InfoRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

/// `content.v1.InfoResponse` and `UpdateResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct InfoResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Info>,
}

/// `content.v1.UpdateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct UpdateContentRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<Info>,
    /// The fields to update. Other fields stay.
    #[prost(message, optional, tag = "2")]
    pub(crate) update_mask: Option<FieldMask>,
}

/// `content.v1.ReadContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentRequest {
    #[prost(string, tag = "1")]
    pub(crate) digest: String,
}

/// `content.v1.ReadContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadContentResponse {
    #[prost(int64, tag = "1")]
    pub(crate) offset: i64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) data: bytes::Bytes,
}

/// `content.v1.WriteAction` that asks how much of the blob containerd has.
pub(crate) const WRITE_STAT: i32 = 0;
/// `content.v1.WriteAction` that carries data.
pub(crate) const WRITE_DATA: i32 = 1;
/// `content.v1.WriteAction` that ends a write and makes the blob visible.
pub(crate) const WRITE_COMMIT: i32 = 2;

/// `content.v1.WriteContentRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteContentRequest {
    /// One of the `WRITE_` constants.
    #[prost(int32, tag = "1")]
    pub(crate) action: i32,
    /// The name of the write. A later request with the same name resumes the write.
    #[prost(string, tag = "2")]
    pub(crate) reference: String,
    /// Size of the whole blob in bytes.
    #[prost(int64, tag = "3")]
    pub(crate) total: i64,
    /// The digest that the whole blob must have.
    #[prost(string, tag = "4")]
    pub(crate) expected: String,
    /// Offset of `data` in the blob, in bytes.
    #[prost(int64, tag = "5")]
    pub(crate) offset: i64,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) data: bytes::Bytes,
    /// Labels of the blob. containerd reads the labels of the commit only.
    #[prost(btree_map = "string, string", tag = "7")]
    pub(crate) labels: Labels,
}

/// `content.v1.WriteContentResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WriteContentResponse {
    /// The action that containerd completed.
    #[prost(int32, tag = "1")]
    pub(crate) action: i32,
    /// Bytes that containerd has stored so far.
    #[prost(int64, tag = "4")]
    pub(crate) offset: i64,
    /// Set in the answer to the commit.
    #[prost(string, tag = "6")]
    pub(crate) digest: String,
}

/// `content.v1.AbortRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AbortRequest {
    #[prost(string, tag = "1")]
    pub(crate) reference: String,
}

/// `leases.v1.CreateRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CreateLeaseRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
}

/// `leases.v1.DeleteRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeleteLeaseRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// Whether containerd collects garbage before it answers.
    #[prost(bool, tag = "2")]
    pub(crate) sync: bool,
}

/// `leases.v1.ListRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListLeasesRequest {
    /// A plugin matches if it matches any of these filters.
    #[prost(string, repeated, tag = "1")]
    pub(crate) filters: Vec<String>,
}

/// `leases.v1.Lease`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Lease {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(btree_map = "string, string", tag = "3")]
    pub(crate) labels: Labels,
}

/// `leases.v1.ListResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ListLeasesResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) leases: Vec<Lease>,
}

/// `leases.v1.Resource`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    /// The digest of a blob or the key of a snapshot.
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// `content`, or `snapshots/` and the name of the snapshotter.
    #[prost(string, tag = "2")]
    pub(crate) kind: String,
}

/// `leases.v1.AddResourceRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct AddResourceRequest {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    /// The resource that the lease protects from garbage collection.
    #[prost(message, optional, tag = "2")]
    pub(crate) resource: Option<Resource>,
}

/// `snapshots.v1.PrepareSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PrepareSnapshotRequest {
    /// For example `overlayfs`.
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    /// The name of the snapshot until its commit.
    #[prost(string, tag = "2")]
    pub(crate) key: String,
    /// The key of the snapshot below. Empty for the lowest layer.
    #[prost(string, tag = "3")]
    pub(crate) parent: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) labels: Labels,
}

/// `snapshots.v1.PrepareSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PrepareSnapshotResponse {
    #[prost(message, repeated, tag = "1")]
    pub(crate) mounts: Vec<Mount>,
}

/// `snapshots.v1.CommitSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct CommitSnapshotRequest {
    /// For example `overlayfs`.
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    /// The name of the snapshot after the commit.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// The name of the snapshot before the commit.
    #[prost(string, tag = "3")]
    pub(crate) key: String,
    #[prost(btree_map = "string, string", tag = "4")]
    pub(crate) labels: Labels,
}

/// `snapshots.v1.StatSnapshotRequest` and `RemoveSnapshotRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotKeyRequest {
    /// For example `overlayfs`.
    #[prost(string, tag = "1")]
    pub(crate) snapshotter: String,
    #[prost(string, tag = "2")]
    pub(crate) key: String,
}

/// `snapshots.v1.Kind` of a snapshot that is committed and can be a parent.
pub(crate) const SNAPSHOT_COMMITTED: i32 = 3;

/// `snapshots.v1.Info`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotInfo {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Active, view or [`SNAPSHOT_COMMITTED`].
    #[prost(int32, tag = "3")]
    pub(crate) kind: i32,
}

/// `snapshots.v1.StatSnapshotResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatSnapshotResponse {
    #[prost(message, optional, tag = "1")]
    pub(crate) info: Option<SnapshotInfo>,
}

/// `diff.v1.ApplyRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ApplyRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) diff: Option<Descriptor>,
    /// The mounts of the snapshot that containerd unpacks the layer into.
    #[prost(message, repeated, tag = "2")]
    pub(crate) mounts: Vec<Mount>,
}

/// `diff.v1.ApplyResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ApplyResponse {
    /// The descriptor of the uncompressed layer.
    #[prost(message, optional, tag = "1")]
    pub(crate) applied: Option<Descriptor>,
}

/// `runtime.v1.ImageSpec`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageSpec {
    /// A reference or an id.
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

/// `runtime.v1.PullImageRequest`, without credentials and sandbox.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageSpecRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<ImageSpec>,
}

/// `runtime.v1.PullImageResponse`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PullImageResponse {
    /// The image's id in CRI.
    #[prost(string, tag = "1")]
    pub(crate) image_ref: String,
}
