//! The connection to the bus: opened, listened to, opened again.
//!
//! One task reads everything that comes in, in its order, and never waits for an answer itself. Signals are
//! taken only from the name that owns `org.freedesktop.systemd1`: on the system bus anyone may send one.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use berth_core::name::ModelName;
use berth_observe::systemd::{MANAGER, SYSTEMD, SYSTEMD_PATH, SystemdError, UNIT, call, connect, path};
use futures_util::StreamExt as _;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream, OwnedObjectPath, OwnedVariant};

use super::{Change, Inner, JobResult, Link, UnitChange, read};

const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Messages that may wait to be read; the connection stands still when they are more.
const QUEUE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// How long the first connection is tried for.
const FIRST: Duration = Duration::from_secs(5);

/// Between two tries to connect: from the first to the last of these.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// What the bus is asked to pass on.
const MATCHES: [&str; 4] = [
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
     interface='org.freedesktop.systemd1.Manager',member='JobRemoved'",
    "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
     interface='org.freedesktop.systemd1.Manager',member='Reloading'",
    "type='signal',sender='org.freedesktop.systemd1',path_namespace='/org/freedesktop/systemd1/unit',\
     interface='org.freedesktop.DBus.Properties',member='PropertiesChanged'",
    "type='signal',sender='org.freedesktop.DBus',interface='org.freedesktop.DBus',\
     member='NameOwnerChanged',arg0='org.freedesktop.systemd1'",
];

/// A connection over which systemd tells what happens.
pub(super) struct Opened {
    pub(super) connection: Connection,
    stream: MessageStream,
    /// systemd's unique name on the bus.
    owner: String,
}

/// The first connection. systemd may come to a bus a moment after the bus itself: a user's bus begins when it is asked for.
pub(super) async fn first() -> Result<Opened, SystemdError> {
    let end = Instant::now() + FIRST;
    loop {
        match open().await {
            Err(SystemdError::Unreachable { .. }) if Instant::now() < end => sleep(FIRST_PAUSE).await,
            done => return done,
        }
    }
}

/// Connects and subscribes.
async fn open() -> Result<Opened, SystemdError> {
    const DOING: &str = "connect to systemd";
    let connection = connect(Some(QUEUE)).await?;
    let stream = MessageStream::from(&connection);
    for rule in MATCHES {
        call::<_, ()>(&connection, DOING, BUS, BUS_PATH, BUS, "AddMatch", &(rule,)).await?;
    }
    let owner: String = call(&connection, DOING, BUS, BUS_PATH, BUS, "GetNameOwner", &(SYSTEMD,)).await?;
    subscribe(&connection).await?;
    Ok(Opened { connection, stream, owner })
}

async fn subscribe(connection: &Connection) -> Result<(), SystemdError> {
    let done = call(connection, "listen to systemd", SYSTEMD, SYSTEMD_PATH, MANAGER, "Subscribe", &()).await;
    match done {
        // After a restart of systemd it may remember us.
        Err(SystemdError::Refused { name, .. }) if name == "org.freedesktop.systemd1.AlreadySubscribed" => {
            Ok(())
        }
        done => done,
    }
}

/// Reads the connection until it breaks, then opens another, for ever.
pub(super) async fn keep(inner: Arc<Inner>, mut opened: Opened) {
    loop {
        let why = listen(&inner, opened).await;
        warn!(%why, "the connection to systemd was lost");
        inner.link.send_replace(Link::Down(why.clone()));
        // Whoever waits for a job learns by this that its end may be told while nobody listens.
        inner.waiters().clear();
        // No receiver is no error.
        _ = inner.changes.send(Change::Lost(why));
        opened = reopen(&inner).await;
        inner.link.send_replace(Link::Up(opened.connection.clone()));
        _ = inner.changes.send(Change::Back);
        info!("connected to systemd again");
    }
}

