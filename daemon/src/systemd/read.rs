//! Units read from their properties on the bus.

use std::collections::BTreeMap;

use berth_core::facts::{Active, Docker, Exit, Known, Moment, Unit};
use berth_core::name::ModelName;
use berth_observe::systemd::{
    Listed, MANAGER, Reader, SCOPE, SERVICE, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call,
};
use futures_util::future::try_join_all;
use zbus::{Connection, OwnedObjectPath};

use super::{Property, UnitReading};
use crate::proc::Groups;

/// Readings before one that changed under the eyes is taken as it is: the next signal corrects it.
const READINGS: usize = 3;

/// All units of models; `predecessors` are those that models replace.
pub(super) async fn all(
    connection: &Connection,
    predecessors: &BTreeMap<ModelName, String>,
) -> Result<BTreeMap<ModelName, UnitReading>, SystemdError> {
    let names = predecessors.values().map(String::as_str);
    let wanted: Vec<&str> = std::iter::once("berth-model@*.service").chain(names).collect();
    let patterns: (&[&str], &[&str]) = (&[], &wanted);
    let listed: Vec<Listed> = call(
        connection,
        "list the models' units",
        SYSTEMD,
        SYSTEMD_PATH,
        MANAGER,
        "ListUnitsByPatterns",
        &patterns,
    )
    .await?;
    let mut loaded: BTreeMap<ModelName, Vec<String>> = BTreeMap::new();
    for unit in listed.into_iter().map(|unit| unit.0) {
        let replacing = || predecessors.iter().find(|(_, declared)| **declared == unit);
        let model = ModelName::from_unit(&unit).or_else(|| replacing().map(|(model, _)| model.clone()));
        if let Some(model) = model {
            loaded.entry(model).or_default().push(unit);
        }
    }
    let readings = try_join_all(loaded.into_iter().map(async |(model, units)| {
        let reading = read(connection, &model, &units).await?;
        Ok::<_, SystemdError>(reading.map(|reading| (model, reading)))
    }))
    .await?;
    let mut all: BTreeMap<ModelName, UnitReading> = readings.into_iter().flatten().collect();
    for model in crate::proc::with_slices() {
        if !all.contains_key(&model) {
            all.extend(left(&model).map(|reading| (model, reading)));
        }
    }
    Ok(all)
}

