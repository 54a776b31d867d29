//! The points, armed from outside.
//!
//! One file says what is to happen, once: it is removed at the very moment at which that happens, so whoever wrote it
//! learns by that that the point was reached, and the next berthd is not hit again.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use berth_core::facts::{Gpu, Known};
use berth_core::report::What;
use berth_core::swap::{Action, Event};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::nvml::PerDevice;
use crate::systemd::SystemdError;

/// What is to happen; written under another name and renamed.
const FILE: &str = "/run/berth/fault.json";
/// Every point that was passed, a line each, while [`Happens::Record`] is asked for.
const PASSED: &str = "/run/berth/fault.points";
/// Longer than a test waits until it cuts the power.
const HALT: Duration = Duration::from_mins(10);
const WHY: &str = "a fault that a test asked for";

#[derive(Deserialize)]
struct Fault {
    happens: Happens,
    /// Where.
    #[serde(default)]
    at: At,
    /// Passings of `at` count only after this one.
    #[serde(default)]
    since: Option<At>,
}

#[derive(Deserialize, Clone, Copy, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Happens {
    /// berthd dies of SIGKILL.
    Kill,
    /// berthd stands still, all of it, for its machine's power to be cut just here.
    Halt,
    /// The call fails: before it is made, or its answer is lost.
    Fail,
    /// All points that are passed are written down; nothing goes wrong.
    Record,
    /// The ledger is not synced any more. Lasts.
    Unsynced,
}

/// The `nth` passing of a point, counted from 1.
#[derive(Deserialize, Default)]
struct At {
    point: String,
    nth: u32,
}

/// How far the file as it is now has been counted.
struct Count {
    file: String,
    since: u32,
    at: u32,
}

static COUNT: Mutex<Count> = Mutex::new(Count { file: String::new(), since: 0, at: 0 });

fn asked() -> Option<(String, Fault)> {
    let text = fs::read_to_string(FILE).ok()?;
    let fault = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{FILE}: {error}"));
    Some((text, fault))
}

/// Passes a point; whether what it stands before or after is to fail.
fn fails(when: &str, name: &str) -> bool {
    let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    let Some((text, fault)) = asked() else { return false };
    let point = format!("{when} {name}");
    if fault.happens == Happens::Record {
        let file = OpenOptions::new().create(true).append(true).open(PASSED);
        _ = file.and_then(|mut file| file.write_all(format!("{point}\n").as_bytes()));
    }
    if matches!(fault.happens, Happens::Record | Happens::Unsynced) {
        return false;
    }
    if count.file != text {
        *count = Count { file: text, since: 0, at: 0 };
    }
    let begun = fault.since.is_none_or(|since| {
        let already = count.since >= since.nth;
        count.since += u32::from(point == since.point);
        already
    });
    count.at += u32::from(begun && point == fault.at.point);
    if count.at < fault.at.nth {
        return false;
    }
    _ = fs::remove_file(FILE);
    match fault.happens {
        Happens::Kill => _ = kill(Pid::this(), Signal::SIGKILL),
        Happens::Halt => {
            _ = kill(Pid::this(), Signal::SIGSTOP);
            // Another thread may take the signal, and this one would run on until that has a processor.
            std::thread::sleep(HALT);
        }
        _ => {}
    }
    fault.happens == Happens::Fail
}

/// An effect under way; dropped, it is over.
pub struct Effect(Option<&'static str>);

impl Drop for Effect {
    fn drop(&mut self) {
        if let Some(name) = self.0 {
            fails("after", name);
        }
    }
}

/// An effect of this name begins.
pub fn effect(name: &'static str) -> Effect {
    fails("before", name);
    Effect(Some(name))
}

/// What the swap machine asked for begins. That people are told how far it is, and how closely is observed, is no
/// effect.
pub fn action(action: &Action) -> Effect {
    effect(match action {
        Action::Record { .. } => "record",
        Action::Stop(_) => "stop",
        Action::Kill(_) => "kill",
        Action::Start(_) => "start",
        Action::Probe(_) => "probe",
        Action::Diagnose(_) => "diagnose",
        Action::Say(What::SwapEnded { .. }) => "say ended",
        Action::End => "end",
        Action::Watch(_) | Action::HoldBack | Action::Say(_) => return Effect(None),
    })
}

/// The driver is about to be told what came of an action.
pub fn event(event: &Event) -> Effect {
    effect(match event {
        Event::StopEnded(..) => "news stopped",
        Event::StartEnded(..) => "news started",
        Event::Ready(_) => "news ready",
        Event::Diagnosed(..) => "news diagnosed",
        _ => return Effect(None),
    })
}

/// A call to systemd: it is not made, or made and its answer is lost.
pub fn call<T>(
    name: &str,
    call: impl Future<Output = Result<T, SystemdError>>,
) -> impl Future<Output = Result<T, SystemdError>> {
    let name = format!("systemd {name}");
    // Large as these calls are, two of each are more than a stack should hold.
    let call = Box::pin(call);
    async move {
        if fails("before", &name) {
            let error = "org.freedesktop.DBus.Error.LimitsExceeded".to_owned();
            return Err(SystemdError::Refused { doing: name, name: error, said: WHY.to_owned() });
        }
        let answer = call.await;
        if fails("after", &name) {
            return Err(SystemdError::NoAnswer { doing: name, after: Duration::from_secs(10) });
        }
        answer
    }
}

/// A question to NVML, which may not answer.
pub async fn reading<T: Reading>(name: &'static str, reading: impl Future<Output = T>) -> T {
    let early = fails("before", name);
    let answer = reading.await;
    if fails("after", name) || early { answer.unknown() } else { answer }
}

/// What NVML answers.
pub trait Reading {
    /// The same where it does not.
    #[must_use]
    fn unknown(self) -> Self;
}

impl Reading for Known<Vec<Gpu>> {
    fn unknown(self) -> Self {
        Self::Unknown(WHY.to_owned())
    }
}

impl<T> Reading for PerDevice<T> {
    fn unknown(mut self) -> Self {
        for (_, value) in self.values_mut() {
            *value = Known::Unknown(WHY.to_owned());
        }
        self
    }
}

/// A sync of the ledger: it fails before the kernel is asked or after it, or is left out.
pub fn sync(sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let failed = || Err(io::Error::other(WHY));
    if fails("before", "ledger sync") {
        return failed();
    }
    if asked().is_none_or(|(_, fault)| fault.happens != Happens::Unsynced) {
        sync()?;
    }
    if fails("after", "ledger sync") { failed() } else { Ok(()) }
}
