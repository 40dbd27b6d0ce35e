//! The queue of events from links to the driver.
//!
//! Invariant: waiting messages and announcements take at most [`QUEUE_BYTES_MAX`] bytes of memory. Payload counts in
//! the receive budgets.

use super::event::LinkEvent;
use std::sync::Arc;
use tokio::sync::mpsc::error::{TryRecvError, TrySendError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// Memory of the messages and announcements that wait in one queue, bytes: 32 of the largest announcements.
const QUEUE_BYTES_MAX: usize = 8 << 20;

struct Waiting {
    event: LinkEvent,
    _bytes: OwnedSemaphorePermit,
}

/// The end of the links. Cheap to clone.
#[derive(Clone)]
pub struct EventSender {
    queue: mpsc::Sender<Waiting>,
    bytes: Arc<Semaphore>,
}

/// The end of the driver.
#[derive(Debug)]
pub struct LinkEvents {
    queue: mpsc::Receiver<Waiting>,
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.event.fmt(f)
    }
}

/// Returns a queue of at most `events_max` events.
pub fn queue(events_max: usize) -> (EventSender, LinkEvents) {
    let (sender, receiver) = mpsc::channel(events_max);
    (EventSender { queue: sender, bytes: Arc::new(Semaphore::new(QUEUE_BYTES_MAX)) }, LinkEvents { queue: receiver })
}

/// An event that is larger than the queue has the queue for itself.
fn permits(bytes: usize) -> u32 {
    bytes.min(QUEUE_BYTES_MAX) as u32
}

/// Why an event is not in the queue.
pub enum SendError {
    /// There is no room now.
    Full(Box<LinkEvent>),
    /// The driver has dropped its end.
    Closed,
}

impl EventSender {
    /// Queues an event that takes `bytes` bytes of memory.
    pub fn try_send(&self, event: LinkEvent, bytes: usize) -> Result<(), SendError> {
        let Ok(permit) = self.bytes.clone().try_acquire_many_owned(permits(bytes)) else {
            return Err(SendError::Full(Box::new(event)));
        };
        self.queue.try_send(Waiting { event, _bytes: permit }).map_err(|error| match error {
            TrySendError::Full(waiting) => SendError::Full(Box::new(waiting.event)),
            TrySendError::Closed(_) => SendError::Closed,
        })
    }

    /// Queues an event, and waits for room. Returns whether the driver still takes events.
    pub async fn send(&self, event: LinkEvent, bytes: usize) -> bool {
        let Ok(permit) = self.bytes.clone().acquire_many_owned(permits(bytes)).await else { return false };
        self.queue.send(Waiting { event, _bytes: permit }).await.is_ok()
    }
}

impl LinkEvents {
    /// Returns the next event, or `None` once the endpoint has ended and the queue is empty.
    pub async fn recv(&mut self) -> Option<LinkEvent> {
        Some(self.queue.recv().await?.event)
    }

    /// Returns the next event if one waits.
    ///
    /// # Errors
    ///
    /// Fails if none waits.
    pub fn try_recv(&mut self) -> Result<LinkEvent, TryRecvError> {
        self.queue.try_recv().map(|waiting| waiting.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::ids::{ContentId, NodeId};
    use shoal_proto::limits::CONTROL_FRAME_BYTES_MAX;
    use shoal_proto::message::Message;

    fn event() -> LinkEvent {
        LinkEvent::Message { node: NodeId([1; 32]), message: Message::Done { content: ContentId([1; 32]) } }
    }

    #[tokio::test]
    async fn bodies_that_wait_have_a_bound_and_a_taken_event_makes_room() {
        let (sender, mut events) = queue(1000);
        let mut queued = 0;
        while sender.try_send(event(), CONTROL_FRAME_BYTES_MAX).is_ok() {
            queued += 1;
        }
        assert_eq!(queued, 32);
        assert!(sender.try_send(event(), 0).is_ok(), "events without a body have room");
        assert!(events.recv().await.is_some());
        assert!(sender.send(event(), CONTROL_FRAME_BYTES_MAX).await);
        drop(events);
        assert!(!sender.send(event(), 0).await);
        assert!(matches!(sender.try_send(event(), 0), Err(SendError::Closed)));
    }
}
