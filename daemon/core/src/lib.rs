//! berth-core: everything that Berth decides, and nothing that acts.
//!
//! The data's way (see `docs/architecture.md`): configuration becomes [`config::Settings`], observation
//! becomes [`facts::Facts`], the ledger holds [`state::State`]; [`plan`] turns the three into a plan or a
//! refusal, [`swap`] carries a plan through as a pure machine of events and actions, and [`report`] is what
//! people and programs are shown. What is done without being asked begins in [`upkeep`]. No tokio, D-Bus, clock or file
//! system here: time is an argument.
#![warn(missing_docs)]

pub mod backend;
pub mod bytes;
pub mod config;
pub mod container;
pub mod cpus;
pub mod demand;
pub mod exposure;
pub mod facts;
pub mod gguf;
pub mod health;
pub mod history;
pub mod host;
pub mod layout;
pub mod learned;
pub mod metrics;
pub mod name;
pub mod notify;
pub mod placement;
pub mod plan;
pub mod policy;
pub mod proxy;
pub mod release;
pub mod report;
pub mod rivals;
pub mod safetensors;
pub mod shape;
pub mod soundness;
pub mod state;
pub mod status;
pub mod swap;
pub mod tuning;
pub mod upkeep;