/// A model as one of these units, as far as they are loaded or its container is left.
pub(super) async fn one(
    connection: &Connection,
    model: &ModelName,
    units: &[String],
) -> Result<Option<UnitReading>, SystemdError> {
    let mut loaded = Vec::new();
    for unit in units {
        let doing = format!("read {unit}");
        let found: Result<OwnedObjectPath, _> =
            call(connection, &doing, SYSTEMD, SYSTEMD_PATH, MANAGER, "GetUnit", &(unit,)).await;
        match found {
            Ok(_) => loaded.push(unit.clone()),
            Err(SystemdError::NoSuchUnit { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    read(connection, model, &loaded).await
}

/// The unit's state once it has no job; None while it has one.
pub(super) async fn settled(connection: &Connection, unit: &str) -> Result<Option<Active>, SystemdError> {
    let reader = Reader::of(connection, unit);
    // First: what the state is after the job's end came of the job.
    let (job, _) = reader.get::<(u32, OwnedObjectPath)>(UNIT, "Job").await?;
    if job != 0 {
        return Ok(None);
    }
    let active = reader.get::<String>(UNIT, "ActiveState").await?;
    parse_active(&active).map(Some).ok_or_else(|| reader.unexpected("ActiveState"))
}

/// systemd's word for the state of the whole system, and when it began itself.
pub(super) async fn system_state(connection: &Connection) -> Result<(String, Moment), SystemdError> {
    let doing = "read the state of the system";
    let reader = Reader::of_manager(connection, doing);
    let began = reader.get::<u64>(MANAGER, "UserspaceTimestampMonotonic").await?;
    Ok((reader.get(MANAGER, "SystemState").await?, Moment::from_micros(began)))
}

/// A model as that one of these units as which it runs or ran last; None where there is none.
async fn read(
    connection: &Connection,
    model: &ModelName,
    units: &[String],
) -> Result<Option<UnitReading>, SystemdError> {
    let own = model.unit();
    let mut all = Vec::new();
    for unit in units {
        let is_own = *unit == own;
        if is_own || cannot_be_started(connection, unit).await? {
            let mut reading = read_unit(connection, unit).await?;
            reading.unit.predecessor = Some(unit.clone()).filter(|_| !is_own);
            all.push(reading);
        }
    }
    let Some(last) = current(&all) else { return Ok(left(model)) };
    let mut reading = all.swap_remove(last);
    // What one that is down has left behind belongs to the model, too, until another runs in its place.
    let down = reading.unit.active.is_down();
    let others = all.into_iter().filter(|_| down).flat_map(|other| other.control_groups.paths);
    let mut more: Vec<String> = others.collect();
    // docker runs its container in a slice, which comes later than the unit, also when that is down, and may stay longer.
    more.push(crate::proc::slice_of(model));
    reading.control_groups.paths.extend(more);
    reading.refresh(&Unit::docker_not_asked());
    Ok(Some(reading))
}

impl UnitReading {
    /// Reads the processes that are in the cgroups now, and what they have brought. What `docker` was at has to be read
    /// before: what it starts after that is seen here.
    pub fn refresh(&mut self, docker: &Known<Docker>) {
        let used = crate::proc::cgroup_processes(&self.control_groups);
        self.unit.processes = crate::proc::started_of(&used);
        self.unit.brought = crate::proc::brought_by(&used, &self.control_groups);
        let paths = self.control_groups.paths.iter().filter(|path| crate::proc::is_slice(path)).cloned();
        self.unit.docker =
            match crate::proc::cgroup_processes(&Groups { paths: paths.collect(), moved: None }) {
                Known::Value(inside) if inside.is_empty() => docker.clone(),
                Known::Value(_) => Known::Value(Docker::Runs),
                Known::Unknown(why) => Known::Unknown(why),
            };
    }
}

/// Whether nobody can start this unit anew, so that it runs to its end and never beside the model: a masked service, or a
/// scope, which is made of what runs already. One that can be is nobody's predecessor but a service as any other.
async fn cannot_be_started(connection: &Connection, unit: &str) -> Result<bool, SystemdError> {
    if is_scope(unit) {
        return Ok(true);
    }
    Ok(Reader::of(connection, unit).get::<String>(UNIT, "LoadState").await? == "masked")
}

fn is_scope(unit: &str) -> bool {
    unit.rsplit('.').next() == Some("scope")
}

/// Which of a model's units it is now: its own where that is up, else the other where that is, else the one that ran last.
fn current(all: &[UnitReading]) -> Option<usize> {
    (0..all.len()).max_by_key(|&at| {
        let unit = &all[at].unit;
        let (up, own) = (!unit.active.is_down(), unit.predecessor.is_none());
        (up, up && own, unit.started_at, own)
    })
}

async fn read_unit(connection: &Connection, unit: &str) -> Result<UnitReading, SystemdError> {
    let mut read = read_once(connection, unit).await?;
    for _ in 1..READINGS {
        if read.1 {
            break;
        }
        read = read_once(connection, unit).await?;
    }
    Ok(read.0)
}

/// Reads the properties in one go, and says whether the unit's state was the same at its beginning and end. Not
/// by `GetAll`: a service has 300 properties, some of which cost systemd a look into cgroups.
async fn read_once(connection: &Connection, unit: &str) -> Result<(UnitReading, bool), SystemdError> {
    let reader = Reader::of(connection, unit);
    if is_scope(unit) {
        return read_scope(&reader).await;
    }
    let (active, sub, invocation, result, code, status, started, pid, control_group, still, still_pid) = tokio::try_join!(
        reader.get::<String>(UNIT, "ActiveState"),
        reader.get::<String>(UNIT, "SubState"),
        reader.get::<Vec<u8>>(UNIT, "InvocationID"),
        reader.get::<String>(SERVICE, "Result"),
        reader.get::<i32>(SERVICE, "ExecMainCode"),
        reader.get::<i32>(SERVICE, "ExecMainStatus"),
        reader.get::<u64>(SERVICE, "ExecMainStartTimestampMonotonic"),
        reader.get::<u32>(SERVICE, "MainPID"),
        reader.get::<String>(SERVICE, "ControlGroup"),
        reader.get::<String>(UNIT, "ActiveState"),
        reader.get::<u32>(SERVICE, "MainPID"),
    )?;
    let read =
        Properties { active, sub, invocation, result, exit: exit(code, status), started, pid, control_group };
    Ok((read.taken(&reader)?, read.active == still && pid == still_pid))
}

/// A scope has no main process and says nothing of how one ended.
async fn read_scope(reader: &Reader<'_>) -> Result<(UnitReading, bool), SystemdError> {
    let (active, sub, invocation, result, started, control_group, still) = tokio::try_join!(
        reader.get::<String>(UNIT, "ActiveState"),
        reader.get::<String>(UNIT, "SubState"),
        reader.get::<Vec<u8>>(UNIT, "InvocationID"),
        reader.get::<String>(SCOPE, "Result"),
        reader.get::<u64>(UNIT, "ActiveEnterTimestampMonotonic"),
        reader.get::<String>(SCOPE, "ControlGroup"),
        reader.get::<String>(UNIT, "ActiveState"),
    )?;
    let read = Properties { active, sub, invocation, result, exit: None, started, pid: 0, control_group };
    let mut reading = read.taken(reader)?;
    let first = reading.unit.processes.value().and_then(|all| all.keys().next().copied());
    reading.control_groups.moved = first.and_then(crate::proc::uid_of);
    Ok((reading, read.active == still))
}

/// What was read of a unit.
struct Properties {
    active: String,
    sub: String,
    invocation: Vec<u8>,
    result: String,
    exit: Option<Exit>,
    started: u64,
    pid: u32,
    control_group: String,
}

impl Properties {
    /// The unit that it comes to, with the processes that it has now.
    fn taken(&self, reader: &Reader<'_>) -> Result<UnitReading, SystemdError> {
        let control_groups = Groups::of(self.control_group.clone());
        let used = crate::proc::cgroup_processes(&control_groups);
        let unit = Unit {
            active: parse_active(&self.active).ok_or_else(|| reader.unexpected("ActiveState"))?,
            sub: self.sub.clone(),
            result: self.result.clone(),
            exit: self.exit,
            invocation: hex(&self.invocation),
            started_at: (self.started > 0).then(|| Moment::from_micros(self.started)),
            main_pid: (self.pid > 0).then_some(self.pid),
            processes: crate::proc::started_of(&used),
            brought: crate::proc::brought_by(&used, &control_groups),
            docker: Unit::docker_not_asked(),
            predecessor: None,
        };
        Ok(UnitReading { unit, control_groups })
    }
}

/// A model of whose unit systemd knows no more, and whose container runs all the same.
fn left(model: &ModelName) -> Option<UnitReading> {
    let control_groups = Groups::of(crate::proc::slice_of(model));
    let unit = Unit {
        active: Active::Inactive,
        sub: "dead".to_owned(),
        result: String::new(),
        exit: None,
        invocation: String::new(),
        started_at: None,
        main_pid: None,
        processes: Known::Value(BTreeMap::new()),
        brought: Known::Unknown(String::new()),
        docker: Unit::docker_not_asked(),
        predecessor: None,
    };
    let mut reading = UnitReading { unit, control_groups };
    reading.refresh(&Unit::docker_not_asked());
    Some(reading).filter(|reading| !reading.unit.processes.value().is_some_and(BTreeMap::is_empty))
}

/// Whether these are the unit's properties.
pub(super) async fn have(
    connection: &Connection,
    model: &ModelName,
    properties: &[Property],
) -> Result<bool, SystemdError> {
    let reader = &Reader::of(connection, &model.unit());
    let same = properties.iter().map(async |property| match property {
        Property::AllowedCpus(cpus) => {
            let mask: Vec<u8> = reader.get(SERVICE, "AllowedCPUs").await?;
            Ok(bits(&mask).eq(cpus.iter().copied()))
        }
        Property::MemoryMin(bytes) => Ok(reader.get::<u64>(SERVICE, "MemoryMin").await? == *bytes),
    });
    Ok(try_join_all(same).await?.into_iter().all(|same| same))
}

/// Which bits of a mask are set, the lowest first.
fn bits(mask: &[u8]) -> impl Iterator<Item = u16> {
    (0..).zip(mask).flat_map(|(at, byte)| {
        (0..8_u16).filter(move |bit| byte >> bit & 1 == 1).map(move |bit| at * 8 + bit)
    })
}

/// Bytes in lower-case hex.
fn hex(bytes: &[u8]) -> String {
    let digit = |four: u8| char::from_digit(four.into(), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// systemd's word for a state.
pub(super) fn parse_active(word: &str) -> Option<Active> {
    Some(match word {
        // A unit that is being refreshed or cleaned up runs or is down as before.
        "active" | "refreshing" => Active::Active,
        "reloading" => Active::Reloading,
        "inactive" | "maintenance" => Active::Inactive,
        "failed" => Active::Failed,
        "activating" => Active::Activating,
        "deactivating" => Active::Deactivating,
        _ => return None,
    })
}

/// waitid's code and status, where the main process has ended.
fn exit(code: i32, status: i32) -> Option<Exit> {
    match code {
        nix::libc::CLD_EXITED => Some(Exit::Status(status)),
        nix::libc::CLD_KILLED | nix::libc::CLD_DUMPED => Some(Exit::Signal(status)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit in this state that was started then; its own, or the one that it replaces.
    fn reading(active: Active, started: Option<u64>, own: bool) -> UnitReading {
        let unit = Unit {
            active,
            sub: String::new(),
            result: String::new(),
            exit: None,
            invocation: String::new(),
            started_at: started.map(Moment::from_secs),
            main_pid: None,
            processes: Known::Value(BTreeMap::new()),
            brought: Known::Unknown(String::new()),
            docker: Unit::docker_not_asked(),
            predecessor: (!own).then(|| "genesis.service".to_owned()),
        };
        UnitReading { unit, control_groups: Groups::default() }
    }

    #[test]
    fn a_model_is_the_unit_that_runs_or_ran_last() {
        use Active::{Activating, Active as Up, Deactivating, Failed, Inactive};
        let of = |own: (Active, Option<u64>), other: (Active, Option<u64>)| {
            let all = [reading(own.0, own.1, true), reading(other.0, other.1, false)];
            let reversed = [all[1].clone(), all[0].clone()];
            let own = current(&all) == Some(0);
            assert_eq!(current(&reversed) == Some(1), own, "whatever their order");
            own
        };
        // Before it was Berth's, while that is stopped, and after.
        assert!(!of((Inactive, None), (Up, Some(5))));
        assert!(!of((Inactive, None), (Deactivating, Some(5))));
        assert!(!of((Inactive, None), (Inactive, Some(5))));
        assert!(of((Activating, Some(9)), (Inactive, Some(5))));
        assert!(of((Failed, Some(9)), (Failed, Some(5))));
        // Of two that run it is its own, and a unit that never ran is none.
        assert!(of((Up, Some(2)), (Up, Some(5))));
        assert!(of((Inactive, None), (Inactive, None)));
        assert_eq!(current(&[]), None);
    }
}
