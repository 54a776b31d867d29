//! berthd: everything that acts. What is decided, berth-core decides.

pub mod act;
pub mod driver;
pub mod events;
pub mod http;
pub mod journal;
pub mod ledger;
pub mod nvml;
pub mod observe;
pub mod preflight;
pub mod probe;
pub mod proc;
pub mod sockets;
pub mod systemd;
pub mod ticket;
