//! systemd over the system bus: model units started, stopped, read and watched.
//!
//! This owns the connection to the bus and keeps it: when the bus or systemd goes away it connects again and
//! says so ([`Change::Lost`], [`Change::Back`]). It handles instances of `berth-model@.service`, and in their place the units
//! that they replace while those still run (`predecessor`), lists which services are enabled for boot, and decides nothing. berthd is no root here; a polkit rule lets it make exactly the calls that are made below.

mod bus;
mod job;
mod predecessor;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use berth_core::facts::{Active, Moment, Unit};
use berth_core::layout::Layout;
use berth_core::name::ModelName;
use berth_core::rivals::Service;
use berth_core::upkeep::End;
use berth_observe::systemd::{SYSTEMD, UNIT, call, enabled, path};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::JoinHandle;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant};

use crate::fault;
use crate::proc::Groups;

pub use self::job::Job;
use self::job::Wanted;
use self::predecessor::Predecessors;
pub use berth_observe::systemd::{JobResult, SystemdError};

/// Changes that a slow reader may leave unread before it loses the oldest.
const CHANGES: usize = 1024;

/// What systemd told unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Something about a model's unit.
    Unit(UnitChange),
    /// A job of a model's unit ended.
    Job {
        /// The model.
        model: ModelName,
        /// How.
        result: JobResult,
    },
    /// systemd begins (true) or has ended (false) to load all units anew; read the units after the end.
    Reloading(bool),
    /// Other units count as models' from here on; read the units.
    Predecessors,
    /// The bus or systemd went away, and why; changes are missed from here on.
    Lost(String),
    /// It is back: what was missed has to be read.
    Back,
}

/// What changed about a model's unit; None where nothing was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitChange {
    /// The model.
    pub model: ModelName,
    /// Its `ActiveState`.
    pub active: Option<Active>,
    /// Its `SubState`.
    pub sub: Option<String>,
    /// The `Result` of its run.
    pub result: Option<String>,
    /// Its main process; 0 when there is none.
    pub main_pid: Option<u32>,
}

/// A unit as read, with the cgroups that its processes were read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitReading {
    /// The unit.
    pub unit: Unit,
    /// All that run for the model.
    pub control_groups: Groups,
}

/// A setting of a running unit that can be changed at run time. It lasts until the next boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// `AllowedCPUs=`; none given means all.
    AllowedCpus(BTreeSet<u16>),
    /// `MemoryMin=` in bytes; 0 protects nothing.
    MemoryMin(u64),
}

impl Property {
    /// What a model's unit is to have for a start that is laid out so; what an earlier start left is undone.
    pub fn of(layout: &Layout) -> [Self; 2] {
        let cpus = layout.cores.iter().filter_map(|cpu| u16::try_from(*cpu).ok());
        // Reclaim is to find other victims: pages that are locked by nobody, as those of buffers, belong to it too.
        let kept = if layout.lock { layout.host.0 } else { 0 };
        [Self::AllowedCpus(cpus.collect()), Self::MemoryMin(kept)]
    }

    fn on_the_bus(&self) -> (&'static str, OwnedVariant) {
        let (name, value) = match self {
            Self::AllowedCpus(cpus) => {
                let mut mask = vec![0_u8; cpus.last().map_or(0, |last| usize::from(last / 8) + 1)];
                for cpu in cpus {
                    mask[usize::from(cpu / 8)] |= 1 << (cpu % 8);
                }
                ("AllowedCPUs", Variant::from(mask))
            }
            Self::MemoryMin(bytes) => ("MemoryMin", Variant::from(*bytes)),
        };
        // Only file descriptors can fail to be owned.
        (name, value.try_into().unwrap_or_else(|_| OwnedVariant::from(0_u64)))
    }
}

/// systemd, as far as models are concerned. Clones share one connection, which ends with the last of them.
#[derive(Clone)]
pub struct Systemd {
    inner: Arc<Inner>,
    _keeper: Arc<Keeper>,
}

impl fmt::Debug for Systemd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Systemd")
    }
}

/// The task that keeps the connection.
struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Inner {
    link: watch::Sender<Link>,
    changes: broadcast::Sender<Change>,
    waiters: Mutex<Vec<Waiter>>,
    referenced: Mutex<BTreeSet<String>>,
    predecessors: Mutex<Predecessors>,
}

/// The connection, or why there is none.
enum Link {
    Up(Connection),
    Down(String),
}

/// Somebody who waits for a job of this unit.
struct Waiter {
    unit: String,
    ends: mpsc::UnboundedSender<job::JobEnd>,
}

impl Systemd {
    /// Connects, and listens to what systemd tells before anything is asked of it.
    pub async fn connect() -> Result<Self, SystemdError> {
        let opened = bus::first().await?;
        let inner = Arc::new(Inner {
            link: watch::Sender::new(Link::Up(opened.connection.clone())),
            changes: broadcast::Sender::new(CHANGES),
            waiters: Mutex::default(),
            referenced: Mutex::default(),
            predecessors: Mutex::default(),
        });
        let keeper = Keeper(tokio::spawn(bus::keep(Arc::clone(&inner), opened)));
        Ok(Self { inner, _keeper: Arc::new(keeper) })
    }

