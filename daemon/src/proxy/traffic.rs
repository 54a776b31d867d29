//! How many requests each model answers and has waiting. The driver looks before it stops one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::name::ModelName;
use berth_core::report::Requests;
use tokio::sync::Notify;

use super::telemetry::Telemetry;

/// Shared counts.
#[derive(Debug, Default, Clone)]
pub struct Traffic(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    models: Mutex<BTreeMap<ModelName, Counts>>,
    /// A model's last request ended, and somebody waits for that.
    idle: Notify,
    awaited: AtomicBool,
    telemetry: Telemetry,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    under_way: usize,
    waiting: usize,
}

/// A request that counts for a model until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it no longer counts"]
pub struct Counted {
    traffic: Traffic,
    model: ModelName,
    waiting: bool,
}

impl Traffic {
    /// How many requests this model answers now.
    pub fn under_way(&self, model: &ModelName) -> usize {
        self.counts().get(model).map_or(0, |counts| counts.under_way)
    }

    /// What clients asked of this model.
    pub fn requests(&self, model: &ModelName) -> Requests {
        let counts = self.counts().get(model).copied().unwrap_or_default();
        self.0.telemetry.requests(model, counts.under_way, counts.waiting)
    }

    /// Where requests are told of that ended.
    pub fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    /// A request that goes to this model.
    pub fn enter(&self, model: &ModelName) -> Counted {
        self.counts().entry(model.clone()).or_default().under_way += 1;
        Counted { traffic: self.clone(), model: model.clone(), waiting: false }
    }

    /// A request that waits for this model; None where so many do already.
    pub fn wait(&self, model: &ModelName, most: usize) -> Option<Counted> {
        let mut all = self.counts();
        let counts = all.entry(model.clone()).or_default();
        if counts.waiting >= most {
            return None;
        }
        counts.waiting += 1;
        Some(Counted { traffic: self.clone(), model: model.clone(), waiting: true })
    }

    /// Whether somebody waits for a model's last answer.
    pub fn awaited(&self, awaited: bool) {
        self.0.awaited.store(awaited, Ordering::Relaxed);
    }

    /// Comes back when some model has answered its last request, while that is awaited. One that happened since the last call counts.
    pub async fn idle(&self) {
        self.0.idle.notified().await;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<ModelName, Counts>> {
        // Nothing panics while it holds the lock.
        self.0.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Whose it is.
    pub fn model(&self) -> &ModelName {
        &self.model
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut all = self.traffic.counts();
        let Some(counts) = all.get_mut(&self.model) else { return };
        if self.waiting {
            counts.waiting -= 1;
        } else {
            counts.under_way -= 1;
        }
        let idle = !self.waiting && counts.under_way == 0;
        if counts.under_way + counts.waiting == 0 {
            all.remove(&self.model);
        }
        drop(all);
        if idle && self.traffic.0.awaited.load(Ordering::Relaxed) {
            self.traffic.0.idle.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn requests_count_until_they_are_dropped() {
        let (traffic, model) = (Traffic::default(), "genesis".parse::<ModelName>().unwrap());
        let (one, two) = (traffic.enter(&model), traffic.enter(&model));
        traffic.awaited(true);
        let waits = traffic.wait(&model, 1);
        assert!(waits.is_some() && traffic.wait(&model, 1).is_none());
        assert_eq!(traffic.under_way(&model), 2);
        drop((one, waits));
        assert_eq!(traffic.under_way(&model), 1);
        assert!(traffic.wait(&model, 1).is_some());
        drop(two);
        traffic.idle().await;
        assert_eq!(traffic.under_way(&model), 0);
        assert!(traffic.counts().is_empty());
    }
}
