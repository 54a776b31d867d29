//! A simulated world for the swap machine: time, GPUs whose memory lingers, units that misbehave, and the driver
//! around the machine. `nature` is the hardware and systemd, `berth` does with the machine what the driver does,
//! `direct` and `home` tell single stories, `random` lets everything happen at once against a small reference.

mod berth;
mod direct;
mod home;
mod nature;
mod random;

pub(crate) use berth::World;
