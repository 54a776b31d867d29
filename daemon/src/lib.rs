//! berthd: everything that acts. What is decided, berth-core decides.

pub mod act;
pub mod declared;
pub mod driver;
pub mod events;
pub mod fault;
pub mod files;
pub mod health;
pub mod history;
pub mod http;
pub mod journal;
pub mod ledger;
pub mod listen;
pub mod notify;
pub mod observe;
pub mod preflight;
pub mod probe;
pub mod proxy;
pub mod rivals;
pub mod systemd;
pub mod ticket;

pub use berth_observe::{cpus, docker, nvml, proc, scope, sockets};
