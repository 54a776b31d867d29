//! What a request would do, on recorded facts and on random ones.

mod golden;
mod ladder;
mod missing;
mod properties;
