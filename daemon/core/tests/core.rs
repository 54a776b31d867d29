//! berth-core from outside: the planner on recorded facts, the proof of release and the soundness of GPUs reading by
//! reading, the swap machine in a simulated world, and the shapes of models in their files.
#![allow(clippy::unwrap_used)]

mod planner;
mod release;
mod shapes;
mod soundness;
mod story;
mod world;
