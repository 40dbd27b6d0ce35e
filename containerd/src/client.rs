//! The connection and its single calls.
//!
//! Invariant: every call has a deadline. The connection is made when first needed, and anew when it broke.

use crate::RuntimeError;
use crate::image::Descriptor;
use crate::wire::{self, Labels};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// How long a call may take that only reads or writes records.
const QUICK: Duration = Duration::from_secs(20);
/// Manifests and configurations larger than this are not read.
const SMALL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a containerd can do here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its version.
    pub version: String,
    /// Whether CRI's image service is served at the socket.
    pub cri: bool,
    /// Where the snapshotter unpacks to, if it says so.
    pub snapshots: Option<PathBuf>,
    /// Where blobs lie, if it says so.
    pub content: Option<PathBuf>,
}

/// A containerd at a socket, seen in one namespace.
#[derive(Clone, Debug)]
pub struct Containerd {
    socket: PathBuf,
    namespace: String,
    pub(crate) snapshotter: String,
    channel: Channel,
}

impl Containerd {
    /// The containerd at `socket`. Nothing is connected yet. Call it within a runtime.
    pub fn new(socket: &Path, namespace: &str, snapshotter: &str) -> Self {
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://containerd.invalid").connect_timeout(QUICK);
        Self {
            socket: socket.to_path_buf(),
            namespace: namespace.to_string(),
            snapshotter: snapshotter.to_string(),
            channel: endpoint.connect_with_connector_lazy(connector),
        }
    }

