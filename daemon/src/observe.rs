//! Gathers facts and sends them to the driver: GPUs from NVML, units from systemd, their processes from the
//! kernel. How closely is the driver's order; decides nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_core::facts::{DeviceId, Gpu, Known, Unit};
use berth_core::name::ModelName;
use berth_core::release;
use berth_core::state::ClaimedGpu;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::driver::Message;
use crate::nvml::Nvml;
use crate::systemd::{Change, Systemd, SystemdError, UnitReading};

/// Between two full readings when nothing goes on.
const IDLE: Duration = Duration::from_secs(1);
/// Between two full readings while something loads or stops.
const LOADING: Duration = Duration::from_millis(100);
/// Between two looks at the memory info while memory is awaited: first, and after a while. A look costs some tens
/// of microseconds, so this is at most about two percent of a core.
const FAST: Duration = Duration::from_millis(4);
const FAST_LATER: Duration = Duration::from_millis(10);
/// Between two full readings while memory is awaited and not back: shows who holds it.
const LISTS: Duration = Duration::from_millis(250);
/// Between two lists of all units; changes of known ones arrive by themselves.
const ALL_UNITS: Duration = Duration::from_secs(10);

/// How long a full reading of the GPUs may take.
pub const FULL_READING: Duration = Duration::from_secs(2);
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
    tokio::spawn(gpus(nvml, order.clone(), driver.clone()));
    tokio::spawn(units(systemd, order, driver));
}

async fn gpus(nvml: Nvml, mut order: watch::Receiver<Order>, driver: mpsc::Sender<Message>) {
    let mut latest: Known<Vec<Gpu>> = Known::Unknown("not read yet".to_owned());
    let mut listed = Instant::now() - IDLE;
    let mut since = Instant::now();
    loop {
        let now = order.borrow_and_update().clone();
        let pause = match &now {
            Order::Idle => IDLE,
            Order::Loading => LOADING,
            // Nothing to be seen now, and asking faster does not bring it back.
            Order::Release(_) if latest.value().is_none() => LOADING,
            Order::Release(_) if since.elapsed() < Duration::from_secs(2) => FAST,
            Order::Release(_) => FAST_LATER,
        };
        let full = match (&now, &mut latest) {
            (Order::Release(parts), Known::Value(gpus)) if listed.elapsed() < LISTS => {
                let mut ids: Vec<DeviceId> = parts.iter().map(|part| part.placed.id.clone()).collect();
                ids.sort();
                ids.dedup();
                for (id, (at, memory)) in nvml.read_memory(&ids, FAST_READING).await {
                    if let Some(gpu) = gpus.iter_mut().find(|gpu| gpu.id == id) {
                        (gpu.read_at, gpu.memory) = (at, memory);
                    }
                }
                parts.iter().any(|part| back(part, gpus))
            }
            _ => true,
        };
        if full {
            latest = nvml.read_all(FULL_READING).await;
            listed = Instant::now();
            if driver.send(Message::Gpus(latest.clone())).await.is_err() {
                return;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = order.changed() => match changed {
                Ok(()) => since = Instant::now(),
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

async fn units(systemd: Systemd, mut order: watch::Receiver<Order>, driver: mpsc::Sender<Message>) {
    let mut changes = systemd.changes();
    let mut known: BTreeMap<ModelName, UnitReading> = BTreeMap::new();
    let mut all_at: Option<Instant> = None;
    loop {
        let message = if all_at.is_none_or(|at| at.elapsed() >= ALL_UNITS) {
            // While the bus is away the last that was known stays; what is not known is not gone.
            match systemd.units().await {
                Ok(read) => known = read,
                Err(error) => tracing::warn!(%error, "the units can't be listed"),
            }
            all_at = Some(Instant::now());
            Message::Units(known.iter().map(|(model, reading)| (model.clone(), refreshed(reading))).collect())
        } else {
            Message::Units(known.iter().map(|(model, reading)| (model.clone(), refreshed(reading))).collect())
        };
        if driver.send(message).await.is_err() {
            return;
        }
        let pause = if *order.borrow_and_update() == Order::Idle { IDLE } else { LOADING };
        let deadline = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => break,
                changed = order.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                change = changes.recv() => match change {
                    Ok(Change::Unit(change)) => {
                        let model = change.model;
                        match one(&systemd, &model).await {
                            Ok(Some(reading)) => {
                                let unit = refreshed(&reading);
                                known.insert(model.clone(), reading);
                                if driver.send(Message::Unit(model, Some(unit))).await.is_err() {
                                    return;
                                }
                            }
                            Ok(None) => {
                                known.remove(&model);
                                if driver.send(Message::Unit(model, None)).await.is_err() {
                                    return;
                                }
                            }
                            Err(error) => tracing::warn!(%model, %error, "the unit can't be read"),
                        }
                    }
                    Ok(Change::Job { .. }) => {}
                    // Something may have been missed: look at everything.
                    Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {
                        all_at = None;
                        break;
                    }
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                },
            }
        }
    }
}

async fn one(systemd: &Systemd, model: &ModelName) -> Result<Option<UnitReading>, SystemdError> {
    systemd.unit(model).await
}

/// The unit with the processes that are in its cgroup now.
fn refreshed(reading: &UnitReading) -> Unit {
    let mut unit = reading.unit.clone();
    unit.processes = crate::proc::cgroup_processes(&reading.control_group);
    unit
}

/// Everything once, for a decision: read now, not taken from what was observed before.
pub struct Fresh {
    /// The GPUs.
    pub gpus: Known<Vec<Gpu>>,
    /// The units; None where systemd did not answer.
    pub units: Option<BTreeMap<ModelName, Unit>>,
    /// The cgroup of each unit that has one.
    pub control_groups: BTreeMap<ModelName, String>,
}

/// Reads everything once.
pub async fn fresh(nvml: &Nvml, systemd: &Systemd) -> Fresh {
    let (gpus, units) = tokio::join!(nvml.read_all(FULL_READING), systemd.units());
    match units {
        Ok(units) => Fresh {
            gpus,
            units: Some(units.iter().map(|(model, reading)| (model.clone(), refreshed(reading))).collect()),
            control_groups: units
                .into_iter()
                .map(|(model, reading)| (model, reading.control_group))
                .collect(),
        },
        Err(error) => {
            tracing::warn!(%error, "the units can't be listed");
            Fresh { gpus, units: None, control_groups: BTreeMap::new() }
        }
    }
}
