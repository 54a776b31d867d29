//! berth-core from outside: the planner on recorded facts, the proof of release and the soundness of GPUs reading by
//! reading, the swap machine in a simulated world, the shapes of models in their files and the memory they take.
#![allow(clippy::unwrap_used)]

mod memory;
mod planner;
mod release;
mod shapes;
mod soundness;
mod story;
mod world;
