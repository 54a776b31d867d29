//! Checks models in service: asks each one, sees whether it works meanwhile, and tells the driver what core makes of
//! it. A model has a task of its own for as long as the driver wants it checked.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_core::backend;
use berth_core::bytes::Bytes;
use berth_core::facts::Moment;
use berth_core::health::{Judge, Outcome, Verdict, Work};
use berth_core::name::ModelName;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::act::Hands;
use crate::driver::Message;
use crate::probe::{self, ProbeTarget};
use crate::proc::{self, Groups, Used, monotonic_now};
use crate::sockets::{self, Makers};

/// A process that waited for a disk for no more than this did not read: code that was paged out comes back so.
const FEW_PAGES: Bytes = Bytes(64 << 10);

/// A model that is to be checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The InvocationID of the run in service.
    pub run: String,
    /// Where it was told to listen.
    pub address: SocketAddr,
    /// Whether one of its GPUs computed at the last reading; None where that is not known of all.
    pub gpus: Option<bool>,
}

/// Which models are to be checked.
pub type Checking = BTreeMap<ModelName, Checked>;

/// Starts checking what is sent; verdicts go to the driver of `hands`.
pub fn spawn(hands: &Hands) -> watch::Sender<Checking> {
    let (wanted, receiver) = watch::channel(Checking::new());
    tokio::spawn(keep(hands.clone(), receiver));
    wanted
}

/// Whether GPUs computed: since the check before, and at the newest reading.
#[derive(Debug, Clone, Copy)]
struct Gpus {
    since: Option<bool>,
    newest: Option<bool>,
}

impl Gpus {
    fn note(&mut self, now: Option<bool>) {
        self.newest = now;
        self.since = match (self.since, now) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (None, _) | (_, None) => None,
            _ => Some(false),
        };
    }
}

