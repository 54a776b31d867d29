//! Gathers facts and sends them to the driver: GPUs from NVML, units from systemd, their processes from the
//! kernel. How closely is the driver's order; decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_core::facts::{self, Active, DeviceId, Docker, Gpu, Known, Listening, Unit};
use berth_core::name::ModelName;
use berth_core::release;
use berth_core::state::ClaimedGpu;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use crate::driver::Message;
use crate::fault;
use crate::nvml::{Nvml, Xid};
use crate::proc::Groups;
use crate::systemd::{Change, Systemd, UnitChange, UnitReading};

/// Between two full readings when nothing goes on.
const IDLE: Duration = facts::INTERVAL;
/// Between two full readings while something loads or stops.
const LOADING: Duration = Duration::from_millis(100);
/// Between two looks at the memory info while memory is awaited: a part of the time waited so far, within these.
/// So a long wait costs less than two percent of a core, and none is prolonged by more than one percent or 3 ms.
const FAST: Duration = Duration::from_millis(3);
const FAST_LATER: Duration = Duration::from_millis(40);
const FAST_PART: u32 = 128;
/// Readings with lists at once when memory came back or a unit changed: two prove a release, and one may have been
/// begun too early to count.
const CONFIRMING: u32 = 3;
const CONFIRM: Duration = Duration::from_millis(1);
/// Between two full readings after those, while more is awaited.
const CONFIRMED: Duration = Duration::from_millis(40);
/// Between two full readings while memory is awaited and not back: shows who holds it.
const LISTS: Duration = Duration::from_millis(250);
/// A change of a unit that is on its way up or down is read after this time, with those that follow it.
const SETTLE: Duration = Duration::from_millis(20);
/// Between two lists of all units, and of processors; changes of known units arrive by themselves.
const ALL_UNITS: Duration = Duration::from_secs(10);

/// Between two looks at where models' processes listen: one that is open to others is told within twice this.
const LISTENING: Duration = Duration::from_secs(5);

/// How long a full reading of the GPUs may take.
pub const FULL_READING: Duration = facts::READING;
/// How long the fast poll's reading may take.
const FAST_READING: Duration = Duration::from_millis(500);

/// How closely to observe.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Nothing goes on.
    Idle,
    /// Something loads.
    Loading,
    /// The memory of these claims is awaited.
    Release(Vec<ClaimedGpu>),
}

/// Starts observing. Facts go to `driver`; the order is taken from `order` whenever it changes.
pub fn spawn(nvml: Nvml, systemd: Systemd, order: watch::Receiver<Order>, driver: mpsc::Sender<Message>) {
    let unit_changed = Arc::new(Notify::new());
    tokio::spawn(xids(nvml.xids(), driver.clone()));
    tokio::spawn(gpus(nvml, order.clone(), Arc::clone(&unit_changed), driver.clone()));
    tokio::spawn(units(systemd, order, unit_changed, driver));
}

async fn xids(mut xids: mpsc::UnboundedReceiver<Xid>, driver: mpsc::Sender<Message>) {
    while let Some(xid) = xids.recv().await {
        if driver.send(Message::Xid(xid)).await.is_err() {
            return;
        }
    }
}

