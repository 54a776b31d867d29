//! A simulated world for the swap machine: time, GPUs whose memory lingers, units that misbehave, and the driver
//! around the machine. `nature` is the hardware and systemd, `berth` does with the machine what the driver does,
//! `clients` ask, `hour` lets thousands of them ask, `direct`, `home` and `guests` tell single stories, `random` lets
//! everything happen at once against a small reference.

mod berth;
mod clients;
mod direct;
mod guests;
mod home;
mod hour;
mod nature;
mod random;

pub(crate) use berth::World;
