//! A simulated world for the swap machine: time, GPUs whose memory lingers, units that misbehave, and the driver
//! around the machine. `nature` is the hardware and systemd, `berth` does with the machine what the driver does,
//! `clients` ask, `hour` lets thousands of them ask, `direct`, `cancel`, `home`, `guests` and
//! `guests_and_home` tell single stories, `random` lets everything happen at once against a small reference.

mod berth;
mod cancel;
mod clients;
mod direct;
mod guests;
mod guests_and_home;
mod home;
mod hour;
mod nature;
mod random;

pub(crate) use berth::World;
