//! Effects that block, a few of each sort at a time, on the runtime's blocking threads.
//!
//! Invariant: at most a sort's bound of its effects run at once, and each is taken once. A queued effect holds no
//! payload, so queues cost a pointer an effect; their length is bounded by what the brain may wish for.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use tokio::task::JoinSet;

/// What an effect is about. Each sort has its own threads, so that none waits for a slower one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sort {
    /// Reading a shard or manifest to send it.
    Read,
    /// Beginning, finishing and removing contents.
    Store,
    /// Switching versions in.
    Activate,
}

impl Sort {
    /// Threads of each sort. Reads mostly hit the page cache; more of them would only queue at the disk.
    const fn threads(self) -> usize {
        match self {
            Self::Read => 8,
            Self::Store => 4,
            Self::Activate => 2,
        }
    }
}

type Work<T> = Box<dyn FnOnce() -> T + Send>;

struct Queue<T> {
    running: usize,
    /// By urgency, then age.
    waiting: BTreeMap<(u8, u64), Work<T>>,
}

/// The pool. `T` is what effects bring.
pub(super) struct Pool<T> {
    queues: [Queue<T>; 3],
    turn: u64,
    running: JoinSet<(Sort, Option<T>)>,
}

impl<T: Send + 'static> Pool<T> {
    pub(super) fn new() -> Self {
        let queue = || Queue { running: 0, waiting: BTreeMap::new() };
        Self { queues: [queue(), queue(), queue()], turn: 0, running: JoinSet::new() }
    }

    /// Runs `work` when it is its turn; lower `urgency` first.
    pub(super) fn run(&mut self, sort: Sort, urgency: u8, work: impl FnOnce() -> T + Send + 'static) {
        self.turn += 1;
        self.queues[sort as usize].waiting.insert((urgency, self.turn), Box::new(work));
        self.fill(sort);
    }

    fn fill(&mut self, sort: Sort) {
        let queue = &mut self.queues[sort as usize];
        while queue.running < sort.threads() {
            let Some((_, work)) = queue.waiting.pop_first() else { return };
            queue.running += 1;
            self.running.spawn_blocking(move || {
                // The work owns what it touches, so nothing half-changed is seen again.
                let done = std::panic::catch_unwind(AssertUnwindSafe(work));
                (sort, done.ok())
            });
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    /// The next effect that is done. Cancel-safe. `None` when it panicked, which was printed then.
    pub(super) async fn next(&mut self) -> Option<T> {
        match self.running.join_next().await {
            Some(Ok((sort, done))) => {
                self.queues[sort as usize].running -= 1;
                self.fill(sort);
                done
            }
            // Only an aborted task gives an error, and none is aborted while the driver runs.
            Some(Err(_)) | None => None,
        }
    }

    /// Drops what waits and lets what runs end.
    pub(super) async fn stop(&mut self) {
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
    async fn sorts_are_bounded_and_the_urgent_go_first() {
        let mut pool = Pool::new();
        let (release, gate) = sync_channel::<()>(16);
        let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
        for number in 0..10u32 {
            let gate = gate.clone();
            pool.run(Sort::Activate, 3, move || {
                gate.lock().unwrap().recv().unwrap();
                number
            });
        }
        pool.run(Sort::Activate, 1, || 99);
        assert_eq!(pool.queues[Sort::Activate as usize].running, 2);
        // Another sort does not wait for them.
        pool.run(Sort::Read, 3, || 50);
        assert_eq!(pool.next().await, Some(50));
        release.send(()).unwrap();
        let first = pool.next().await.unwrap();
        assert!(first < 2, "the two that ran came first");
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
    async fn a_panic_costs_nobody_a_thread() {
        let mut pool = Pool::new();
        for _ in 0..5 {
            pool.run(Sort::Activate, 0, || panic!("a test's own"));
            assert_eq!(pool.next().await, None::<u32>);
        }
        pool.run(Sort::Activate, 0, || 7);
        assert_eq!(pool.next().await, Some(7));
    }
}
