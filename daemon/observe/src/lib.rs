//! What can be observed without a daemon: GPUs through NVML, processes and cgroups through /proc,
//! processors through /sys. Reads and
//! changes nothing; berthd and berthctl share it.

pub mod cpus;
pub mod nvml;
pub mod proc;
