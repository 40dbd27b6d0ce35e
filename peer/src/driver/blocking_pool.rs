//! Runs blocking work for the driver on the runtime's blocking threads, a bounded number of each kind at a time.
//!
//! Queued work holds no payload, so a queue costs one pointer for each entry. The core's outputs bound its length.
//! Invariant: at most [`WorkKind::threads`] pieces of work of one kind run at once, and each runs once.

use shoal_proto::announcement::Class;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use tokio::task::JoinSet;

/// What a piece of work does. Each kind has its own threads, so no kind waits for a slower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Reads a shard or a manifest for sending.
    Read,
    /// Begins, finishes or removes a content.
    Store,
    /// Switches a version or places a feed's file.
    Activate,
}

impl WorkKind {
    /// Threads of each kind. Most reads hit the page cache. More readers would only queue at the disk.
    const fn threads(self) -> usize {
        match self {
            Self::Read => 8,
            Self::Store => 4,
            Self::Activate => 2,
        }
    }
}

type Work<T> = Box<dyn FnOnce() -> T + Send>;

/// The place of waiting work: the most urgent class first, then the oldest.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    class: Class,
    number: u64,
}

struct Queue<T> {
    running: usize,
    waiting: BTreeMap<Turn, Work<T>>,
}

/// Work that ended. `result` is `None` after a panic.
struct Ended<T> {
    kind: WorkKind,
    result: Option<T>,
}

/// The pool. `T` is the result of all work.
pub struct BlockingPool<T> {
    queues: [Queue<T>; 3],
    next_number: u64,
    running: JoinSet<Ended<T>>,
}

impl<T: Send + 'static> BlockingPool<T> {
    pub fn new() -> Self {
        let queue = || Queue { running: 0, waiting: BTreeMap::new() };
        Self { queues: [queue(), queue(), queue()], next_number: 0, running: JoinSet::new() }
    }

    /// Queues `work`. More urgent classes run first.
    pub fn run(&mut self, kind: WorkKind, class: Class, work: impl FnOnce() -> T + Send + 'static) {
        self.next_number += 1;
        let turn = Turn { class, number: self.next_number };
        self.queues[kind as usize].waiting.insert(turn, Box::new(work));
        self.start_waiting(kind);
    }

    fn start_waiting(&mut self, kind: WorkKind) {
        let queue = &mut self.queues[kind as usize];
        while queue.running < kind.threads() {
            let Some((_, work)) = queue.waiting.pop_first() else { return };
            queue.running += 1;
            self.running.spawn_blocking(move || {
                // A panic must not cost the kind one of its threads. The work owns its data, so no other code sees
                // a half-changed value afterwards.
                let result = std::panic::catch_unwind(AssertUnwindSafe(work));
                Ended { kind, result: result.ok() }
            });
        }
    }

    pub fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// Waits for the next result. Returns `None` after a panic. The panic's message is in the log. Cancel-safe.
    pub async fn next(&mut self) -> Option<T> {
        match self.running.join_next().await {
            Some(Ok(ended)) => {
                self.queues[ended.kind as usize].running -= 1;
                self.start_waiting(ended.kind);
                ended.result
            }
            // Only an aborted task returns an error. The pool aborts no task.
            Some(Err(_)) | None => None,
        }
    }

    /// Drops waiting work and waits for running work.
    pub async fn stop(&mut self) {
        for queue in &mut self.queues {
            queue.waiting.clear();
        }
        while self.running.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[tokio::test]
    async fn each_kind_is_bounded_and_urgent_work_goes_first() {
        let mut pool = BlockingPool::new();
        let (release, blocked) = sync_channel::<()>(16);
        let blocked = std::sync::Arc::new(std::sync::Mutex::new(blocked));
        for number in 0..10u32 {
            let blocked = blocked.clone();
            pool.run(WorkKind::Activate, Class::Bulk, move || {
                blocked.lock().unwrap().recv().unwrap();
                number
            });
        }
        pool.run(WorkKind::Activate, Class::Urgent, || 99);
        assert_eq!(pool.queues[WorkKind::Activate as usize].running, 2);
        // Another kind does not wait for them.
        pool.run(WorkKind::Read, Class::Bulk, || 50);
        assert_eq!(pool.next().await, Some(50));
        release.send(()).unwrap();
        let first = pool.next().await.unwrap();
        assert!(first < 2, "the two running pieces of work end first");
        assert_eq!(pool.next().await, Some(99), "then the urgent one");
        for _ in 0..9 {
            release.send(()).unwrap();
        }
        let mut rest = 0;
        while !pool.is_idle() {
            pool.next().await.unwrap();
            rest += 1;
        }
        assert_eq!(rest, 9);
    }

    #[tokio::test]
    async fn a_panic_does_not_cost_a_thread() {
        let mut pool = BlockingPool::new();
        for _ in 0..5 {
            pool.run(WorkKind::Activate, Class::Control, || panic!("the test panics on purpose"));
            assert_eq!(pool.next().await, None::<u32>);
        }
        pool.run(WorkKind::Activate, Class::Control, || 7);
        assert_eq!(pool.next().await, Some(7));
    }
}
