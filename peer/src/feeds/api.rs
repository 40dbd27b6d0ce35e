//! Feeds over HTTP: a version with its ETag, a long poll for the next version, and a stream of versions.
//!
//! Invariant: the number of waiting readers is bounded, and a slow reader skips versions instead of queueing them.

use super::latest::LatestVersions;
use super::version::{FeedData, FeedVersion};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use shoal_api::feeds::{FeedListing, FeedVersion as VersionEvent, ReadQuery};
use shoal_proto::limits::INLINE_DATA_BYTES_MAX;
use shoal_service::extract::{PathParam, QueryParams};
use shoal_service::http_server::ApiError;
use shoal_service::routes::Routes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Readers that wait at one time, long polls and streams together. Below the connections that one address may have.
const READERS_MAX: usize = 48;
/// Longest wait of a long poll.
const POLL_MAX: Duration = Duration::from_secs(60);
/// Longest silence of a stream. Without a version it sends an empty line.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bytes of one read from the file of a large version.
const READ_BYTES: usize = 256 * 1024;

#[derive(Clone)]
struct Api {
    latest: LatestVersions,
    reader_permits: Arc<Semaphore>,
}

fn event_of(version: &FeedVersion) -> VersionEvent {
    // Only small versions that are text fit into a line.
    let text = match &version.data {
        FeedData::Memory(data) if version.size <= INLINE_DATA_BYTES_MAX => String::from_utf8(data.to_vec()).ok(),
        _ => None,
    };
    let (feed, sequence) = (version.name.clone(), version.sequence);
    VersionEvent { feed, sequence, published_at_ms: version.published_at_ms, size: version.size, text }
}

/// Returns the routes of feeds.
pub fn routes(latest: LatestVersions) -> Routes {
    let api = Api { latest, reader_permits: Arc::new(Semaphore::new(READERS_MAX)) };
    Routes::new().get("/feeds", list).get("/feeds/{*path}", read).with_state(api)
}

async fn list(State(api): State<Api>) -> Json<FeedListing> {
    Json(FeedListing { feeds: api.latest.all(), refused: api.latest.refused() })
}

async fn read(
    State(api): State<Api>,
    PathParam(path): PathParam<String>,
    QueryParams(query): QueryParams<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(name) = path.strip_suffix("/events") {
        return events(&api, name, &query, &headers);
    }
    let etag = headers.get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
    let seen = etag.and_then(|tag| tag.trim_start_matches("W/").trim_matches('"').parse().ok());
    let after = query.after.or(seen);
    let found = match query.wait {
        None => api.latest.get(&path),
        Some(wait) => {
            let _permit = reader_permit(&api)?;
            let mut follower = api.latest.follow(&path, after.unwrap_or(0));
            match tokio::time::timeout(wait.0.min(POLL_MAX), follower.next()).await {
                Ok(version) => Some(version),
                Err(_) => api.latest.get(&path),
            }
        }
    };
    let version = found.ok_or_else(|| ApiError::not_found(format!("this host has no version of the feed `{path}`")))?;
    if after.is_some_and(|after| version.sequence <= after) {
        return Ok((StatusCode::NOT_MODIFIED, tags(&version)).into_response());
    }
    Ok((tags(&version), body(&version)?).into_response())
}

fn tags(version: &FeedVersion) -> [(header::HeaderName, String); 3] {
    [
        (header::ETAG, format!("\"{}\"", version.sequence)),
        (header::CONTENT_TYPE, "application/octet-stream".into()),
        (header::HeaderName::from_static("x-shoal-published-at-ms"), version.published_at_ms.to_string()),
    ]
}

fn body(version: &FeedVersion) -> Result<Body, ApiError> {
    Ok(match &version.data {
        FeedData::Memory(data) => Body::from(data.clone()),
        FeedData::File(file) => stream_file(file.clone(), version.size),
        FeedData::Store => {
            let what = format!("cannot read the feed `{}` here", version.name);
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                what,
                "a seeder stores a large version as pieces only",
                "read it on a host",
            ));
        }
    })
}

/// Streams a file as fast as the reader reads.
fn stream_file(file: Arc<File>, size: u64) -> Body {
    let parts = stream::try_unfold(0u64, move |at| {
        let file = file.clone();
        async move {
            if at >= size {
                return Ok::<_, std::io::Error>(None);
            }
            let len = READ_BYTES.min((size - at) as usize);
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = vec![0; len];
                file.read_exact_at(&mut bytes, at).map(|()| bytes)
            });
            let bytes = read.await.map_err(std::io::Error::other)??;
            Ok(Some((Bytes::from(bytes), at + len as u64)))
        }
    });
    Body::from_stream(parts)
}

fn reader_permit(api: &Api) -> Result<OwnedSemaphorePermit, ApiError> {
    api.reader_permits.clone().try_acquire_owned().map_err(|_| {
        let why = format!("{READERS_MAX} readers already wait");
        ApiError::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "cannot wait for a version",
            why,
            "share one stream among several readers",
        )
    })
}

/// Streams the newest version, unless the reader has it, and then each newer one. A slow reader skips versions.
fn events(api: &Api, name: &str, query: &ReadQuery, headers: &HeaderMap) -> Result<Response, ApiError> {
    let permit = reader_permit(api)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
    let (follower, lines) = (api.latest.follow(name, query.after.or(last).unwrap_or(0)), query.lines);
    let events = stream::unfold((follower, permit), move |(mut follower, permit)| async move {
        let next = match tokio::time::timeout(HEARTBEAT, follower.next()).await {
            Ok(version) => event(&version, lines),
            Err(_) => Ok(Bytes::from_static(if lines { b"\n" } else { b":\n\n" })),
        };
        Some((next, (follower, permit)))
    });
    let kind = if lines { "application/x-ndjson" } else { "text/event-stream" };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(events)).into_response())
}

fn event(version: &FeedVersion, lines: bool) -> Result<Bytes, serde_json::Error> {
    let json = serde_json::to_string(&event_of(version))?;
    let text =
        if lines { format!("{json}\n") } else { format!("id: {}\nevent: version\ndata: {json}\n\n", version.sequence) };
    Ok(text.into())
}
