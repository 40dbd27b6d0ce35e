//! From a request to its answer, as the OCI Distribution API has it.
//!
//! Invariant: what is not here is answered 404 and what cannot be had now 503, both at once, so that the puller goes on
//! to the registry; the head of an answer is sent only when the body's first piece was read and found right.

use super::body::{self, Answer};
use super::request::{Ask, By, Span, parse, span};

use super::{Mirror, Outcome, What};
use crate::images::{Blob, PieceFault};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use shoal_proto::image::{Digest, OCI_INDEX, is_manifest};
use std::convert::Infallible;

/// An answer and what is counted of it.
type Answered = (What, Outcome, Response<Answer>);

fn plain(status: StatusCode, kind: &'static str, bytes: Bytes) -> Response<Answer> {
    let mut response = Response::new(Answer::Bytes(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// An error in the API's form.
fn error(status: StatusCode, code: &str, message: &str) -> Response<Answer> {
    let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    plain(status, "application/json", body.to_string().into())
}

fn missing(what: What, code: &str) -> Answered {
    (what, Outcome::Miss, error(StatusCode::NOT_FOUND, code, "not here"))
}

fn unavailable(what: What, why: &str) -> Answered {
    (what, Outcome::Unavailable, error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", why))
}

impl Mirror {
    /// Answers a request.
    pub(super) async fn serve<B>(&self, request: Request<B>) -> Result<Response<Answer>, Infallible> {
        let head = request.method() == Method::HEAD;
        let (what, outcome, mut response) = if head || request.method() == Method::GET {
            self.answer(&request).await
        } else {
            let mut refused = error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "the mirror is only read from");
            refused.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            (What::Other, Outcome::Refused, refused)
        };
        self.counters.count(what, outcome);
        tracing::debug!(method = %request.method(), uri = %request.uri(), status = %response.status(), "mirror");
        let version = HeaderValue::from_static("registry/2.0");
        response.headers_mut().insert("docker-distribution-api-version", version);
        if head {
            let len = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(len));
            *response.body_mut() = Answer::Empty;
        }
        Ok(response)
    }

    async fn answer<B>(&self, request: &Request<B>) -> Answered {
        let uri = request.uri();
        let Some(ask) = parse(uri.path(), uri.query()) else { return missing(What::Other, "NAME_UNKNOWN") };
        if !self.health.is_well() {
            return unavailable(What::Other, "the daemon is busy");
        }
        match ask {
            Ask::Base => {
                (What::Base, Outcome::Hit, plain(StatusCode::OK, "application/json", Bytes::from_static(b"{}")))
            }
            Ask::Manifest { name, by } => {
                let digest = match &by {
                    By::Digest(digest) => Some(*digest),
                    By::Tag(tag) => self.images.tagged(&name, tag),
                };
                let digest = match digest.filter(|digest| self.images.blob(digest).is_some()) {
                    None => self.fetch(&name, &by).await,
                    found => found,
                };
                let blob =
                    digest.and_then(|digest| self.images.blob(&digest)).filter(|blob| is_manifest(&blob.media_type));
                let Some(blob) = blob else { return missing(What::Manifest, "MANIFEST_UNKNOWN") };
                self.asked.record(blob.digest);
                let kind = HeaderValue::from_str(&blob.media_type);
                let kind = kind.unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
                self.send(What::Manifest, request, blob, kind).await
            }
            Ask::Blob(digest) => {
                let Some(blob) = self.images.blob(&digest) else { return missing(What::Blob, "BLOB_UNKNOWN") };
                self.send(What::Blob, request, blob, HeaderValue::from_static("application/octet-stream")).await
            }
            Ask::Referrers(subject) => self.referrers(subject).await,
        }
    }

    /// What here refers to a manifest. That there is more elsewhere is not known: with nothing here, the puller asks its
    /// registry.
    async fn referrers(&self, subject: Digest) -> Answered {
        let images = self.images.clone();
        let found = tokio::task::spawn_blocking(move || images.referrers(&subject)).await.unwrap_or_default();
        if found.is_empty() {
            return missing(What::Referrers, "MANIFEST_UNKNOWN");
        }
        let body = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        (What::Referrers, Outcome::Hit, plain(StatusCode::OK, OCI_INDEX, body.to_string().into()))
    }

    /// Sends a blob or the part of it that is asked for.
    async fn send<B>(&self, what: What, request: &Request<B>, blob: Blob, kind: HeaderValue) -> Answered {
        let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok());
        let mut response = Response::new(Answer::Empty);
        let headers = response.headers_mut();
        let digest = blob.digest.to_string();
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        for (name, text) in [("docker-content-digest", digest.clone()), ("etag", format!("\"{digest}\""))] {
            if let Ok(value) = HeaderValue::from_str(&text) {
                headers.insert(name, value);
            }
        }
        let bounds = |text: String| HeaderValue::from_str(&text).ok();
        let (from, to) = match span(range, blob.size) {
            Span::Whole => (0, blob.size),
            Span::Part(from, to) => {
                headers.extend(
                    bounds(format!("bytes {from}-{}/{}", to - 1, blob.size)).map(|v| (header::CONTENT_RANGE, v)),
                );
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                (from, to)
            }
            Span::Outside => {
                let mut refused =
                    error(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", "no such bytes in the blob");
                refused
                    .headers_mut()
                    .extend(bounds(format!("bytes */{}", blob.size)).map(|v| (header::CONTENT_RANGE, v)));
                return (what, Outcome::Refused, refused);
            }
        };
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
        if request.method() == Method::HEAD || from == to {
            return (what, Outcome::Hit, response);
        }
        let permit = tokio::time::timeout(self.budget, self.streams.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return unavailable(what, "too many blobs are being sent") };
        let first = body::read(&blob, from, self.budget, &self.readers);
        let first = match tokio::time::timeout(self.budget, first).await {
            Ok(Ok(first)) => first,
            Ok(Err(PieceFault::NotHere)) | Err(_) => return missing(what, "BLOB_UNKNOWN"),
            Ok(Err(fault)) => {
                tracing::error!(%digest, %fault, "cannot serve a blob");
                return unavailable(what, "the blob cannot be read");
            }
        };
        let (counters, readers) = (self.counters.clone(), self.readers.clone());
        *response.body_mut() = body::stream(blob, (from, to), first, self.budget, counters, readers, permit);
        (what, Outcome::Hit, response)
    }
}

/// Reads away what a client sends with a request, so that the connection can be used on; nobody sends more than nothing.
pub(super) async fn without_body(request: Request<hyper::body::Incoming>) -> Option<Request<()>> {
    let (parts, body) = request.into_parts();
    let small = http_body_util::Limited::new(body, 1024);
    small.collect().await.ok().map(|_| Request::from_parts(parts, ()))
}
