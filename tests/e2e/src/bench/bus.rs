//! A guest's systemd over its system bus, from outside: one connection, no process for a call.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use zbus::{Connection, OwnedObjectPath, OwnedVariant};

use crate::Berth;

const SYSTEMD: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// Between two looks at a unit's state.
const LOOK: Duration = Duration::from_millis(2);

/// How long a unit may take to start or stop.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Bus {
    runtime: Runtime,
    connection: Connection,
}

impl Bus {
    pub(crate) fn connect(berth: &Berth) -> Result<Bus> {
        // A worker of its own: the connection lives on between our calls.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let socket = berth.sandbox().root().join("run/dbus/system_bus_socket");
        let address = format!("unix:path={}", socket.display());
        let connection = runtime
            .block_on(async { zbus::connection::Builder::address(address.as_str()).build().await })
            .with_context(|| format!("can't connect to the guest's bus at {address}"))?;
        Ok(Bus { runtime, connection })
    }

    fn call<B, R>(&self, path: &str, interface: &str, member: &str, body: &B) -> Result<R>
    where
        B: serde::Serialize + zbus::wire::DynamicType,
        R: serde::de::DeserializeOwned + zbus::wire::Type,
    {
        let call = self.connection.call_method(Some(SYSTEMD), path, Some(interface), member, body);
        let reply = self.runtime.block_on(async { tokio::time::timeout(DEADLINE, call).await });
        let reply = reply.with_context(|| format!("systemd did not answer {member}"))?;
        Ok(reply.with_context(|| format!("systemd refused {member} of {path}"))?.body().deserialize()?)
    }

    /// StartUnit. Returns once the job is queued.
    pub(crate) fn start(&self, unit: &str) -> Result<()> {
        self.call::<_, OwnedObjectPath>(PATH, MANAGER, "StartUnit", &(unit, "replace")).map(drop)
    }

    /// StopUnit, and waits until the unit is down.
    pub(crate) fn stop(&self, unit: &str) -> Result<()> {
        self.call::<_, OwnedObjectPath>(PATH, MANAGER, "StopUnit", &(unit, "replace"))?;
        self.wait(unit, |state| ["inactive", "failed"].contains(&state))
    }

    /// Waits until the unit is up.
    pub(crate) fn wait_active(&self, unit: &str) -> Result<()> {
        self.wait(unit, |state| state == "active")
    }

    fn wait(&self, unit: &str, is_it: impl Fn(&str) -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let state: String = self.property(unit, UNIT, "ActiveState")?.try_into()?;
            if is_it(&state) {
                return Ok(());
            }
            if start.elapsed() >= DEADLINE {
                bail!("{unit} is still {state} after {DEADLINE:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// KillUnit: SIGKILL to the unit's main process.
    pub(crate) fn kill(&self, unit: &str) -> Result<()> {
        self.call::<_, ()>(PATH, MANAGER, "KillUnit", &(unit, "main", nix::libc::SIGKILL))
    }

    /// Which run of the unit this is: its main process and its InvocationID.
    pub(crate) fn run_of(&self, unit: &str) -> Result<(u32, Vec<u8>)> {
        let main_pid = self.property(unit, SERVICE, "MainPID")?.try_into()?;
        let invocation = self.property(unit, UNIT, "InvocationID")?.try_into()?;
        Ok((main_pid, invocation))
    }

    /// When systemd started the main process, in nanoseconds.
    pub(crate) fn started(&self, unit: &str) -> Result<u64> {
        self.stamp(unit, SERVICE, "ExecMainStartTimestampMonotonic")
    }

    /// When the unit was last active, in nanoseconds: systemd sends SIGTERM then.
    pub(crate) fn stopped(&self, unit: &str) -> Result<u64> {
        self.stamp(unit, UNIT, "ActiveExitTimestampMonotonic")
    }

    fn stamp(&self, unit: &str, interface: &str, property: &str) -> Result<u64> {
        let micros: u64 = self.property(unit, interface, property)?.try_into()?;
        if micros == 0 {
            bail!("systemd has no {property} of {unit}");
        }
        Ok(micros * 1000)
    }

    fn property(&self, unit: &str, interface: &str, property: &str) -> Result<OwnedVariant> {
        let path: OwnedObjectPath = self.call(PATH, MANAGER, "LoadUnit", &(unit,))?;
        self.call(path.as_str(), "org.freedesktop.DBus.Properties", "Get", &(interface, property))
            .with_context(|| format!("can't read {property} of {unit}"))
    }
}
