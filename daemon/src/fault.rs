//! Fault points, for tests: every effect and every call passes `before NAME` and `after NAME`, and there berthd can be
//! made to die, to stand still or to be told of a failure.
//!
//! Without the feature `faults` (no build that is installed has it) all of this is nothing. With it a file that is
//! written from outside says what happens at which point; `fault/armed.rs` reads it.

#[cfg(feature = "faults")]
mod armed;
#[cfg(feature = "faults")]
pub use armed::{Effect, action, call, effect, event, reading, sync};

#[cfg(not(feature = "faults"))]
pub use nothing::{Effect, action, call, effect, event, reading, sync};

#[cfg(not(feature = "faults"))]
mod nothing {
    use std::io;

    use berth_core::swap::{Action, Event};

    /// An effect under way; dropped, it is over.
    pub struct Effect;

    /// An effect of this name begins.
    pub fn effect(_name: &'static str) -> Effect {
        Effect
    }

    /// What the swap machine asked for begins.
    pub fn action(_action: &Action) -> Effect {
        Effect
    }

    /// The driver is about to be told what came of an action.
    pub fn event(_event: &Event) -> Effect {
        Effect
    }

    /// A call to systemd.
    pub fn call<F: Future>(_name: &str, call: F) -> F {
        call
    }

    /// A question to NVML.
    pub fn reading<F: Future>(_name: &'static str, reading: F) -> F {
        reading
    }

    /// A sync of the ledger.
    pub fn sync(sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        sync()
    }
}