/// A model's task; it ends with this.
struct Task {
    run: String,
    gpus: Arc<Mutex<Gpus>>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

async fn keep(hands: Hands, mut wanted: watch::Receiver<Checking>) {
    let mut tasks: BTreeMap<ModelName, Task> = BTreeMap::new();
    while wanted.changed().await.is_ok() {
        let wanted = wanted.borrow_and_update().clone();
        tasks.retain(|model, task| wanted.get(model).is_some_and(|checked| checked.run == task.run));
        for (model, checked) in wanted {
            match tasks.entry(model) {
                Entry::Occupied(task) => {
                    task.get().gpus.lock().unwrap_or_else(PoisonError::into_inner).note(checked.gpus);
                }
                Entry::Vacant(place) => {
                    let gpus = Gpus { since: checked.gpus, newest: checked.gpus };
                    let gpus = Arc::new(Mutex::new(gpus));
                    let (model, run) = (place.key().clone(), checked.run.clone());
                    let handle = tokio::spawn(check(hands.clone(), model, checked, Arc::clone(&gpus)));
                    place.insert(Task { run, gpus, handle });
                }
            }
        }
    }
}

/// Checks one run of a model until it is ended.
async fn check(hands: Hands, name: ModelName, checked: Checked, gpus: Arc<Mutex<Gpus>>) {
    let Some(model) = hands.declared.now().model(&name).map(Cow::into_owned) else { return };
    let settings = model.health;
    let Some(every) = settings.every else { return };
    let readiness = backend::of(model.backend).readiness(&model);
    let control_groups = loop {
        match hands.systemd.unit(&name).await {
            Ok(Some(reading)) if reading.unit.invocation == checked.run => break reading.control_groups,
            // While the bus is away nothing is known; a run that is over the driver sees by itself.
            _ => tokio::time::sleep(every).await,
        }
    };
    let target = ProbeTarget {
        address: checked.address,
        health_path: readiness.health,
        generate: None,
        control_groups: control_groups.clone(),
    };
    // Of a connection that is led into a network of its own the server's end is there.
    let own_network = model.container.as_ref().is_some_and(|container| !container.host_network);
    let clients = || {
        let makers = Some(Makers::of(&control_groups)).filter(|_| !own_network)?;
        sockets::clients(checked.address.port(), &makers).ok()
    };
    let mut judge = Judge::new(settings, monotonic_now());
    let mut effort = Effort::new(&control_groups, gpus);
    let mut told = Verdict::Healthy;
    loop {
        tokio::time::sleep(every).await;
        let outcome = match probe::health(&target, Judge::answer_within(&settings)).await {
            Ok(outcome) => outcome,
            Err(why) => {
                tracing::debug!(model = %name, why, "its health can't be checked");
                continue;
            }
        };
        let passed = outcome == Outcome::Passed;
        let work = effort.since_before();
        let mut verdict = judge.health(monotonic_now(), &outcome, work);
        if let Some(generate) = readiness.generate.as_ref().filter(|_| passed)
            && judge.wants_token(monotonic_now(), work, clients)
            && let Ok(outcome) = probe::token(&target, generate, Judge::token_within(&settings)).await
        {
            verdict = judge.token(monotonic_now(), &outcome, effort.since_before(), clients());
        }
        // The driver acts on one that hangs as soon as it may.
        if verdict != told || matches!(verdict, Verdict::Hung(_)) {
            told = verdict.clone();
            let message = Message::Health { model: name.clone(), run: checked.run.clone(), verdict };
            if hands.driver.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// What a model's processes have done, from one look to the next.
struct Effort<'a> {
    control_groups: &'a Groups,
    gpus: Arc<Mutex<Gpus>>,
    at: Moment,
    /// None where it could not be read.
    used: Option<BTreeMap<u32, Used>>,
}

impl<'a> Effort<'a> {
    fn new(control_groups: &'a Groups, gpus: Arc<Mutex<Gpus>>) -> Self {
        let used = proc::cgroup_processes(control_groups).value().cloned();
        Self { control_groups, gpus, at: monotonic_now(), used }
    }

    fn since_before(&mut self) -> Work {
        let gpus = {
            let mut gpus = self.gpus.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = gpus.newest;
            std::mem::replace(&mut gpus.since, newest)
        };
        let now = Self::new(self.control_groups, Arc::clone(&self.gpus));
        let over = now.at.saturating_sub(self.at);
        let done = self.used.as_ref().zip(now.used.as_ref()).map(|(before, now)| done(before, now));
        *self = now;
        Work::of(done.map(|(cpu, _)| cpu), done.map(|(_, read)| read > FEW_PAGES), gpus, over)
    }
}

/// Processor time and pages from a disk between two looks. What a process did that ended in between is lost.
fn done(before: &BTreeMap<u32, Used>, now: &BTreeMap<u32, Used>) -> (Duration, Bytes) {
    let each = now.iter().map(|(pid, now)| match before.get(pid) {
        Some(before) if before.started == now.started => {
            (now.cpu.saturating_sub(before.cpu), now.faulted.less(before.faulted))
        }
        _ => (now.cpu, now.faulted),
    });
    each.fold((Duration::ZERO, Bytes::ZERO), |(cpu, read), (c, r)| (cpu + c, read.plus(r)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_counted_for_each_process() {
        let used = |started, cpu, pages: u64| Used {
            started,
            cpu: Duration::from_millis(cpu),
            faulted: Bytes(pages << 12),
            resident: Bytes::ZERO,
        };
        let before = [(1, used(10, 500, 7)), (2, used(11, 900, 0)), (3, used(12, 400, 0))].into();
        // The second has ended, and the third's pid is another process now.
        let now = [(1, used(10, 530, 9)), (3, used(20, 60, 1))].into();
        assert_eq!(done(&before, &now), (Duration::from_millis(90), Bytes(3 << 12)));
    }

    #[test]
    fn a_gpu_that_computed_in_between_is_not_forgotten() {
        let mut gpus = Gpus { since: Some(false), newest: Some(false) };
        for (now, since) in
            [(None, None), (Some(true), Some(true)), (None, Some(true)), (Some(false), Some(true))]
        {
            gpus.note(now);
            assert_eq!(gpus.since, since);
        }
    }
}
