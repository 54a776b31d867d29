//! What a request would do, on recorded facts and on random ones.

mod golden;
mod health;
mod ladder;
mod limits;
mod missing;
mod predecessor;
mod properties;
