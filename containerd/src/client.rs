//! The connection to containerd and its single calls.
//!
//! Invariant: every call has a deadline. The first call connects, and a call after a broken connection reconnects.

use crate::error::RuntimeError;
use crate::image::{DOCUMENT_BYTES_MAX, Descriptor};
use crate::wire;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

/// Deadline of a connection attempt, and of a call that only reads or writes records.
const RECORD_TIMEOUT: Duration = Duration::from_secs(20);

/// What a containerd offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The release of containerd.
    pub version: String,
    /// Whether the socket serves CRI's image service.
    pub has_cri: bool,
    /// The folder of the snapshotter's unpacked layers, if the snapshotter publishes it.
    pub snapshot_dir: Option<PathBuf>,
    /// The folder of blobs, if containerd publishes it.
    pub content_dir: Option<PathBuf>,
}

/// A containerd at a socket, with one namespace and one snapshotter.
#[derive(Clone, Debug)]
pub struct Containerd {
    socket: PathBuf,
    namespace: String,
    snapshotter: String,
    channel: Channel,
}

impl Containerd {
    /// Returns a client. The first call connects. The caller must be in a tokio runtime.
    pub fn new(socket: &Path, namespace: &str, snapshotter: &str) -> Self {
        let path = socket.to_path_buf();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // Tonic needs a URI, but the connector ignores its host.
        let endpoint = Endpoint::from_static("http://containerd.invalid").connect_timeout(RECORD_TIMEOUT);
        Self {
            socket: socket.to_path_buf(),
            namespace: namespace.to_string(),
            snapshotter: snapshotter.to_string(),
            channel: endpoint.connect_with_connector_lazy(connector),
        }
    }

    /// Returns the namespace of the images.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the name of the snapshotter that unpacks images.
    pub fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    fn failed(&self, action: &str, status: &Status) -> RuntimeError {
        RuntimeError::from_status(&self.socket, action, status)
    }

    /// Returns a request in our namespace, under `lease` if there is one.
    pub(crate) fn request<T>(&self, message: T, lease: Option<&str>) -> Result<Request<T>, RuntimeError> {
        let mut request = Request::new(message);
        let header = |value: &str| {
            MetadataValue::try_from(value)
                .map_err(|source| RuntimeError::InvalidHeader { value: value.to_string(), source })
        };
        request.metadata_mut().insert("containerd-namespace", header(&self.namespace)?);
        if let Some(lease) = lease {
            request.metadata_mut().insert("containerd-lease", header(lease)?);
        }
        Ok(request)
    }

    async fn ready(&self) -> Result<Grpc<Channel>, Status> {
        let mut grpc = Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(grpc)
    }