    /// What systemd tells from now on. A reader that is too slow loses the oldest and has to read the units.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// From now on these units count as the models' while they run. Whether they are others than before.
    pub fn set_predecessors(&self, units: BTreeMap<ModelName, String>) -> bool {
        let news = self.inner.predecessors().declare(units);
        if news {
            // No receiver is no error.
            _ = self.inner.changes.send(Change::Predecessors);
        }
        news
    }

    /// Changes whenever other units count as models'; what was read before says nothing of them.
    pub fn predecessors_generation(&self) -> u64 {
        self.inner.predecessors().generation()
    }

    /// The units that a model has or had: its own, and the one that it replaces.
    pub fn units_of(&self, model: &ModelName) -> Vec<String> {
        self.inner.predecessors().units_of(model)
    }

    /// All units of models that systemd has loaded.
    pub async fn units(&self) -> Result<BTreeMap<ModelName, UnitReading>, SystemdError> {
        let connection = self.connection("list the models' units")?;
        let declared = self.inner.predecessors().declared().clone();
        fault::call("ListUnits", read::all(&connection, &declared)).await
    }

    /// The unit of one model; None when systemd hasn't loaded it.
    pub async fn unit(&self, model: &ModelName) -> Result<Option<UnitReading>, SystemdError> {
        let connection = self.connection(&format!("read {}", model.unit()))?;
        let units = self.units_of(model);
        fault::call("Get", read::one(&connection, model, &units)).await
    }

    /// Why a unit was stopped at this moment, not by berthd: by hand, or since systemd goes down or has gone down, which
    /// stops everything then.
    pub async fn why_stopped(&self, at: Moment) -> Result<End, SystemdError> {
        let connection = self.connection("read the state of the system")?;
        let (state, began_at) = fault::call("SystemState", read::system_state(&connection)).await?;
        Ok(match state.as_str() {
            _ if at < began_at => End::WithSystemd,
            "stopping" => End::Shutdown,
            _ => End::ByHand,
        })
    }

    /// All services that are enabled for boot, Berth's and others.
    pub async fn enabled(&self) -> Result<Vec<Service>, SystemdError> {
        let connection = self.connection("list the services that are enabled for boot")?;
        fault::call("ListUnitFiles", enabled::all(&connection)).await
    }

    /// Starts the model's unit. Returns once the job is queued; `deadline` is for the job's end.
    ///
    /// A stop that is still running is not overruled: that start is refused.
    pub async fn start(&self, model: &ModelName, deadline: Instant) -> Result<Job, SystemdError> {
        self.queue(model.unit(), Wanted::Up, "start", "Start", "fail", deadline).await
    }

    /// Stops the model's unit. Returns once the job is queued; `deadline` is for the job's end. A start that is
    /// still running is called off.
    pub async fn stop(&self, model: &ModelName, deadline: Instant) -> Result<Job, SystemdError> {
        self.queue(self.unit_now(model).await?, Wanted::Down, "stop", "Stop", "replace", deadline).await
    }

    /// Sends a signal to all processes of the model's unit.
    pub async fn kill(&self, model: &ModelName, signal: i32) -> Result<(), SystemdError> {
        let unit = self.unit_now(model).await?;
        self.on_unit(&unit, &format!("send signal {signal} to {unit}"), "Kill", &("all", signal)).await
    }

    /// Sends a signal to all processes of the container that docker runs for the model. Gives whether there were any.
    pub async fn signal_container(&self, model: &ModelName, signal: i32) -> Result<bool, SystemdError> {
        let slice = Groups::of(crate::proc::slice_of(model));
        if crate::proc::cgroup_processes(&slice).value().is_some_and(BTreeMap::is_empty) {
            return Ok(false);
        }
        let doing = format!("send signal {signal} to {}", model.slice());
        let connection = self.connection(&doing)?;
        let path = path::of_unit(&model.slice());
        let body = ("all", signal);
        let sent = call(&connection, &doing, SYSTEMD, &path, UNIT, "Kill", &body);
        fault::call("Kill", sent).await.map(|()| true)
    }

    /// Forgets that the model's unit failed.
    pub async fn reset_failed(&self, model: &ModelName) -> Result<(), SystemdError> {
        let unit = model.unit();
        self.on_unit(&unit, &format!("reset the failure of {unit}"), "ResetFailed", &()).await
    }

    /// Keeps systemd from forgetting the last run of the model's unit, and of the one that it replaces, while this
    /// connection lasts. Doing it twice is once; after a loss of the bus it is done again.
    pub async fn reference(&self, model: &ModelName) -> Result<(), SystemdError> {
        let mut done = Ok(());
        for unit in self.units_of(model) {
            if self.inner.referenced().contains(&unit) {
                continue;
            }
            match self.on_unit(&unit, &format!("hold on to {unit}"), "Ref", &()).await {
                Ok(()) => _ = self.inner.referenced().insert(unit),
                // One that a model replaces may be gone for good.
                Err(SystemdError::NoSuchUnit { .. }) => {}
                Err(error) => done = done.and(Err(error)),
            }
        }
        done
    }