async fn gpus(
    nvml: Nvml,
    mut order: watch::Receiver<Order>,
    unit_changed: Arc<Notify>,
    driver: mpsc::Sender<Message>,
) {
    let mut latest: Known<Vec<Gpu>> = Known::Unknown("not read yet".to_owned());
    let mut listed = Instant::now() - IDLE;
    let mut all_at = listed;
    let mut since = Instant::now();
    // Of the parts that are awaited: which are back, and how many readings with lists said so.
    let (mut seen, mut confirmed) = (Vec::new(), 0);
    let mut rest = false;
    loop {
        let now = order.borrow_and_update().clone();
        let mut lists = Vec::new();
        let full = match (&now, &mut latest) {
            _ if std::mem::take(&mut rest) => false,
            // The other GPUs have to be known too, however long these are awaited.
            (Order::Release(parts), Known::Value(gpus))
                if listed.elapsed() < LISTS && all_at.elapsed() < IDLE =>
            {
                let mut ids: Vec<DeviceId> = parts.iter().map(|part| part.placed.id.clone()).collect();
                ids.sort();
                ids.dedup();
                for (id, (at, memory)) in
                    fault::reading("nvml memory", nvml.read_memory(&ids, FAST_READING)).await
                {
                    if let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.id == id) {
                        (gpu.read_at, gpu.memory) = (at, memory);
                    }
                }
                let back: Vec<bool> = parts.iter().map(|part| back(part, gpus)).collect();
                if back != seen {
                    (seen, confirmed) = (back, 0);
                }
                if seen.contains(&true) && (confirmed < CONFIRMING || listed.elapsed() >= CONFIRMED) {
                    lists = ids;
                }
                false
            }
            _ => true,
        };
        if full {
            latest = fault::reading("nvml all", nvml.read_all(FULL_READING)).await;
            all_at = Instant::now();
        } else if let (false, Known::Value(gpus)) = (lists.is_empty(), &mut latest) {
            // Their memory was read just now; with the lists it is all that a proof weighs.
            for (id, (at, processes)) in
                fault::reading("nvml lists", nvml.read_processes(&lists, FULL_READING)).await
            {
                if let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.id == id) {
                    (gpu.listed_at, gpu.processes) = (at, processes);
                }
            }
        }
        if full || !lists.is_empty() {
            listed = Instant::now();
            confirmed += 1;
            if driver.send(Message::Gpus(latest.clone())).await.is_err() {
                return;
            }
        }
        let pause = match &now {
            Order::Idle => IDLE,
            Order::Loading => LOADING,
            // Nothing to be seen now, and asking faster does not bring it back.
            Order::Release(_) if latest.value().is_none() => LOADING,
            Order::Release(_) if seen.contains(&true) && confirmed < CONFIRMING => CONFIRM,
            Order::Release(_) => (since.elapsed() / FAST_PART).clamp(FAST, FAST_LATER),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A reading counts only from when the unit's processes are known to be gone.
            () = unit_changed.notified(), if matches!(now, Order::Release(_)) => confirmed = 0,
            changed = order.changed() => match changed {
                Ok(()) => {
                    since = Instant::now();
                    (seen, confirmed) = (Vec::new(), 0);
                    // What was awaited has just been read, and a start that follows shall not wait for more.
                    rest = matches!(now, Order::Release(_)) && !matches!(*order.borrow(), Order::Release(_));
                }
                Err(_) => return,
            },
        }
    }
}

/// Whether the memory of this part looks as if it were back, so that the lists are worth reading.
fn back(part: &ClaimedGpu, gpus: &[Gpu]) -> bool {
    gpus.iter().find(|gpu| gpu.id == part.placed.id).is_some_and(|gpu| {
        let used = gpu.memory.value().map(|memory| memory.used);
        used.zip(release::worth_listing(part, gpu)).is_some_and(|(used, limit)| used <= limit)
    })
}