    /// Sends one message and returns the one answer, within `limit`.
    pub(crate) async fn unary_within<M, R>(
        &self,
        path: &'static str,
        action: &str,
        request: Request<M>,
        limit: Duration,
    ) -> Result<R, RuntimeError>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        let exchange = async {
            let codec = ProstCodec::<M, R>::default();
            let answer = self.ready().await?.unary(request, PathAndQuery::from_static(path), codec).await?;
            Ok::<R, Status>(answer.into_inner())
        };
        match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer.map_err(|status| self.failed(action, &status)),
            Err(_) => Err(RuntimeError::Timeout { action: action.to_string() }),
        }
    }

    /// Sends one message about records and returns the one answer.
    pub(crate) async fn unary<M, R>(
        &self,
        path: &'static str,
        action: &str,
        message: M,
        lease: Option<&str>,
    ) -> Result<R, RuntimeError>
    where
        M: Message + Send + Sync + 'static,
        R: Message + Default + Send + Sync + 'static,
    {
        self.unary_within(path, action, self.request(message, lease)?, RECORD_TIMEOUT).await
    }

    /// Opens the write of a blob: a stream of messages each way.
    pub(crate) async fn open_write<S>(
        &self,
        action: &str,
        requests: S,
        lease: &str,
    ) -> Result<WriteAnswers, RuntimeError>
    where
        S: tokio_stream::Stream<Item = wire::WriteContentRequest> + Send + 'static,
    {
        let request = self.request((), Some(lease))?.map(|()| requests);
        let codec = ProstCodec::<wire::WriteContentRequest, wire::WriteContentResponse>::default();
        let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Write");
        let opened = match self.ready().await {
            Ok(mut grpc) => grpc.streaming(request, path, codec).await,
            Err(status) => Err(status),
        };
        let stream = opened.map_err(|status| self.failed(action, &status))?.into_inner();
        Ok(WriteAnswers { stream, socket: self.socket.clone(), action: action.to_string() })
    }

    /// Returns what containerd offers.
    ///
    /// # Errors
    /// Fails if containerd fails or if the snapshotter does not work.
    pub async fn inspect(&self) -> Result<Runtime, RuntimeError> {
        let path = "/containerd.services.version.v1.Version/Version";
        let version: wire::VersionResponse = self.unary(path, "read containerd's version", (), None).await?;
        let filters = vec![
            format!("type==io.containerd.snapshotter.v1,id=={}", self.snapshotter),
            "type==io.containerd.content.v1".to_string(),
            "type==io.containerd.grpc.v1,id==cri".to_string(),
        ];
        let path = "/containerd.services.introspection.v1.Introspection/Plugins";
        let request = wire::PluginsRequest { filters };
        let answer: wire::PluginsResponse = self.unary(path, "list containerd's plugins", request, None).await?;
        let find = |kind: &str| answer.plugins.iter().find(|plugin| plugin.kind == kind);
        let works = |plugin: &&wire::Plugin| plugin.init_err.as_ref().is_none_or(|error| error.code == 0);
        let root = |plugin: &wire::Plugin| plugin.exports.get("root").map(PathBuf::from);
        let snapshotter = find("io.containerd.snapshotter.v1");
        if snapshotter.filter(works).is_none() {
            let error = snapshotter.and_then(|plugin| plugin.init_err.as_ref());
            let reason = error.map_or("containerd does not have it", |error| &error.message).to_string();
            return Err(RuntimeError::Failed { action: format!("use snapshotter `{}`", self.snapshotter), reason });
        }
        Ok(Runtime {
            version: version.version,
            has_cri: find("io.containerd.grpc.v1").filter(works).is_some(),
            snapshot_dir: snapshotter.and_then(root),
            content_dir: find("io.containerd.content.v1").and_then(root),
        })
    }

    /// Makes CRI pull and unpack an image through the registries that containerd is configured for. Returns the image's
    /// id.
    ///
    /// Dropping the future cancels the pull.
    ///
    /// # Errors
    /// Fails if containerd fails or if the pull takes longer than `limit`.
    pub async fn cri_pull(&self, reference: &str, limit: Duration) -> Result<String, RuntimeError> {
        let image = Some(wire::ImageSpec { image: reference.to_string() });
        // CRI has its own namespace and takes no lease.
        let request = Request::new(wire::ImageSpecRequest { image });
        let path = "/runtime.v1.ImageService/PullImage";
        let action = format!("pull {reference}");
        let answer: wire::PullImageResponse = self.unary_within(path, &action, request, limit).await?;
        Ok(answer.image_ref)
    }

    async fn read_image(&self, image: &str) -> Result<Option<wire::Image>, RuntimeError> {
        let path = "/containerd.services.images.v1.Images/Get";
        let action = format!("read the record of image {image}");
        let request = wire::ImageNameRequest { name: image.to_string() };
        match self.unary::<_, wire::ImageMessage>(path, &action, request, None).await {
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            answer => answer.map(|message| message.image),
        }
    }

    /// Updates the fields of `paths` in an image's record. `image` must be the whole record: containerd 2 reads its
    /// descriptor whatever the mask says, and ends if there is none.
    async fn update_image(
        &self,
        image: wire::Image,
        paths: Vec<String>,
        lease: Option<&str>,
    ) -> Result<(), RuntimeError> {
        let path = "/containerd.services.images.v1.Images/Update";
        let action = format!("update the record of image {}", image.name);
        let request = wire::UpdateImageRequest { image: Some(image), update_mask: Some(wire::FieldMask { paths }) };
        self.unary::<_, wire::ImageMessage>(path, &action, request, lease).await.map(drop)
    }

    /// Returns the descriptor in an image's record, or `None` without a record.
    pub(crate) async fn image_record(&self, image: &str) -> Result<Option<Descriptor>, RuntimeError> {
        Ok(self.read_image(image).await?.and_then(|image| image.target).map(Descriptor::from))
    }

    /// Creates an image's record, or updates its descriptor.
    pub(crate) async fn put_image_record(
        &self,
        image: &str,
        target: &Descriptor,
        lease: &str,
    ) -> Result<(), RuntimeError> {
        let record = wire::Image { name: image.to_string(), target: Some(target.to_wire()), ..wire::Image::default() };
        let path = "/containerd.services.images.v1.Images/Create";
        let action = format!("write the record of image {image}");
        let request = wire::ImageMessage { image: Some(record.clone()) };
        match self.unary::<_, wire::ImageMessage>(path, &action, request, Some(lease)).await {
            Err(RuntimeError::AlreadyExists { .. }) => {}
            created => return created.map(drop),
        }
        let former = self.read_image(image).await?.unwrap_or_default();
        let record = wire::Image { name: record.name, target: record.target, ..former };
        self.update_image(record, vec!["target".into()], Some(lease)).await
    }

    /// Sets one label of an image's record. An empty value removes the label.
    pub(crate) async fn label_image(&self, image: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let missing = || RuntimeError::NotFound { action: format!("label image {image}") };
        let mut record = self.read_image(image).await?.filter(|record| record.target.is_some()).ok_or_else(missing)?;
        record.labels.insert(key.to_string(), value.to_string());
        self.update_image(record, vec![format!("labels.{key}")], None).await
    }

    async fn blob_info(&self, digest: &str) -> Result<Option<wire::Info>, RuntimeError> {
        let path = "/containerd.services.content.v1.Content/Info";
        let request = wire::InfoRequest { digest: digest.to_string() };
        match self.unary::<_, wire::InfoResponse>(path, &format!("look up blob {digest}"), request, None).await {
            Err(RuntimeError::NotFound { .. }) => Ok(None),
            answer => answer.map(|found| found.info),
        }
    }

    /// Whether containerd has a whole blob.
    pub(crate) async fn has_blob(&self, digest: &str) -> Result<bool, RuntimeError> {
        Ok(self.blob_info(digest).await?.is_some())
    }

    /// Sets one label of a blob.
    pub(crate) async fn label_blob(&self, digest: &str, key: &str, value: &str) -> Result<(), RuntimeError> {
        let action = format!("label blob {digest}");
        let missing = || RuntimeError::NotFound { action: action.clone() };
        let mut info = self.blob_info(digest).await?.ok_or_else(missing)?;
        info.labels.insert(key.to_string(), value.to_string());
        let update_mask = Some(wire::FieldMask { paths: vec![format!("labels.{key}")] });
        let path = "/containerd.services.content.v1.Content/Update";
        let request = wire::UpdateContentRequest { info: Some(info), update_mask };
        self.unary::<_, wire::InfoResponse>(path, &action, request, None).await.map(drop)
    }

    /// Returns a whole blob of at most [`DOCUMENT_BYTES_MAX`] bytes.
    pub(crate) async fn read_blob(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let action = format!("read blob {digest}");
        let request = self.request(wire::ReadContentRequest { digest: digest.to_string() }, None)?;
        let exchange = async {
            let codec = ProstCodec::<wire::ReadContentRequest, wire::ReadContentResponse>::default();
            let path = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
            let mut stream = self.ready().await?.server_streaming(request, path, codec).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                if (bytes.len() + part.data.len()) as u64 > DOCUMENT_BYTES_MAX {
                    return Err(Status::out_of_range(format!("it has more than {DOCUMENT_BYTES_MAX} bytes")));
                }
                bytes.extend_from_slice(&part.data);
            }
            Ok::<_, Status>(bytes)
        };
        match tokio::time::timeout(RECORD_TIMEOUT, exchange).await {
            Ok(read) => read.map_err(|status| self.failed(&action, &status)),
            Err(_) => Err(RuntimeError::Timeout { action }),
        }
    }

    /// Whether a snapshot is committed.
    pub(crate) async fn is_committed(&self, key: &str) -> Result<bool, RuntimeError> {
        let path = "/containerd.services.snapshots.v1.Snapshots/Stat";
        let request = wire::SnapshotKeyRequest { snapshotter: self.snapshotter.clone(), key: key.to_string() };
        let action = format!("look up snapshot {key}");
        match self.unary::<_, wire::StatSnapshotResponse>(path, &action, request, None).await {
            Err(RuntimeError::NotFound { .. }) => Ok(false),
            answer => answer.map(|found| found.info.is_some_and(|info| info.kind == wire::SNAPSHOT_COMMITTED)),
        }
    }
}

/// The answers to the messages of one open write.
pub(crate) struct WriteAnswers {
    stream: tonic::Streaming<wire::WriteContentResponse>,
    socket: PathBuf,
    action: String,
}

impl WriteAnswers {
    /// Returns the next answer, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<wire::WriteContentResponse>, RuntimeError> {
        let answer = self.stream.message().await;
        answer.map_err(|status| RuntimeError::from_status(&self.socket, &self.action, &status))
    }

    /// Returns the error for a stream that ended before the commit.
    pub(crate) fn ended_early(&self) -> RuntimeError {
        let reason = "containerd ended a write before its commit".to_string();
        RuntimeError::Unreachable { socket: self.socket.clone(), reason }
    }
}
