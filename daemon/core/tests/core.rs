//! berth-core from outside: the planner on recorded facts, the proof of release and the soundness of GPUs reading by
//! reading, and the swap machine in a simulated world.
#![allow(clippy::unwrap_used)]

mod planner;
mod release;
mod soundness;
mod story;
mod world;