/// Connects until it works, and holds on to the same units as before.
async fn reopen(inner: &Inner) -> Opened {
    let mut pause = FIRST_PAUSE;
    loop {
        sleep(pause).await;
        match open().await {
            Ok(opened) => {
                let units = inner.referenced().clone();
                for unit in units {
                    let doing = format!("hold on to {unit}");
                    let held = call::<_, ()>(
                        &opened.connection,
                        &doing,
                        SYSTEMD,
                        &path::of_unit(&unit),
                        UNIT,
                        "Ref",
                        &(),
                    )
                    .await;
                    if let Err(error) = held {
                        warn!(%error, "what is known of this unit's last run may get lost");
                        inner.referenced().remove(&unit);
                    }
                }
                return opened;
            }
            Err(error) => {
                debug!(%error, "not connected yet");
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

/// Passes on what comes in. Returns why nothing more comes.
async fn listen(inner: &Arc<Inner>, mut opened: Opened) -> String {
    while let Some(message) = opened.stream.next().await {
        let message = match message {
            Ok(message) => message,
            Err(error) => return error.to_string(),
        };
        if message.message_type() != Type::Signal {
            continue;
        }
        let header = message.header();
        let sender = header.sender().map_or("", |name| name.as_str());
        let member = header.member().map_or("", |name| name.as_str());
        let path = header.path().map_or("", |path| path.as_str());
        if sender == BUS && member == "NameOwnerChanged" {
            if let Ok((SYSTEMD, _, new)) = message.body().deserialize::<(&str, &str, &str)>() {
                new.clone_into(&mut opened.owner);
                owner_changed(inner, &opened.connection, new.is_empty());
            }
        } else if sender == opened.owner && !sender.is_empty() {
            systemd_said(inner, member, path, &message);
        }
    }
    "the bus closed the connection".to_owned()
}

/// systemd left the bus or came back to it; it does both when it executes itself anew.
fn owner_changed(inner: &Arc<Inner>, connection: &Connection, gone: bool) {
    if gone {
        _ = inner.changes.send(Change::Lost("systemd left the bus".to_owned()));
        return;
    }
    let (inner, connection) = (Arc::clone(inner), connection.clone());
    // Not here: the answer comes in over what this task reads.
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        while let Err(error) = subscribe(&connection).await {
            if connection.is_closed() {
                return;
            }
            warn!(%error, "systemd is back on the bus and not to be listened to yet");
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
        _ = inner.changes.send(Change::Back);
    });
}

fn systemd_said(inner: &Inner, member: &str, path: &str, message: &Message) {
    match member {
        "JobRemoved" => {
            let body = message.body();
            let Ok((_, job, unit, result)) = body.deserialize::<(u32, OwnedObjectPath, &str, &str)>() else {
                return;
            };
            let replacing = || inner.predecessors().model(|declared| declared == unit);
            let Some(model) = ModelName::from_unit(unit).or_else(replacing) else { return };
            let result = JobResult::parse(result);
            inner.waiters().retain(|waiter| {
                let end = || super::job::JobEnd { object: job.as_str().to_owned(), result: result.clone() };
                if waiter.unit == unit { waiter.ends.send(end()).is_ok() } else { !waiter.ends.is_closed() }
            });
            _ = inner.changes.send(Change::Job { model, result });
        }
        "Reloading" => {
            if let Ok(active) = message.body().deserialize::<bool>() {
                _ = inner.changes.send(Change::Reloading(active));
            }
        }
        "PropertiesChanged" => {
            if let Some(change) = model_at(inner, path).and_then(|model| unit_change(model, message)) {
                _ = inner.changes.send(Change::Unit(change));
            }
        }
        _ => {}
    }
}

/// The model whose unit an object is: its own, or the one that it replaces.
fn model_at(inner: &Inner, path: &str) -> Option<ModelName> {
    path::model(path).or_else(|| inner.predecessors().model(|declared| path::of_unit(declared) == path))
}

/// What of interest a unit's signal says. It also tells of each status text and job.
fn unit_change(model: ModelName, message: &Message) -> Option<UnitChange> {
    let body = message.body();
    let (_, changed, _) = body.deserialize::<(&str, HashMap<&str, OwnedVariant>, Vec<&str>)>().ok()?;
    let text =
        |name: &str| changed.get(name).and_then(|value| <&str>::try_from(value).ok()).map(str::to_owned);
    let change = UnitChange {
        model,
        active: text("ActiveState").as_deref().and_then(read::parse_active),
        sub: text("SubState"),
        result: text("Result"),
        main_pid: changed.get("MainPID").and_then(|value| u32::try_from(value).ok()),
    };
    let says = change.active.is_some()
        || change.sub.is_some()
        || change.result.is_some()
        || change.main_pid.is_some();
    says.then_some(change)
}
