//! What can be observed without a daemon: GPUs through NVML, processes and cgroups through /proc. Reads and
//! changes nothing; berthd and berthctl share it.

pub mod nvml;
pub mod proc;
