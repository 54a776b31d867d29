//! A real systemd with its own D-Bus, polkit and journal, to try and to test Berth in. Needs root; no container
//! engine.
//!
//! A sandbox is the host's own system seen through an overlay, in namespaces of its own. Its systemd starts
//! what `sandbox.target` names and nothing that the host has enabled. On top of it lies the tree that
//! `make install DESTDIR=…` makes. Only the GPUs are simulated, by gpusim.
//!
//! ```text
//! Builder ──► host (can it run here?) ──► folder (a disk) ──► boot ──► guest (commands in it)
//!                                                               └────► cgroup (nothing escapes, nothing stays)
//! ```
//!
//! `/var/lib/berth` there is a disk of its own: [`Sandbox::cut`] takes its power away, and what was not synced
//! is lost. The rest, the guest's journal too, lies on the overlay, which a cut leaves as it is, so that
//! what happened before can be read afterwards. All mounts are made in the guest's mount namespace: whatever
//! ends the guest, the kernel takes them back.
//!
//! ```no_run
//! let sandbox = sandbox::Sandbox::builder().gpus("2x16311").tree("target/stage").up()?;
//! let output = sandbox.exec_as("frank", &["berthctl", "status"])?.check()?;
//! println!("{}", output.stdout);
//! # anyhow::Ok(())
//! ```

mod boot;
mod cgroup;
mod folder;
mod guest;
mod host;
mod machine;
mod owner;
mod wait;

pub use folder::Bind;
pub use guest::{Output, exit_code, signal};
pub use machine::{Builder, DEFAULT_GPUS, EXEC_DEADLINE, Sandbox};
pub use wait::Interrupt;
