//! Units read from their properties on the bus.

use std::collections::BTreeMap;

use berth_core::facts::{Active, Exit, Moment, Unit};
use berth_core::name::ModelName;
use berth_observe::systemd::{
    Listed, MANAGER, Reader, SERVICE, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call,
};
use futures_util::future::try_join_all;
use zbus::{Connection, OwnedObjectPath};

use super::{Property, UnitReading};

/// Readings before one that changed under the eyes is taken as it is: the next signal corrects it.
const READINGS: usize = 3;

/// All units of models.
pub(super) async fn all(connection: &Connection) -> Result<BTreeMap<ModelName, UnitReading>, SystemdError> {
    let patterns: (&[&str], &[&str]) = (&[], &["berth-model@*.service"]);
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
    let models = listed.iter().filter_map(|unit| ModelName::from_unit(&unit.0));
    let readings = try_join_all(models.map(|model| async {
        let reading = read(connection, &model).await?;
        Ok::<_, SystemdError>((model, reading))
    }))
    .await?;
    let mut all: BTreeMap<ModelName, UnitReading> = readings.into_iter().collect();
    for model in crate::proc::with_slices() {
        if !all.contains_key(&model) {
            all.extend(left(&model).map(|reading| (model, reading)));
        }
    }
    Ok(all)
}

/// One unit, if it is loaded or has left processes.
pub(super) async fn one(
    connection: &Connection,
    model: &ModelName,
) -> Result<Option<UnitReading>, SystemdError> {
    let unit = model.unit();
    let doing = format!("read {unit}");
    let found: Result<OwnedObjectPath, _> =
        call(connection, &doing, SYSTEMD, SYSTEMD_PATH, MANAGER, "GetUnit", &(unit,)).await;
    match found {
        Ok(_) => read(connection, model).await.map(Some),
        Err(SystemdError::NoSuchUnit { .. }) => Ok(left(model)),
        Err(error) => Err(error),
    }
}

/// The unit's state once it has no job; None while it has one.
pub(super) async fn settled(
    connection: &Connection,
    model: &ModelName,
) -> Result<Option<Active>, SystemdError> {
    let reader = Reader::of(connection, &model.unit());
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

async fn read(connection: &Connection, model: &ModelName) -> Result<UnitReading, SystemdError> {
    let mut read = read_once(connection, model).await?;
    for _ in 1..READINGS {
        if read.1 {
            break;
        }
        read = read_once(connection, model).await?;
    }
    Ok(read.0)
}

/// Reads the properties in one go, and says whether the unit's state was the same at its beginning and end. Not
/// by `GetAll`: a service has 300 properties, some of which cost systemd a look into cgroups.
async fn read_once(connection: &Connection, model: &ModelName) -> Result<(UnitReading, bool), SystemdError> {
    let reader = Reader::of(connection, &model.unit());
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
    // That of the unit, and that in which docker runs its container, which may come later and stay longer.
    let slice = crate::proc::slice_of(model);
    let stays = !control_group.is_empty() || crate::proc::cgroup_id(&slice).is_some();
    let control_groups: Vec<String> = Some(control_group)
        .filter(|group| !group.is_empty())
        .into_iter()
        .chain(Some(slice).filter(|_| stays))
        .collect();
    let used = crate::proc::cgroup_processes(&control_groups);
    let unit = Unit {
        active: parse_active(&active).ok_or_else(|| reader.unexpected("ActiveState"))?,
        sub,
        result,
        exit: exit(code, status),
        invocation: hex(&invocation),
        started_at: (started > 0).then(|| Moment::from_micros(started)),
        main_pid: (pid > 0).then_some(pid),
        processes: crate::proc::started_of(&used),
        brought: crate::proc::brought_by(&used, &control_groups),
    };
    Ok((UnitReading { unit, control_groups }, active == still && pid == still_pid))
}

/// A model of whose unit systemd knows no more, and whose container runs all the same.
fn left(model: &ModelName) -> Option<UnitReading> {
    let control_groups = vec![crate::proc::slice_of(model)];
    let used = crate::proc::cgroup_processes(&control_groups);
    if used.value().is_some_and(BTreeMap::is_empty) {
        return None;
    }
    let unit = Unit {
        active: Active::Inactive,
        sub: "dead".to_owned(),
        result: String::new(),
        exit: None,
        invocation: String::new(),
        started_at: None,
        main_pid: None,
        processes: crate::proc::started_of(&used),
        brought: crate::proc::brought_by(&used, &control_groups),
    };
    Some(UnitReading { unit, control_groups })
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
