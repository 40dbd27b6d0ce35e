//! Answers requests as the OCI Distribution API defines it.
//!
//! The mirror has the read side of the API: manifests, blobs, tags and referrers. A client takes each list for the
//! whole list, so a list of referrers that may be incomplete is a miss. Invariant: the mirror answers 404 at once for
//! an absent object, and 503 at once for one that it cannot serve at present. The client then continues with the
//! registry. The head of an answer is sent only after the first piece was read and verified.

use super::body::{Body, PieceReader};
use super::config::MirrorConfig;
use super::fetch_through::FetchThrough;
use super::metrics::{MirrorMetrics, Outcome, Target};
use super::request::{ManifestReference, MirrorRequest, NoObject, RequestedRange, parse, parse_range};
use crate::arrivals::Arrivals;
use crate::images::{Blob, Images, PieceError, RecentPulls, RepositoryName};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use shoal_proto::image::{Digest, OCI_INDEX, is_manifest};
use shoal_service::http_server::HostNames;
use shoal_service::metrics::Metrics;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Blobs sent at one time. Each has up to two pieces in memory.
const STREAMS_MAX: usize = 24;
/// Pieces read at one time.
const READS_MAX: usize = 4;
/// Tags in one answer. A client asks for the next ones.
const TAGS_MAX: usize = 1000;
/// Largest body of a request. A client has no reason to send any.
const REQUEST_BODY_MAX: usize = 1024;
/// The media type of blobs.
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// An answer, and how the metrics count it.
struct Answer {
    target: Target,
    outcome: Outcome,
    response: Response<Body>,
}

impl Answer {
    fn new(target: Target, outcome: Outcome, response: Response<Body>) -> Self {
        Self { target, outcome, response }
    }

    fn miss(target: Target, code: &str) -> Self {
        Self::new(target, Outcome::Miss, api_error(StatusCode::NOT_FOUND, code, "the mirror does not have it"))
    }

    fn unavailable(target: Target, message: &str) -> Self {
        let response = api_error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
        Self::new(target, Outcome::Unavailable, response)
    }
}

fn small_response(status: StatusCode, media_type: &'static str, bytes: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Bytes(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// Returns an error in the form of the OCI Distribution API.
fn api_error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    small_response(status, "application/json", body.to_string().into())
}

/// Inserts a header unless the value has characters that no header may have.
fn insert_text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Answers the requests of all connections. A page of another site that resolves its name to this host gets none
/// (DNS rebinding).
pub struct Handler {
    images: Images,
    arrivals: Arrivals,
    pulls: Arc<RecentPulls>,
    metrics: MirrorMetrics,
    max_wait: Duration,
    fetch_through: Option<FetchThrough>,
    streams: Arc<Semaphore>,
    reader: PieceReader,
    names: HostNames,
}

impl Handler {
    pub fn new(
        config: &MirrorConfig,
        images: Images,
        arrivals: Arrivals,
        pulls: Arc<RecentPulls>,
        fetch_through: Option<FetchThrough>,
        metrics: &Metrics,
    ) -> Self {
        let max_wait = config.max_wait.0;
        Self {
            images,
            pulls,
            metrics: MirrorMetrics::new(metrics),
            max_wait,
            fetch_through,
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            reader: PieceReader::new(arrivals.clone(), READS_MAX, max_wait),
            names: HostNames::new(&[]),
            arrivals,
        }
    }

