//! Feeds over HTTP: a version with its ETag, a long poll for the next one, a stream of versions as they come.
//!
//! Invariant: whoever waits holds one of a bounded number of places, and a slow reader skips versions instead of having
//! them queued.

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

/// Readers that wait for versions at a time, polls and streams together. Below the connections one address may have.
const READERS_MAX: usize = 48;
/// Longest wait of a poll.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A stream says something at least this often.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Bytes of a large version read from its file at a time.
const READ_BYTES: usize = 256 * 1024;

#[derive(Clone)]
struct Api {
    shelf: LatestVersions,
    places: Arc<Semaphore>,
}

fn event_of(version: &FeedVersion) -> VersionEvent {
    let text = match &version.data {
        FeedData::Memory(data) if version.size <= INLINE_DATA_BYTES_MAX => String::from_utf8(data.to_vec()).ok(),
        _ => None,
    };
    let (feed, sequence) = (version.name.clone(), version.sequence);
    VersionEvent { feed, sequence, published_at_ms: version.published_at_ms, size: version.size, text }
}

/// The routes.
pub fn routes(shelf: LatestVersions) -> Routes {
    let api = Api { shelf, places: Arc::new(Semaphore::new(READERS_MAX)) };
    Routes::new().get("/feeds", list).get("/feeds/{*path}", read).with_state(api)
}

async fn list(State(api): State<Api>) -> Json<FeedListing> {
    Json(FeedListing { feeds: api.shelf.all(), refused: api.shelf.refused() })
}

async fn read(
    State(api): State<Api>,
    PathParam(path): PathParam<String>,
    QueryParams(asked): QueryParams<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if let Some(name) = path.strip_suffix("/events") {
        return events(&api, name, &asked, &headers);
    }
    let etag = headers.get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
    let seen = etag.and_then(|tag| tag.trim_start_matches("W/").trim_matches('"').parse().ok());
    let after = asked.after.or(seen);
    let found = match asked.wait {
        None => api.shelf.get(&path),
        Some(wait) => {
            let _place = place(&api)?;
            let mut follower = api.shelf.follow(&path, after.unwrap_or(0));
            match tokio::time::timeout(wait.0.min(WAIT_MAX), follower.next()).await {
                Ok(version) => Some(version),
                Err(_) => api.shelf.get(&path),
            }
        }
    };
    let version = found.ok_or_else(|| ApiError::not_found(format!("no version of the feed `{path}` is here")))?;
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
            let what = format!("the feed `{}` is here in pieces only", version.name);
            return Err(ApiError::new(StatusCode::CONFLICT, what, "it is large", "read it on a host"));
        }
    })
}

/// A file's bytes as the reader takes them.
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

fn place(api: &Api) -> Result<OwnedSemaphorePermit, ApiError> {
    api.places.clone().try_acquire_owned().map_err(|_| {
        let why = format!("{READERS_MAX} readers wait already");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "cannot wait for a version", why, "share one stream among them")
    })
}

/// The newest version at once, unless the reader has it, then each newer one that comes; readers that do not keep up skip some.
fn events(api: &Api, name: &str, asked: &ReadQuery, headers: &HeaderMap) -> Result<Response, ApiError> {
    let place = place(api)?;
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).and_then(|id| id.parse().ok());
    let (follower, lines) = (api.shelf.follow(name, asked.after.or(last).unwrap_or(0)), asked.lines);
    let told = stream::unfold((follower, place), move |(mut follower, place)| async move {
        let told = match tokio::time::timeout(HEARTBEAT, follower.next()).await {
            Ok(version) => event(&version, lines),
            Err(_) => Ok(Bytes::from_static(if lines { b"\n" } else { b":\n\n" })),
        };
        Some((told, (follower, place)))
    });
    let kind = if lines { "application/x-ndjson" } else { "text/event-stream" };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(told)).into_response())
}

fn event(version: &FeedVersion, lines: bool) -> Result<Bytes, serde_json::Error> {
    let told = serde_json::to_string(&event_of(version))?;
    let text =
        if lines { format!("{told}\n") } else { format!("id: {}\nevent: version\ndata: {told}\n\n", version.sequence) };
    Ok(text.into())
}
