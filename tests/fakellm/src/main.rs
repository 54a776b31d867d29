//! A model server without a model: it loads, answers and holds (simulated) GPU memory as llama-server or vLLM
//! do, and misbehaves in every way that a flag asks for.

mod api;
mod args;
mod children;
mod gpu;
mod life;
mod tokens;

use std::process::ExitCode;

use args::{Arguments, Role};

fn main() -> ExitCode {
    let arguments = args::parse();
    match run(&arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("fakellm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<u8> {
    match arguments.role {
        Role::Worker | Role::Escaped => children::be_worker(arguments),
        Role::Escapee => children::step_aside(),
        Role::Listener => children::listen(arguments),
        Role::Main if arguments.serve_from_child => children::serve_from_child(),
        Role::Main | Role::Server => life::live(arguments),
    }
}