    /// Answers a request. Refuses it if the daemon is not healthy.
    pub async fn handle<B>(&self, request: Request<B>, healthy: bool) -> Result<Response<Body>, Infallible> {
        let head = request.method() == Method::HEAD;
        let host = request.headers().get(header::HOST);
        let is_ours = host.is_none_or(|host| host.to_str().is_ok_and(|host| self.names.contain(host)));
        let Answer { target, outcome, mut response } = if !is_ours {
            let why = "the Host header names another server";
            Answer::new(Target::Other, Outcome::Refused, api_error(StatusCode::MISDIRECTED_REQUEST, "DENIED", why))
        } else if head || request.method() == Method::GET {
            self.answer(&request, healthy).await
        } else {
            let mut refused = api_error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the mirror is read-only");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            Answer::new(Target::Other, Outcome::Refused, refused)
        };
        self.metrics.count(target, outcome);
        let (method, uri, status) = (request.method(), request.uri(), response.status());
        tracing::debug!(%method, %uri, %status, "answered a request");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        let version = HeaderValue::from_static("registry/2.0");
        response.headers_mut().insert("docker-distribution-api-version", version);
        if head {
            let len = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
            if status != StatusCode::NOT_MODIFIED {
                response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(len));
            }
            *response.body_mut() = Body::Empty;
        }
        Ok(response)
    }

    async fn answer<B>(&self, request: &Request<B>, healthy: bool) -> Answer {
        let uri = request.uri();
        let parsed = match parse(uri.path(), uri.query()) {
            Ok(parsed) => parsed,
            Err(why @ NoObject::Limit) => {
                let refused = api_error(StatusCode::BAD_REQUEST, why.code(), "`n` is not a number of tags");
                return Answer::new(Target::Tags, Outcome::Refused, refused);
            }
            Err(why) => return Answer::miss(Target::Other, why.code()),
        };
        if !healthy {
            return Answer::unavailable(Target::Other, "the daemon is busy");
        }
        match parsed {
            MirrorRequest::Base => {
                let body = Bytes::from_static(b"{}");
                Answer::new(Target::Base, Outcome::Hit, small_response(StatusCode::OK, "application/json", body))
            }
            MirrorRequest::Manifest { name, reference } => self.manifest(request, &name, &reference).await,
            MirrorRequest::Blob(digest) => match self.images.blob(&digest) {
                Some(blob) => self.send(Target::Blob, request, blob, OCTETS).await,
                None => Answer::miss(Target::Blob, "BLOB_UNKNOWN"),
            },
            MirrorRequest::Referrers { subject, artifact_types } => self.referrers(subject, &artifact_types).await,
            MirrorRequest::Tags { name, limit, after } => self.tags(&name, limit, after.as_deref()),
        }
    }

    /// Answers with the tags of a repository in their order.
    fn tags(&self, name: &RepositoryName, limit: Option<usize>, after: Option<&str>) -> Answer {
        let Some(tags) = self.images.tags(name) else { return Answer::miss(Target::Tags, "NAME_UNKNOWN") };
        let mut tags: Vec<String> = tags.into_iter().filter(|tag| after.is_none_or(|after| &**tag > after)).collect();
        let limit = limit.unwrap_or(TAGS_MAX).min(TAGS_MAX);
        let has_more = tags.len() > limit;
        tags.truncate(limit);
        let body = serde_json::json!({ "name": name.path, "tags": tags });
        let mut response = small_response(StatusCode::OK, "application/json", body.to_string().into());
        if let Some(last) = tags.last().filter(|_| has_more) {
            let ns =
                name.registry.as_ref().map_or_else(String::new, |host| format!("&ns={}", host.replace(':', "%3A")));
            let next = format!("</v2/{}/tags/list?n={limit}&last={last}{ns}>; rel=\"next\"", name.path);
            insert_text(response.headers_mut(), header::LINK, &next);
        }
        Answer::new(Target::Tags, Outcome::Hit, response)
    }

    async fn manifest<B>(&self, request: &Request<B>, name: &RepositoryName, wanted: &ManifestReference) -> Answer {
        let digest = match (wanted.resolve(&self.images, name), &self.fetch_through) {
            (None, Some(through)) => through.fetch(&self.images, &self.arrivals, name, wanted, self.max_wait).await,
            (found, _) => found,
        };
        let blob = digest.and_then(|digest| self.images.blob(&digest));
        let Some(blob) = blob.filter(|blob| is_manifest(&blob.media_type)) else {
            let is_known = self.images.has_repository(name);
            return Answer::miss(Target::Manifest, if is_known { "MANIFEST_UNKNOWN" } else { "NAME_UNKNOWN" });
        };
        self.pulls.record(blob.digest);
        let media_type = HeaderValue::from_str(&blob.media_type).unwrap_or(OCTETS);
        self.send(Target::Manifest, request, blob, media_type).await
    }

    /// Answers with the stored manifests that refer to a manifest, of the wanted types.
    ///
    /// Without any, or if the registry may have others, the answer is a miss, and the client asks the registry.
    async fn referrers(&self, subject: Digest, artifact_types: &[String]) -> Answer {
        let images = self.images.clone();
        let found = tokio::task::spawn_blocking(move || images.referrers(&subject)).await.ok().flatten();
        let Some(mut found) = found else { return Answer::miss(Target::Referrers, "MANIFEST_UNKNOWN") };
        let is_wanted = |row: &Value| artifact_types.iter().any(|kind| row["artifactType"] == **kind);
        found.retain(|row| artifact_types.is_empty() || is_wanted(row));
        let body = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        let mut response = small_response(StatusCode::OK, OCI_INDEX, body.to_string().into());
        if !artifact_types.is_empty() {
            response.headers_mut().insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
        }
        Answer::new(Target::Referrers, Outcome::Hit, response)
    }

    /// Sends a blob, or the requested range of it.
    async fn send<B>(&self, target: Target, request: &Request<B>, blob: Blob, media_type: HeaderValue) -> Answer {
        let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let mut response = Response::new(Body::Empty);
        let headers = response.headers_mut();
        let digest = blob.digest.to_string();
        headers.insert(header::CONTENT_TYPE, media_type);
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        insert_text(headers, HeaderName::from_static("docker-content-digest"), &digest);
        insert_text(headers, header::ETAG, &format!("\"{digest}\""));
        if is_known_to(request.headers(), &digest) {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return Answer::new(target, Outcome::Hit, response);
        }
        let (from, to) = match parse_range(range, blob.size) {
            RequestedRange::Whole => (0, blob.size),
            RequestedRange::Part { from, to } => {
                insert_text(headers, header::CONTENT_RANGE, &format!("bytes {from}-{}/{}", to - 1, blob.size));
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                (from, to)
            }
            RequestedRange::Outside => {
                let status = StatusCode::RANGE_NOT_SATISFIABLE;
                let mut refused = api_error(status, "RANGE_INVALID", "the range is outside the blob");
                insert_text(refused.headers_mut(), header::CONTENT_RANGE, &format!("bytes */{}", blob.size));
                return Answer::new(target, Outcome::Refused, refused);
            }
        };
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
        if request.method() == Method::HEAD || from == to {
            return Answer::new(target, Outcome::Hit, response);
        }
        let permit = tokio::time::timeout(self.max_wait, self.streams.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Answer::unavailable(target, "the mirror sends too many blobs") };
        let first = match tokio::time::timeout(self.max_wait, self.reader.read(&blob, from)).await {
            Ok(Ok(first)) => first,
            Ok(Err(PieceError::NotHere)) | Err(_) => return Answer::miss(target, "BLOB_UNKNOWN"),
            Ok(Err(error)) => {
                tracing::error!(%digest, %error, "cannot serve a blob");
                return Answer::unavailable(target, "the blob cannot be read");
            }
        };
        let reader = self.reader.clone();
        *response.body_mut() = reader.stream(blob, (from, to), first, self.metrics.clone(), permit);
        Answer::new(target, Outcome::Hit, response)
    }
}

/// Whether a client has the bytes of a digest: `If-None-Match` names it (RFC 9110, section 13.1.2).
fn is_known_to(headers: &HeaderMap, digest: &str) -> bool {
    let lists = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let mut tags = lists.flat_map(|list| list.split(',')).map(str::trim);
    tags.any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"') == digest)
}

/// Reads and drops the body of a request, so that the connection can be reused. Returns `None` if the body is too
/// large.
pub async fn discard_body(request: Request<hyper::body::Incoming>) -> Option<Request<()>> {
    let (parts, body) = request.into_parts();
    let bounded = http_body_util::Limited::new(body, REQUEST_BODY_MAX);
    bounded.collect().await.ok().map(|_| Request::from_parts(parts, ()))
}