    /// The namespace whose images are seen.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The snapshotter images are unpacked with.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    pub(crate) fn fault(&self, what: &str, status: &Status) -> RuntimeError {
        RuntimeError::from_status(&self.socket, what, status)
    }

    /// A request in our namespace, under a lease if given.
    pub(crate) fn ask<T>(&self, message: T, lease: Option<&str>) -> Result<Request<T>, RuntimeError> {
        let mut request = Request::new(message);
        let value = |text: &str| {
            MetadataValue::try_from(text).map_err(|_| RuntimeError::Malformed(format!("`{text}` cannot be a header")))
        };
        request.metadata_mut().insert("containerd-namespace", value(&self.namespace)?);
        if let Some(lease) = lease {
            request.metadata_mut().insert("containerd-lease", value(lease)?);
        }
        Ok(request)
    }

    /// One message there, one back, within `limit`.
    pub(crate) async fn call<M, R>(
        &self,
        path: &'static str,
        what: &str,
        request: Request<M>,
        limit: Duration,
    ) -> Result<R, RuntimeError>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let exchange = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<M, R>::default();
            let answer = grpc.unary(request, PathAndQuery::from_static(path), codec).await?;
            Ok::<R, Status>(answer.into_inner())
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer.map_err(|status| self.fault(what, &status)),
            Err(_) => Err(RuntimeError::Late { what: what.to_string() }),
        }
    }

    /// The same for a record: quick.
    pub(crate) async fn quick<M, R>(
        &self,
        path: &'static str,
        what: &str,
        message: M,
        lease: Option<&str>,
    ) -> Result<R, RuntimeError>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        self.call(path, what, self.ask(message, lease)?, QUICK).await
    }

    /// Many messages there, many back. `None` when the blob is there already.
    pub(crate) async fn write<S>(
        &self,
        requests: S,
        lease: &str,
    ) -> Result<Option<tonic::Streaming<wire::WriteContentResponse>>, Status>
    where
        S: tokio_stream::Stream<Item = wire::WriteContentRequest> + Send + 'static,
    {
        let request = self.ask((), Some(lease)).map_err(|error| Status::internal(error.to_string()))?;
        let request = request.map(|()| requests);
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let codec = ProstCodec::<wire::WriteContentRequest, wire::WriteContentResponse>::default();
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
        match grpc.streaming(request, path, codec).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == tonic::Code::AlreadyExists => Ok(None),
            Err(status) => Err(status),
        }
    }

    /// What it can do.
    pub async fn inspect(&self) -> Result<Runtime, RuntimeError> {
        let path = "/containerd.services.version.v1.Version/Version";
        let version: wire::VersionResponse = self.quick(path, "ask for the version", (), None).await?;
        let filters = vec![
            format!("type==io.containerd.snapshotter.v1,id=={}", self.snapshotter),
            "type==io.containerd.content.v1".to_string(),
            "type==io.containerd.grpc.v1,id==cri".to_string(),
        ];
        let path = "/containerd.services.introspection.v1.Introspection/Plugins";
        let request = wire::PluginsRequest { filters };
        let answer: wire::PluginsResponse = self.quick(path, "ask for the plugins", request, None).await?;
        let find = |kind: &str| answer.plugins.iter().find(|plugin| plugin.kind == kind);
        let works = |plugin: &&wire::Plugin| plugin.init_err.as_ref().is_none_or(|error| error.code == 0);
        let root = |plugin: &wire::Plugin| plugin.exports.get("root").map(PathBuf::from);
        let snapshotter = find("io.containerd.snapshotter.v1");
        if snapshotter.filter(works).is_none() {
            let why =
                snapshotter.and_then(|plugin| plugin.init_err.as_ref()).map_or("not there", |error| &error.message);
            let what = format!("snapshotter `{}`", self.snapshotter);
            return Err(RuntimeError::Refused { what, why: why.to_string() });
        }
        Ok(Runtime {
            version: version.version,
            cri: find("io.containerd.grpc.v1").filter(works).is_some(),
            snapshots: snapshotter.and_then(root),
            content: find("io.containerd.content.v1").and_then(root),
        })
    }

    /// Has CRI pull an image, through whatever mirrors containerd is told of, and unpack it; gives its id. Giving up
    /// cancels the pull.
    pub async fn cri_pull(&self, reference: &str, limit: Duration) -> Result<String, RuntimeError> {
        let image = Some(wire::ImageSpec { image: reference.to_string() });
        let request = Request::new(wire::ImageSpecRequest { image });
        let path = "/runtime.v1.ImageService/PullImage";
        let answer: wire::PullImageResponse = self.call(path, &format!("pull {reference}"), request, limit).await?;
        Ok(answer.image_ref)
    }

    /// An image's record.
    pub async fn image(&self, name: &str) -> Result<Option<(Descriptor, Labels)>, RuntimeError> {
        let path = "/containerd.services.images.v1.Images/Get";
        let request = wire::ImageNameRequest { name: name.to_string() };
        let answer: Result<wire::ImageMessage, _> = self.quick(path, name, request, None).await;
        match answer {
            Err(RuntimeError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(message) => {
                let image = message.image.unwrap_or_default();
                Ok(image.target.map(|target| (Descriptor::from(target), image.labels)))
            }
        }
    }

    /// Makes an image's record, or points it elsewhere.
    pub(crate) async fn record(&self, name: &str, target: &Descriptor, lease: &str) -> Result<(), RuntimeError> {
        let image = wire::Image { name: name.to_string(), labels: Labels::new(), target: Some(target.to_wire()) };
        let path = "/containerd.services.images.v1.Images/Create";
        let request = wire::ImageMessage { image: Some(image.clone()) };
        let made: Result<wire::ImageMessage, _> = self.quick(path, name, request, Some(lease)).await;
        if made.is_ok() {
            return Ok(());
        }
        let update_mask = Some(wire::FieldMask { paths: vec!["target".into()] });
        let request = wire::UpdateImageRequest { image: Some(image), update_mask };
        let path = "/containerd.services.images.v1.Images/Update";
        self.quick::<_, wire::ImageMessage>(path, name, request, Some(lease)).await.map(drop)
    }

    /// Sets one label of an image's record; an empty value takes it away.
    pub(crate) async fn label(&self, name: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let labels = Labels::from([(key.to_string(), value.to_string())]);
        let image = Some(wire::Image { name: name.to_string(), labels, target: None });
        let update_mask = Some(wire::FieldMask { paths: vec![format!("labels.{key}")] });
        let path = "/containerd.services.images.v1.Images/Update";
        let request = wire::UpdateImageRequest { image, update_mask };
        self.quick::<_, wire::ImageMessage>(path, name, request, None).await.map(drop)
    }

    /// A blob's record.
    pub(crate) async fn info(&self, digest: &str) -> Result<Option<wire::Info>, RuntimeError> {
        let path = "/containerd.services.content.v1.Content/Info";
        let request = wire::InfoRequest { digest: digest.to_string() };
        match self.quick::<_, wire::InfoResponse>(path, digest, request, None).await {
            Err(RuntimeError::Missing { .. }) => Ok(None),
            other => other.map(|answer| answer.info),
        }
    }

    /// Sets one label of a blob.
    pub(crate) async fn label_blob(&self, digest: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let labels = Labels::from([(key.to_string(), value.to_string())]);
        let info = Some(wire::Info { digest: digest.to_string(), size: 0, labels });
        let update_mask = Some(wire::FieldMask { paths: vec![format!("labels.{key}")] });
        let path = "/containerd.services.content.v1.Content/Update";
        let request = wire::UpdateContentRequest { info, update_mask };
        self.quick::<_, wire::InfoResponse>(path, digest, request, None).await.map(drop)
    }

    /// A small blob, whole.
    pub(crate) async fn read(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let request = self.ask(wire::ReadContentRequest { digest: digest.to_string() }, None)?;
        let exchange = async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<wire::ReadContentRequest, wire::ReadContentResponse>::default();
            let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
            let mut stream = grpc.server_streaming(request, path, codec).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                if bytes.len() + part.data.len() > SMALL_BYTES_MAX {
                    return Err(Status::out_of_range("larger than a manifest may be"));
                }
                bytes.extend_from_slice(&part.data);
            }
            Ok::<_, Status>(bytes)
        };
        match tokio::time::timeout(QUICK, exchange).await {
            Ok(read) => read.map_err(|status| self.fault(digest, &status)),
            Err(_) => Err(RuntimeError::Late { what: digest.to_string() }),
        }
    }

    /// Whether a snapshot is committed.
    pub(crate) async fn is_committed(&self, key: &str) -> Result<bool, RuntimeError> {
        let path = "/containerd.services.snapshots.v1.Snapshots/Stat";
        let request = wire::SnapshotKeyRequest { snapshotter: self.snapshotter.clone(), key: key.to_string() };
        match self.quick::<_, wire::StatSnapshotResponse>(path, key, request, None).await {
            Err(RuntimeError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
            Ok(answer) => Ok(answer.info.is_some_and(|info| info.kind == wire::SNAPSHOT_COMMITTED)),
        }
    }
}
