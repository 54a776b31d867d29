//! Services that are enabled for boot, whoever's they are. Reading them asks for no permission, and loads what systemd
//! has not loaded; it forgets that again.

use berth_core::rivals::Service;
use zbus::Connection;

use crate::scope::Scope;

use super::{Listed, MANAGER, Reader, SERVICE, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call};

const DOING: &str = "list the services that are enabled for boot";

/// One command of `ExecStart`: program, argv, whether its failure is ignored, and how it went last.
type Command = (String, Vec<String>, bool, u64, u64, u64, u64, u32, i32, i32);

/// All services that are enabled for boot. One by one: nobody waits for them, and others may for systemd.
///
/// # Errors
/// When systemd does not answer.
pub async fn all(connection: &Connection) -> Result<Vec<Service>, SystemdError> {
    let mut services = Vec::new();
    let display = display_manager(connection).await?;
    let mut units = files(connection).await?;
    for instance in instances(connection).await? {
        let reader = Reader::of(connection, &instance);
        if reader.get::<String>(UNIT, "UnitFileState").await.is_ok_and(|state| state == "enabled") {
            units.push(instance);
        }
    }
    for unit in units.into_iter().filter(|unit| Some(unit) != display.as_ref()) {
        match read(connection, unit).await {
            Ok(service) => services.push(service),
            // It went away in between, or is no service any more.
            Err(SystemdError::NoSuchUnit { .. } | SystemdError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(services)
}

/// Services whose file is enabled. What is enabled until the next boot only is no rival at it.
async fn files(connection: &Connection) -> Result<Vec<String>, SystemdError> {
    let which: (&[&str], &[&str]) = (&["enabled"], &["*.service"]);
    let listed: Vec<(String, String)> =
        call(connection, DOING, SYSTEMD, SYSTEMD_PATH, MANAGER, "ListUnitFilesByPatterns", &which).await?;
    let units = listed.into_iter().filter_map(|(path, _)| Some(path.rsplit_once('/')?.1.to_owned()));
    Ok(units.filter(|unit| !unit.contains("@.")).collect())
}

/// Instances of templates, which have no file of their own: one that is enabled is loaded, by the target that wants
/// it.
async fn instances(connection: &Connection) -> Result<Vec<String>, SystemdError> {
    let which: (&[&str], &[&str]) = (&[], &["*@*.service"]);
    let listed: Vec<Listed> =
        call(connection, DOING, SYSTEMD, SYSTEMD_PATH, MANAGER, "ListUnitsByPatterns", &which).await?;
    Ok(listed.into_iter().map(|unit| unit.0).collect())
}

/// The service that shows the desktop, by its own name; None where there is none. It holds GPU memory and is no rival.
async fn display_manager(connection: &Connection) -> Result<Option<String>, SystemdError> {
    let reader = Reader::of(connection, "display-manager.service");
    match reader.get::<String>(UNIT, "Id").await {
        Ok(unit) => Ok(Some(unit)),
        Err(SystemdError::NoSuchUnit { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn read(connection: &Connection, unit: String) -> Result<Service, SystemdError> {
    let reader = Reader::of(connection, &unit);
    let commands: Vec<Command> = reader.get(SERVICE, "ExecStart").await?;
    let restart = reader.get::<String>(SERVICE, "Restart").await?;
    // The first of argv may be any name; the program is what runs.
    let argv =
        |(program, argv, ..): Command| std::iter::once(program).chain(argv.into_iter().skip(1)).collect();
    let unit = Scope::this().qualified(&unit);
    Ok(Service { unit, restart, commands: commands.into_iter().map(argv).collect() })
}
