//! What can be observed without a daemon: GPUs through NVML, processes and cgroups through /proc,
//! processors through /sys, what models' files are made of. Reads and changes nothing; berthd and berthctl share it.

pub mod cpus;
pub mod docker;
pub mod files;
pub mod ledger;
pub mod nvml;
pub mod proc;
pub mod published;
pub mod scope;
pub mod sockets;
pub mod systemd;
