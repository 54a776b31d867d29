//! systemd asked over its bus, the machine's or the user's own: any unit's properties, and which services are enabled for boot. Reading asks for no
//! permission; what changes something is berthd's.

pub mod enabled;
mod error;
pub mod path;

use std::num::NonZeroUsize;
use std::time::Duration;

use zbus::{Connection, OwnedObjectPath, OwnedVariant};

use crate::scope::Scope;

pub use error::{JobResult, SystemdError};

/// systemd's name on the bus.
pub const SYSTEMD: &str = "org.freedesktop.systemd1";
/// Its main object.
pub const SYSTEMD_PATH: &str = "/org/freedesktop/systemd1";
/// The interface of that.
pub const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// The interface that every unit has.
pub const UNIT: &str = "org.freedesktop.systemd1.Unit";
/// The interface that a service has besides.
pub const SERVICE: &str = "org.freedesktop.systemd1.Service";

/// The interface that a scope has besides.
pub const SCOPE: &str = "org.freedesktop.systemd1.Scope";

const PROPERTIES: &str = "org.freedesktop.DBus.Properties";

/// How long systemd may take to answer one call. It is slow while it loads all units anew, and it asks polkit first, which
/// gives its rules up to 15 s (`RUNAWAY_KILLER_TIMEOUT` of polkit 122).
const CALL_DEADLINE: Duration = Duration::from_secs(20);

/// One line of `ListUnitsByPatterns`: name, description, load, active and sub state, followed unit, object, job.
pub type Listed =
    (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// Connects to the bus of Berth's systemd. `queue`: messages that may wait to be read, where it is to be other than zbus's own 64.
///
/// # Errors
/// When there is no bus, or it does not answer in time.
pub async fn connect(queue: Option<NonZeroUsize>) -> Result<Connection, SystemdError> {
    connect_to(Scope::this(), queue).await
}

/// The same, to the bus of this systemd.
///
/// # Errors
/// As [`connect`].
pub async fn connect_to(scope: Scope, queue: Option<NonZeroUsize>) -> Result<Connection, SystemdError> {
    const DOING: &str = "connect to systemd";
    let builder = match scope {
        Scope::System => zbus::connection::Builder::system(),
        Scope::User => zbus::connection::Builder::session(),
    };
    let building = match queue {
        Some(queue) => builder.max_queued(queue).build(),
        None => builder.build(),
    };
    tokio::time::timeout(CALL_DEADLINE, building)
        .await
        .map_err(|_| SystemdError::NoAnswer { doing: DOING.to_owned(), after: CALL_DEADLINE })?
        .map_err(|error| unreachable(DOING, &error))
}

/// Reads properties of one unit.
pub struct Reader<'a> {
    connection: &'a Connection,
    path: String,
    doing: String,
}

impl<'a> Reader<'a> {
    /// Of this unit, which systemd loads for it where it has not.
    pub fn of(connection: &'a Connection, unit: &str) -> Self {
        Self { connection, path: path::of_unit(unit), doing: format!("read {unit}") }
    }

    /// Of systemd itself.
    pub fn of_manager(connection: &'a Connection, doing: &str) -> Self {
        Self { connection, path: SYSTEMD_PATH.to_owned(), doing: doing.to_owned() }
    }

    /// The value of a property.
    ///
    /// # Errors
    /// When systemd does not answer, has no such unit or property, or it is of another type.
    pub async fn get<T: TryFrom<OwnedVariant>>(
        &self,
        interface: &str,
        name: &str,
    ) -> Result<T, SystemdError> {
        let value: OwnedVariant =
            call(self.connection, &self.doing, SYSTEMD, &self.path, PROPERTIES, "Get", &(interface, name))
                .await?;
        T::try_from(value).map_err(|_| self.unexpected(name))
    }

    /// The error for a value that nobody expects.
    pub fn unexpected(&self, name: &str) -> SystemdError {
        SystemdError::Refused {
            doing: self.doing.clone(),
            name: name.to_owned(),
            said: "systemd's answer is of an unexpected form".to_owned(),
        }
    }
}

/// One call, with a deadline and an error that says what was asked.
///
/// # Errors
/// When nobody answers in time, or the answer is an error or of an unexpected form.
pub async fn call<B, R>(
    connection: &Connection,
    doing: &str,
    destination: &str,
    path: &str,
    interface: &str,
    member: &str,
    body: &B,
) -> Result<R, SystemdError>
where
    B: serde::Serialize + zbus::wire::DynamicType,
    R: serde::de::DeserializeOwned + zbus::wire::Type,
{
    let calling = connection.call_method(Some(destination), path, Some(interface), member, body);
    let reply = tokio::time::timeout(CALL_DEADLINE, calling)
        .await
        .map_err(|_| SystemdError::NoAnswer { doing: doing.to_owned(), after: CALL_DEADLINE })?
        .map_err(|error| refused(doing, &error))?;
    reply.body().deserialize().map_err(|error| SystemdError::Refused {
        doing: doing.to_owned(),
        name: member.to_owned(),
        said: format!("systemd's answer is of an unexpected form: {error}"),
    })
}

fn unreachable(doing: &str, error: &zbus::Error) -> SystemdError {
    SystemdError::Unreachable { doing: doing.to_owned(), why: error.to_string() }
}

/// An error reply, by its name on the bus.
fn refused(doing: &str, error: &zbus::Error) -> SystemdError {
    let (name, said) = match error {
        zbus::Error::MethodError(name, said, _) => {
            (name.as_str().to_owned(), said.clone().unwrap_or_default())
        }
        zbus::Error::FDO(error) => {
            use zbus::DBusError as _;
            (error.name().to_string(), error.description().unwrap_or_default().to_owned())
        }
        other => return unreachable(doing, other),
    };
    let doing = doing.to_owned();
    let short = name.rsplit('.').next().unwrap_or_default();
    match short {
        "AccessDenied" | "InteractiveAuthorizationRequired" | "AuthFailed" => {
            SystemdError::Denied { doing, said }
        }
        "NoSuchUnit" | "LoadFailed" | "UnknownObject" => SystemdError::NoSuchUnit { doing, said },
        // The bus says these in systemd's stead while it isn't there.
        "NoReply" | "ServiceUnknown" | "NameHasNoOwner" | "Disconnected" | "ChildExited" | "NoServer" => {
            SystemdError::Unreachable { doing, why: said }
        }
        _ => SystemdError::Refused { doing, name, said },
    }
}
