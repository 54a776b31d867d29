//! The fixture of the end-to-end tests, the demo and the benchmarks: a sandbox with Berth in it.
//!
//! ```text
//! Builder (cards, models, settings) ──► Berth ──► ctl, status, gpu, stats, ask, wait_for …
//!             declare: models' files      │
//!             assets: the real parts      └──► on a panic: report (what berthd, systemd and the GPUs say)
//! ```
//!
//! All that a test does to the guest goes the way an operator's hands go: berthctl, systemctl, files. What it
//! measures comes from outside: gpusim's own counters and stamps, requests to the servers' ports.
//!
//! ```no_run
//! use berth_tests::Berth;
//!
//! let berth = Berth::builder().fake("aeon", "14300MiB", &[]).fake("genesis", "14300MiB", &[]).boot();
//! berth.gpu(&["linger", "2500ms"]);
//! berth.switch("aeon");
//! let swap = berth.switch("genesis");
//! assert_eq!(berth.stats().failed, 0, "{swap:?}");
//! assert!(!berth.ask("genesis").is_empty());
//! ```

pub mod adoption;
mod assets;
pub mod bench;
mod berth;
mod builder;
pub mod crash;
pub mod crowd;
mod declare;
mod failure;
mod http;
mod prometheus;
pub mod soak;
mod started;
mod stream;
mod told;

pub use assets::{Assets, NoAssets};
pub use berth::{Berth, Change, CtlOutput, PROMPT, Run, Server, step_ms};
pub use builder::{Builder, stage};
pub use declare::{GUEST_ASSETS, declaration, fake, real, real_command};
pub use http::{Answer, ask, connect, get, listen, post, say};
pub use prometheus::Page;
pub use started::{STARTED, Started};
pub use stream::Streamed;
pub use told::Told;
