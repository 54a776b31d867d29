//! What happened, for everyone who listens: the newest events kept for those who come back after a gap.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::report::{Event, SCHEMA, What};
use tokio::sync::broadcast;

/// How many events are kept for a listener that comes back: some fifty swaps, less than a mebibyte.
const KEPT: usize = 500;
/// How far a listener may lag before it has to come back.
const LAG: usize = 512;

/// The events. Clones share them.
#[derive(Clone)]
pub struct Events(Arc<Mutex<Inner>>);

struct Inner {
    next: u64,
    kept: VecDeque<Arc<Event>>,
    live: broadcast::Sender<Arc<Event>>,
}

impl Events {
    /// No events yet. Ids go up over restarts too: they begin at the wall clock's microsecond, `now_ms` × 1000.
    pub fn new(now_ms: u64) -> Self {
        let inner = Inner { next: now_ms * 1000, kept: VecDeque::new(), live: broadcast::Sender::new(LAG) };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Tells everybody.
    pub fn say(&self, at_ms: u64, what: What) {
        let mut inner = self.lock();
        inner.next += 1;
        let event = Arc::new(Event { schema: SCHEMA, id: inner.next, at_ms, what });
        if inner.kept.len() >= KEPT {
            inner.kept.pop_front();
        }
        inner.kept.push_back(Arc::clone(&event));
        // Nobody may be listening.
        _ = inner.live.send(event);
    }

    /// How many listen.
    pub fn listeners(&self) -> usize {
        self.lock().live.receiver_count()
    }

    /// The id of the newest event.
    pub fn newest(&self) -> u64 {
        self.lock().next
    }

    /// Kept events after id `after`, and those to come.
    pub fn after(&self, after: u64) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let inner = self.lock();
        let kept = inner.kept.iter().filter(|event| event.id > after).cloned().collect();
        (kept, inner.live.subscribe())
    }

    /// The last `count` kept events, and those to come.
    pub fn last(&self, count: usize) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let inner = self.lock();
        let skip = inner.kept.len().saturating_sub(count);
        (inner.kept.iter().skip(skip).cloned().collect(), inner.live.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here leaves the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
