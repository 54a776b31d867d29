//! Simulated GPUs, below the real NVML binding.
//!
//! One daemon (`gpusim serve`) owns the cards: who holds how much on which, what lingers after a death, which
//! readings lie. Three kinds of client talk to it over a unix socket: our `libnvidia-ml.so.1` (readings),
//! servers and launchers that hold simulated memory (allocations), and tests (`gpusim ctl`, knobs and
//! counters). The product under test knows nothing of this crate.
//!
//! ```text
//! state (pure: cards, claims, lingering; time is an argument) ◄── server (sockets, pidfds) ◄── client
//! ```

pub mod cards;
pub mod client;
pub mod foreign;
pub mod linger;
pub mod protocol;
pub mod record;
pub mod server;
pub mod state;
pub mod sys;
pub mod units;
pub mod visible;

pub use client::{Client, ClientError};
