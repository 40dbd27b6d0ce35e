//! The task that answers hosts on the control plane.
//!
//! Invariant: one slow seeder delays no other answer, because requests for images have a task each, at most
//! [`IMAGE_REQUESTS_MAX`] of them.

use crate::sessions::ImageRequest;
use crate::state::TrackerState;
use shoal_net::control::{ControlEvent, ControlHandle};
use shoal_proto::control::{Request, Response};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Requests for images that wait for a seeder's answer.
const IMAGE_REQUESTS_MAX: usize = 64;
/// How long open connections may take to end at a stop.
const CONTROL_STOP: Duration = Duration::from_secs(3);

pub(crate) fn lock(state: &Mutex<TrackerState>) -> MutexGuard<'_, TrackerState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(why: &str) -> Response {
    Response::Refused { why: why.into() }
}

/// Answers requests until the token is cancelled or the control plane ends.
pub(crate) async fn serve(
    state: Arc<Mutex<TrackerState>>,
    control: ControlHandle,
    mut events: mpsc::Receiver<ControlEvent>,
    token: CancellationToken,
) {
    let mut forwarded = JoinSet::new();
    loop {
        let event = tokio::select! {
            () = token.cancelled() => break,
            Some(_) = forwarded.join_next(), if !forwarded.is_empty() => continue,
            event = events.recv() => event,
        };
        match event {
            None => break,
            Some(ControlEvent::Connected { node, remote }) => {
                tracing::debug!(node = %node.short(), %remote, "connected")
            }
            Some(ControlEvent::Disconnected { node, connection, .. }) => {
                if let Err(error) = lock(&state).on_disconnected(&node, connection) {
                    tracing::error!(error = &error as &dyn Error, "cannot store that a host is away");
                }
            }
            Some(ControlEvent::Request {
                from,
                connection,
                request: Request::WantImage { reference, .. },
                reply,
                ..
            }) => {
                let request = lock(&state).sessions_mut().image_request(&from, connection);
                match request {
                    Ok(_) if forwarded.len() >= IMAGE_REQUESTS_MAX => {
                        reply.send(refused("too many image requests at once: try again later"));
                    }
                    Ok(ImageRequest { seeder, asker }) => {
                        let control = control.clone();
                        forwarded.spawn(async move {
                            let request = Request::WantImage { reference, host: Some(asker) };
                            let answer = control.request(seeder, request).await;
                            reply.send(answer.unwrap_or_else(|_| refused("the seeder does not answer")));
                        });
                    }
                    Err(error) => reply.send(refused(&error.to_string())),
                }
            }
            Some(ControlEvent::Request { from, connection, remote, request, reply }) => {
                match lock(&state).answer(from, connection, remote, request) {
                    joined @ Response::Joined { .. } => reply.admit(joined),
                    answer => reply.send(answer),
                }
            }
        }
    }
    control.shutdown(CONTROL_STOP).await;
}