    /// Lets systemd forget the model's units when they are down.
    pub async fn unreference(&self, model: &ModelName) -> Result<(), SystemdError> {
        for unit in self.units_of(model) {
            if self.inner.referenced().remove(&unit) {
                self.on_unit(&unit, &format!("let go of {unit}"), "Unref", &()).await?;
            }
        }
        Ok(())
    }

    /// Sets properties of the model's unit until the next boot.
    pub async fn set_properties(
        &self,
        model: &ModelName,
        properties: &[Property],
    ) -> Result<(), SystemdError> {
        let unit = model.unit();
        let properties: Vec<_> = properties.iter().map(Property::on_the_bus).collect();
        self.on_unit(&unit, &format!("set properties of {unit}"), "SetProperties", &(true, properties)).await
    }

    /// Whether the model's unit has these properties already. polkit is not asked for that.
    pub async fn has_properties(
        &self,
        model: &ModelName,
        properties: &[Property],
    ) -> Result<bool, SystemdError> {
        let connection = self.connection(&format!("read {}", model.unit()))?;
        fault::call("GetProperties", read::have(&connection, model, properties)).await
    }

    /// The unit as which a model runs or ran last. Where it replaces none that is its own, whatever systemd says.
    async fn unit_now(&self, model: &ModelName) -> Result<String, SystemdError> {
        let own = model.unit();
        if !self.inner.predecessors().declared().contains_key(model) {
            return Ok(own);
        }
        let reading = self.unit(model).await?;
        Ok(reading.and_then(|reading| reading.unit.predecessor).unwrap_or(own))
    }

    async fn queue(
        &self,
        unit: String,
        wanted: Wanted,
        verb: &str,
        member: &str,
        mode: &str,
        deadline: Instant,
    ) -> Result<Job, SystemdError> {
        let doing = format!("{verb} {unit}");
        let connection = self.connection(&doing)?;
        // Before the call: the job can end before its name is known here.
        let (ends, waiter) = mpsc::unbounded_channel();
        self.inner.waiters().push(Waiter { unit: unit.clone(), ends });
        let began = Instant::now();
        let (path, body) = (path::of_unit(&unit), (mode,));
        let call = call(&connection, &doing, SYSTEMD, &path, UNIT, member, &body);
        let job: OwnedObjectPath = fault::call(member, call).await?;
        let (systemd, object) = (self.clone(), job.as_str().to_owned());
        Ok(Job { systemd, unit, doing, wanted, object, began, deadline, waiter })
    }

    async fn on_unit<B>(&self, unit: &str, doing: &str, member: &str, body: &B) -> Result<(), SystemdError>
    where
        B: serde::Serialize + zbus::wire::DynamicType + Sync,
    {
        let connection = self.connection(doing)?;
        let path = path::of_unit(unit);
        fault::call(member, call(&connection, doing, SYSTEMD, &path, UNIT, member, body)).await
    }

    fn connection(&self, doing: &str) -> Result<Connection, SystemdError> {
        match &*self.inner.link.borrow() {
            Link::Up(connection) => Ok(connection.clone()),
            Link::Down(why) => Err(SystemdError::Unreachable { doing: doing.to_owned(), why: why.clone() }),
        }
    }
}

impl Inner {
    fn waiters(&self) -> MutexGuard<'_, Vec<Waiter>> {
        // Nothing panics while it holds the lock.
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn predecessors(&self) -> MutexGuard<'_, Predecessors> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn referenced(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.referenced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use berth_core::bytes::Bytes;

    use super::*;

    #[test]
    fn each_start_sets_or_resets_what_its_layout_says() {
        let layout = Layout { cores: vec![0, 2], lock: true, host: Bytes::mib(1), ..Layout::default() };
        let cpus = BTreeSet::from([0, 2]);
        assert_eq!(
            Property::of(&layout),
            [Property::AllowedCpus(cpus.clone()), Property::MemoryMin(1 << 20)]
        );
        let unlocked = Layout { lock: false, ..layout };
        assert_eq!(Property::of(&unlocked), [Property::AllowedCpus(cpus), Property::MemoryMin(0)]);
        let nothing = [Property::AllowedCpus(BTreeSet::new()), Property::MemoryMin(0)];
        assert_eq!(Property::of(&Layout::default()), nothing);
    }

    #[test]
    fn properties_have_the_types_of_the_bus() {
        let cpus = Property::AllowedCpus(BTreeSet::from([0, 2, 9]));
        assert_eq!(
            cpus.on_the_bus(),
            ("AllowedCPUs", OwnedVariant::try_from(Variant::from(vec![5_u8, 2])).unwrap())
        );
        let (_, none) = Property::AllowedCpus(BTreeSet::new()).on_the_bus();
        assert_eq!(none.value_signature().to_string(), "ay");
        let (name, bytes) = Property::MemoryMin(1 << 30).on_the_bus();
        assert_eq!((name, bytes.value_signature().to_string().as_str()), ("MemoryMin", "t"));
    }
}
