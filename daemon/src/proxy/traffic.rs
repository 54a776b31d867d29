//! The requests that are here now, shared by the proxy, which counts them, and the driver, which looks before it stops or
//! loads a model.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use berth_core::name::ModelName;
use berth_core::proxy::{Clients, Queue, RequestTimes};
use berth_core::report::Requests;
use tokio::sync::Notify;

use super::telemetry::Telemetry;
use crate::proc::monotonic_now;

/// Shared counts.
#[derive(Debug, Default, Clone)]
pub struct Traffic(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    queue: Mutex<Queue>,
    /// Something happened that may decide what is loaded or stopped next.
    news: Notify,
    /// Whether somebody waits for a model's last answer.
    awaited: AtomicBool,
    telemetry: Telemetry,
}

/// A request that counts for a model until it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it no longer counts"]
pub struct Counted {
    traffic: Traffic,
    model: ModelName,
    /// Of one that waits.
    ticket: Option<u64>,
}

impl Traffic {
    /// What clients want of each model.
    pub fn clients(&self) -> Clients {
        self.queue().clients()
    }

    /// What clients asked of this model.
    pub fn requests(&self, model: &ModelName) -> Requests {
        let usage = self.queue().usage(model);
        self.0.telemetry.requests(model, usage.under_way, usage.waiting)
    }

    /// How long requests took, of each model that was asked.
    pub fn times(&self) -> BTreeMap<ModelName, RequestTimes> {
        self.0.telemetry.times()
    }

    /// Where requests are told of that ended.
    pub fn telemetry(&self) -> &Telemetry {
        &self.0.telemetry
    }

    /// A request that goes to this model.
    pub fn enter(&self, model: &ModelName) -> Counted {
        self.queue().enter(model);
        Counted { traffic: self.clone(), model: model.clone(), ticket: None }
    }

    /// A request of `who`, who may have models loaded or not, that waits for this model; None where so many do already.
    pub fn wait(&self, model: &ModelName, who: (&str, bool), most: usize) -> Option<Counted> {
        let ticket = self.queue().wait(model, who, most, monotonic_now())?;
        // Whose place it may take is looked at when that is idle.
        self.awaited(true);
        self.0.news.notify_one();
        Some(Counted { traffic: self.clone(), model: model.clone(), ticket: Some(ticket) })
    }

    /// Whether the ends of models' last answers are news.
    pub fn awaited(&self, awaited: bool) {
        self.0.awaited.store(awaited, Ordering::Relaxed);
    }

    /// Comes back when a request begins to wait, when the last of those that wait for a model leaves, and while that is
    /// awaited, when a model has answered its last one. What happened since the last call counts.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it holds the lock.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut queue = self.traffic.queue();
        let news = if let Some(ticket) = self.ticket {
            queue.give_back(&self.model, ticket)
        } else {
            queue.leave(&self.model, monotonic_now()) && self.traffic.0.awaited.load(Ordering::Relaxed)
        };
        drop(queue);
        if news {
            self.traffic.0.news.notify_one();
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
        let under_way = || traffic.clients().get(&model).map_or(0, |usage| usage.under_way);
        let (one, two) = (traffic.enter(&model), traffic.enter(&model));
        let waits = traffic.wait(&model, ("frank", true), 1);
        assert!(waits.is_some() && traffic.wait(&model, ("frank", true), 1).is_none());
        traffic.news().await;
        drop(waits);
        traffic.news().await;
        drop(one);
        assert_eq!(under_way(), 1);
        traffic.awaited(true);
        drop(two);
        traffic.news().await;
        assert_eq!(under_way(), 0);
    }
}
