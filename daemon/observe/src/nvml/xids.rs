//! The Xids that the driver reports, on a thread of their own: it waits in NVML's event sets, which can block as any
//! other call can.
//!
//! It uses the library only while the reader's session with it lasts. NVML counts its initialisations, and a library
//! that is held open here would never be a new one there.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use berth_core::facts::DeviceId;
use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use tokio::sync::mpsc::UnboundedSender;

/// One round of waiting for all GPUs: so late is an Xid known at most, and so late the library is let go of.
const ROUND: Duration = Duration::from_secs(1);
/// The reader waits for that at most so long: the thread may be stuck.
const LET_GO: Duration = Duration::from_secs(2);
/// Between two attempts to wait for a GPU's Xids where that failed.
const RETRY: Duration = Duration::from_secs(5);
/// What NVML gives as the number of an Xid that it does not know.
const UNKNOWN: u64 = 999;

/// An Xid that the driver reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xid {
    /// The GPU that it was reported for.
    pub device: DeviceId,
    /// Its number, as in the kernel's log.
    pub number: u64,
}

/// Between the reader, whose sessions open and close the library, and the thread that waits for Xids.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The reader's session lasts.
    open: bool,
    /// The waiting thread has the library open.
    inside: bool,
    /// There is no reader any more.
    ended: bool,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session began.
    pub(super) fn open(&self) {
        self.state().open = true;
        self.changed.notify_all();
    }

    /// A session ends: returns once the waiting thread has let go of the library, or is stuck.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.open = false;
        // That it is stuck is no reason not to go on.
        let left = self.changed.wait_timeout_while(state, LET_GO, |state| state.inside);
        drop(left);
    }

    /// The reader ends, and with it the waiting thread.
    pub(super) fn end(&self) {
        let mut state = self.state();
        (state.open, state.ended) = (false, true);
        self.changed.notify_all();
    }

    fn is_open(&self) -> bool {
        self.state().open
    }

    /// Waits for a session; false when there will be none.
    fn enter(&self) -> bool {
        let state = self.state();
        let waited = self.changed.wait_while(state, |state| !state.open && !state.ended);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        state.inside = state.open;
        state.inside
    }

    fn leave(&self) {
        self.state().inside = false;
        self.changed.notify_all();
    }

    /// Waits a while, or until the session ends.
    fn rest(&self, time: Duration) {
        let state = self.state();
        drop(self.changed.wait_timeout_while(state, time, |state| state.open));
    }
}

/// Sends what the driver reports until nobody listens or there is no reader any more.
pub(super) fn watch(gate: &Arc<Gate>, xids: &UnboundedSender<Xid>) {
    // What can't be watched is said once.
    let mut said = BTreeSet::new();
    while !xids.is_closed() && gate.enter() {
        let session = Nvml::init().and_then(|nvml| session(&nvml, gate, xids, &mut said));
        gate.leave();
        if let Err(error) = session {
            tracing::debug!(%error, "Xids can't be waited for");
            gate.rest(RETRY);
        }
    }
}

/// A GPU, and the set in which its Xids arrive: one each, so that one that fails takes no other with it, and that it
/// is known whose they are when the GPU itself can't be asked any more.
struct Watched<'n> {
    index: u32,
    set: Option<(DeviceId, EventSet<'n>)>,
    retry_at: Instant,
}

fn session(
    nvml: &Nvml,
    gate: &Gate,
    xids: &UnboundedSender<Xid>,
    said: &mut BTreeSet<u32>,
) -> Result<(), NvmlError> {
    let count = nvml.device_count()?;
    let all = (0..count).map(|index| Watched { index, set: None, retry_at: Instant::now() });
    let mut all: Vec<Watched> = all.collect();
    let each = ROUND / count.max(1);
    let each_ms = u32::try_from(each.as_millis()).unwrap_or(u32::MAX);
    while gate.is_open() && !xids.is_closed() {
        for gpu in &mut all {
            gpu.register(nvml, said);
            let Some((device, set)) = &gpu.set else {
                gate.rest(each);
                continue;
            };
            match set.wait(each_ms) {
                Ok(event) => {
                    let number = match event.event_data {
                        Some(XidError::Value(number)) => number,
                        Some(XidError::Unknown) => UNKNOWN,
                        None => continue,
                    };
                    // That nobody listens is seen above.
                    _ = xids.send(Xid { device: device.clone(), number });
                }
                Err(NvmlError::Timeout) => {}
                Err(error) => {
                    tracing::debug!(gpu = gpu.index, %error, "its Xids can't be waited for now");
                    (gpu.set, gpu.retry_at) = (None, Instant::now() + RETRY);
                }
            }
            if !gate.is_open() {
                break;
            }
        }
        if all.is_empty() {
            gate.rest(ROUND);
        }
    }
    Ok(())
}

impl<'n> Watched<'n> {
    /// Makes its set, where there is none and the time has come. Without one its Xids are not known, which is no error.
    fn register(&mut self, nvml: &'n Nvml, said: &mut BTreeSet<u32>) {
        if self.set.is_some() || Instant::now() < self.retry_at {
            return;
        }
        self.retry_at = Instant::now() + RETRY;
        let set = nvml.device_by_index(self.index).and_then(|device| {
            let id = DeviceId(device.uuid()?);
            let set = nvml.create_event_set()?;
            let set = device.register_events(EventTypes::CRITICAL_XID_ERROR, set);
            Ok((id, set.map_err(|failed| failed.error)?))
        });
        match set {
            Ok(set) => self.set = Some(set),
            Err(error) if said.insert(self.index) => {
                tracing::info!(gpu = self.index, %error, "its Xids can't be watched; see `dmesg` for them");
            }
            Err(_) => {}
        }
    }
}