async fn units(
    systemd: Systemd,
    mut order: watch::Receiver<Order>,
    unit_changed: Arc<Notify>,
    driver: mpsc::Sender<Message>,
) {
    let mut changes = systemd.changes();
    let mut known: BTreeMap<ModelName, UnitReading> = BTreeMap::new();
    let mut all_at: Option<Instant> = None;
    let mut generation = systemd.predecessors_generation();
    let mut listening_at: Option<Instant> = None;
    loop {
        if all_at.is_none_or(|at| at.elapsed() >= ALL_UNITS) {
            let declared = systemd.predecessors_generation();
            // While the bus is away the last that was known stays; what is not known is not gone.
            match systemd.units().await {
                Ok(read) => (known, generation) = (read, declared),
                Err(error) => tracing::warn!(%error, "the units can't be listed"),
            }
            all_at = Some(Instant::now());
            if driver.send(Message::Cpus(crate::cpus::online())).await.is_err() {
                return;
            }
        }
        let docker = crate::docker::owes();
        let units =
            known.iter().map(|(model, reading)| (model.clone(), refreshed(reading, &docker))).collect();
        if driver.send(Message::Units(generation, units)).await.is_err() {
            return;
        }
        if listening_at.is_none_or(|at| at.elapsed() >= LISTENING) {
            listening_at = Some(Instant::now());
            if let Some(found) = listening(&known)
                && driver.send(Message::Listening(found)).await.is_err()
            {
                return;
            }
        }
        let pause = if *order.borrow_and_update() == Order::Idle { IDLE } else { LOADING };
        let mut deadline = Instant::now() + pause;
        // Units that changed, and when to read them.
        let mut changed: BTreeMap<ModelName, Instant> = BTreeMap::new();
        loop {
            let next = changed.values().min().copied().unwrap_or(deadline);
            tokio::select! {
                () = tokio::time::sleep_until(next) => {
                    let now = Instant::now();
                    let due: Vec<ModelName> =
                        changed.iter().filter(|(_, due)| **due <= now).map(|(model, _)| model.clone()).collect();
                    changed.retain(|_, due| *due > now);
                    for model in due {
                        let read = systemd.predecessors_generation();
                        let unit = match systemd.unit(&model).await {
                            Ok(Some(reading)) => {
                                let unit = refreshed(&reading, &Unit::docker_not_asked());
                                known.insert(model.clone(), reading);
                                Some(unit)
                            }
                            Ok(None) => {
                                known.remove(&model);
                                None
                            }
                            Err(error) => {
                                tracing::warn!(%model, %error, "the unit can't be read");
                                // Somebody may be waiting for just this change.
                                changed.insert(model, now + LOADING);
                                continue;
                            }
                        };
                        if driver.send(Message::Unit(read, model, unit)).await.is_err() {
                            return;
                        }
                        unit_changed.notify_one();
                    }
                    if changed.is_empty() && now >= deadline {
                        break;
                    }
                }
                renewed = order.changed() => match renewed {
                    Ok(()) if changed.is_empty() => break,
                    // What changed is read first.
                    Ok(()) => deadline = Instant::now(),
                    Err(_) => return,
                },
                change = changes.recv() => match change {
                    Ok(Change::Unit(change)) => {
                        let pause = if matters(&change, known.get(&change.model)) { Duration::ZERO } else { SETTLE };
                        let due = Instant::now() + pause;
                        changed.entry(change.model).and_modify(|known| *known = due.min(*known)).or_insert(due);
                    }
                    Ok(Change::Job { .. }) => {}
                    // Something may have been missed: look at everything.
                    Ok(_) | Err(RecvError::Lagged(_)) => {
                        all_at = None;
                        break;
                    }
                    Err(RecvError::Closed) => return,
                },
            }
        }
    }
}

/// Where the models' processes listen; None where the kernel does not tell, and the last that was known stays.
fn listening(units: &BTreeMap<ModelName, UnitReading>) -> Option<BTreeMap<ModelName, Vec<Listening>>> {
    let groups = units.iter().map(|(model, reading)| (model.clone(), reading.control_groups.clone()));
    match crate::sockets::of_models(&groups.collect()) {
        Ok(found) => Some(found),
        Err(error) => {
            tracing::warn!(%error, "where models' processes listen can't be seen");
            None
        }
    }
}

/// Whether somebody may be waiting for this change: the unit is up now, or down. Of one start systemd tells in half
/// a dozen messages, and runs its jobs only when it has nothing to answer.
fn matters(change: &UnitChange, known: Option<&UnitReading>) -> bool {
    let was = known.map(|reading| reading.unit.active);
    change.active.is_some_and(|now| now.is_down() || now == Active::Active) && change.active != was
}

/// The unit with the processes that are in its cgroup now, and what they have read by now.
fn refreshed(reading: &UnitReading, docker: &Known<Docker>) -> Unit {
    let mut reading = reading.clone();
    reading.refresh(docker);
    reading.unit
}

/// Everything once, for a decision: read now, not taken from what was observed before.
pub struct Fresh {
    /// The GPUs.
    pub gpus: Known<Vec<Gpu>>,
    /// The units; None where systemd did not answer.
    pub units: Option<BTreeMap<ModelName, Unit>>,
    /// The cgroups of each.
    pub control_groups: BTreeMap<ModelName, Groups>,
}

/// Reads everything once.
pub async fn fresh(nvml: &Nvml, systemd: &Systemd) -> Fresh {
    let _effect = fault::effect("look");
    let gpus = fault::reading("nvml all", nvml.read_all(FULL_READING));
    let (gpus, units) = tokio::join!(gpus, systemd.units());
    match units {
        Ok(units) => Fresh {
            gpus,
            units: Some(
                units
                    .iter()
                    .map(|(model, reading)| (model.clone(), refreshed(reading, &Unit::docker_not_asked())))
                    .collect(),
            ),
            control_groups: units
                .into_iter()
                .map(|(model, reading)| (model, reading.control_groups))
                .collect(),
        },
        Err(error) => {
            tracing::warn!(%error, "the units can't be listed");
            Fresh { gpus, units: None, control_groups: BTreeMap::new() }
        }
    }
}
