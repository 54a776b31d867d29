//! The end-to-end tests: one binary, one sandbox for each test. Run as root, after `make stage`:
//!
//! ```sh
//! cargo test -p berth-tests --test e2e -- --test-threads=3
//! ```
//!
//! They are never skipped: where a sandbox can't run, they fail and say what is missing.
#![allow(clippy::unwrap_used)]

mod add;
mod adoption;
mod boot;
mod byhand;
mod containers;
mod crash;
mod dashboard;
mod devices;
mod docs;
mod doctor;
mod failures;
mod health;
mod history;
mod home;
mod host;
mod http;
mod input;
mod machine;
mod memory;
mod on_demand;
mod package;
mod placement;
mod proxy;
mod recordings;
mod release;
mod reload;
mod restart;
mod rights;
mod setup;
mod smoke;
mod soak;
mod user;
mod variants;
mod verbs;
mod watched;
